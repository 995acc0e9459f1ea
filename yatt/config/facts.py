"""Facts of a Hugging Face folder and of this machine, read without torch or transformers."""

from __future__ import annotations

import math
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from yatt.config.paths import ON_HUB
from yatt.config.weight_files import read_json, stored
from yatt.errors import ConfigError
from yatt.models.facts import ModelFacts
from yatt.models.family import EMBEDDING, HEAD, head_size, kv_heads, tied
from yatt.models.fields import SIZES
from yatt.models.generic import (
    causal_architectures,
    completed,
    embedding_rows,
    head_dims,
    layer_sizes,
    scoring_architectures,
)
from yatt.models.table import ARCHITECTURES, CLASSIFIERS, family_of
from yatt.models.vision import language, named, prefixes_of, vision_facts, vision_mistakes

HEADS = {"generative": "ForCausalLM", "classifier": "ForSequenceClassification"}
"""How the architecture's name ends, of a judge of each kind."""
_TOKENIZER = "tokenizer.json"


def model_facts(
    path: str,
    setting: str = "model.path",
    *,
    weights: bool = True,
    judge: Literal["generative", "classifier"] | None = None,
    scalar: bool = False,
    any_family: bool = False,
) -> ModelFacts:
    """Reads config.json and the headers of the weight files; without `weights`, config.json alone. What they say that
    cannot be trained is for `yatt.config.folders`. With `judge`, the model is one of that kind, which is served and
    never trained: any architecture with the right head will do. With `scalar` it is trained to score, so that a
    classifier of one label will do as well as a language model. With `any_family` it is trained as transformers has it:
    any causal language model will do that transformers has.

    Raises ConfigError naming `setting` where one is missing, torn, or of an architecture that is not supported.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ConfigError(no_folder(setting, path))
    whole = read_json(folder / "config.json", setting)
    if any_family and judge is None:
        return _any_facts(whole, path, setting, weights=weights, scalar=scalar)
    family = family_of(architecture_of(whole))
    tower = None if family is None else family.tower
    config = language(whole, tower)
    if judge is not None:
        _check_judge(config, f"{setting}={path}", judge)
    else:
        _check_trained(config, f"{setting}={path}", scalar)
    classifies = architecture_of(config).endswith(HEADS["classifier"])
    _check_sizes(config, f"{setting}={path}")
    pad = config.get("pad_token_id")
    if judge is None:
        _check_padding(config, f"{setting}={path}")
    shapes = tensor_shapes(path, setting) if weights else {}
    unlike = [] if tower is None else list(vision_mistakes(whole, tower))
    if unlike and judge is None:
        raise ConfigError("\n".join(f"{setting}={path}: {one}" for one in unlike))
    embedding = named(EMBEDDING, prefixes_of(shapes, tower))
    return ModelFacts(
        hidden_size=config["hidden_size"],
        intermediate_size=config["intermediate_size"],
        layers=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        kv_heads=kv_heads(config, family),
        vocab_size=config["vocab_size"],
        max_positions=config["max_position_embeddings"],
        embedding_rows=shapes[embedding][0] if embedding in shapes else config["vocab_size"],
        head_dim=head_size(config, family),
        tied=tied(config, family) or classifies,
        architecture=architecture_of(config),
        padding=pad if isinstance(pad, int) else None,
        vision=None if tower is None or unlike else vision_facts(config, tower),
    )


def _any_facts(whole: Mapping[str, Any], path: str, setting: str, *, weights: bool, scalar: bool) -> ModelFacts:
    """`model_facts` of a model of any family."""
    at, architecture = f"{setting}={path}", architecture_of(whole)
    family, scoring = family_of(architecture), set(scoring_architectures().values())
    if family is not None and family.tower is not None:
        raise ConfigError(f"{at}: train.backend=fsdp trains no {architecture}, which sees; use train.backend=megatron")
    if architecture not in causal_architectures().values() and not (scalar and architecture in scoring):
        kind = "causal language model or classifier" if scalar else "causal language model"
        raise ConfigError(f"{at}: architecture {architecture} is no {kind} of the installed transformers; use another")
    if architecture in scoring:
        _check_labels(whole, at)
    config = completed(whole)
    _check_sizes(config, at)
    _check_padding(config, at)
    shapes = tensor_shapes(path, setting) if weights else {}
    sizes = layer_sizes(config, shapes)
    tied_head = whole.get("tie_word_embeddings", bool(shapes) and HEAD not in shapes)
    pad = config.get("pad_token_id")
    return ModelFacts(
        hidden_size=config["hidden_size"],
        intermediate_size=config["intermediate_size"],
        layers=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        kv_heads=kv_heads(config, family),
        vocab_size=config["vocab_size"],
        max_positions=config["max_position_embeddings"],
        embedding_rows=embedding_rows(shapes) or config["vocab_size"],
        head_dim=head_dims(config) if family is None else head_size(config, family),
        tied=bool(tied_head) or architecture in scoring,
        architecture=architecture,
        padding=pad if isinstance(pad, int) else None,
        layer_weights=None if sizes is None else sizes.all,
        active=None if sizes is None else sizes.active,
    )


def _check_sizes(config: Mapping[str, Any], at: str) -> None:
    wrong = [name for name in SIZES if not isinstance(config.get(name), int) or config[name] < 1]
    if wrong:
        raise ConfigError(f"{at}: config.json has no whole number under {', '.join(wrong)}")


def _check_padding(config: Mapping[str, Any], at: str) -> None:
    pad, vocabulary = config.get("pad_token_id"), config["vocab_size"]
    if isinstance(pad, int) and not -vocabulary <= pad < vocabulary:
        raise ConfigError(
            f"{at}: pad_token_id={pad} is no token of its vocab_size={vocabulary}, and transformers loads no such "
            "model; name one below that in config.json, or null"
        )


def padding_row(pad: int | None, rows: int) -> int | None:
    """The row of an embedding of so many rows that `pad_token_id` names, as torch counts: -1 is the last one."""
    return None if pad is None else pad % rows


def no_folder(setting: str, path: str) -> str:
    """The error for a path that is no folder. It may end as a name on the Hub, which stands by itself."""
    name = "/".join(Path(path).parts[-2:])
    said = f"{setting}={path}: no such folder; name a Hugging Face model folder"
    if not ON_HUB.fullmatch(name) or Path(path).parent.is_dir() or path == name:
        return said
    return f"{said} (if it is {name} on the Hub, write {setting}={name})"


def architecture_of(config: Mapping[str, Any]) -> str:
    """The name of the architecture that a config.json gives."""
    return str((config.get("architectures") or ["none"])[0])


def _check_judge(config: Mapping[str, Any], at: str, kind: Literal["generative", "classifier"]) -> None:
    architecture = architecture_of(config)
    sees = kind == "generative" and architecture in ARCHITECTURES
    if not sees and not architecture.endswith(HEADS[kind]):
        fits = [other for other, head in HEADS.items() if architecture.endswith(head)]
        remedy = f"set its kind to {fits[0]}" if fits else f"a {kind} judge's name ends in {HEADS[kind]}"
        raise ConfigError(f"{at}: architecture {architecture} is no {kind} judge; {remedy}")
    if kind == "classifier":
        _check_labels(config, at)


def _check_trained(config: Mapping[str, Any], at: str, scalar: bool) -> None:
    architecture, known = architecture_of(config), ARCHITECTURES + CLASSIFIERS * scalar
    if architecture not in known:
        raise ConfigError(f"{at}: architecture {architecture} is not supported; use one of {', '.join(known)}")
    if architecture in CLASSIFIERS:
        _check_labels(config, at)


def _check_labels(config: Mapping[str, Any], at: str) -> None:
    labels = len(config.get("id2label") or ()) or config.get("num_labels", 2)
    if labels != 1:
        raise ConfigError(f"{at}: its head has {labels} labels; a reward model has one, whose logit is the reward")


def tokenizer_size(path: str, setting: str = "model.path") -> int:
    """One more than the largest token id of the folder's tokenizer.json, added tokens included."""
    return 1 + max(_tokens(path, setting))


def differing_token(path: str, other: str, setting: str) -> tuple[int, str | None, str | None] | None:
    """The first token id that does not stand for the same in the tokenizers of `path` and of `other`, which `setting`
    names: the id, and what it stands for in each. None where there is none, or `other` has no tokenizer."""
    if not (Path(other) / _TOKENIZER).exists():
        return None
    here, there = _tokens(path, "model.path"), _tokens(other, setting)
    first = min((token for token in here.keys() | there.keys() if here.get(token) != there.get(token)), default=None)
    return None if first is None else (first, here.get(first), there.get(first))


def _tokens(path: str, setting: str) -> dict[int, str]:
    """The text of each token id of the folder's tokenizer.json, added tokens included."""
    file = Path(path) / _TOKENIZER
    tokenizer = read_json(file, setting)
    vocabulary = (tokenizer.get("model") or {}).get("vocab") or {}
    if isinstance(vocabulary, dict):
        texts = {token: text for text, token in vocabulary.items()}
    else:
        texts = dict(enumerate(text for text, _ in vocabulary))
    texts |= {token["id"]: token["content"] for token in tokenizer.get("added_tokens") or []}
    if not texts:
        raise ConfigError(f"{setting}={path}: {file} has no tokens")
    return texts


def parameters(models: Mapping[str, str]) -> dict[str, float]:
    """Weights of each of these folders, as its files hold them. Raises ConfigError where one cannot be read."""
    return {
        name: float(sum(math.prod(shape) for shape in tensor_shapes(path, f"{name}'s path").values()))
        for name, path in models.items()
    }


def local_gpus() -> int:
    """GPUs this process may use, by the driver's device files and CUDA_VISIBLE_DEVICES; nvidia-smi where there are
    no such files."""
    count = (
        len([name for name in os.listdir("/dev") if re.fullmatch(r"nvidia\d+", name)]) if os.path.isdir("/dev") else 0
    )
    if not count and shutil.which("nvidia-smi"):
        try:
            listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=False)
            count = sum(line.startswith("GPU ") for line in listed.stdout.splitlines())
        except (OSError, subprocess.TimeoutExpired):
            count = 0
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return count
    return min(count, len([name for name in visible.split(",") if name.strip() not in ("", "-1", "NoDevFiles")]))


def tensor_shapes(path: str, setting: str = "model.path") -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of a Hugging Face folder, from the headers of its weight files."""
    return {name: tensor.shape for name, tensor in stored(path, setting).items()}

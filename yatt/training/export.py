"""A Hugging Face folder from a stream of weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from yatt.config.facts import HEADS, architecture_of
from yatt.config.schema import Config
from yatt.errors import BackendError
from yatt.models.table import scoring_of
from yatt.training.model import Head
from yatt.weights.shards import MODE, write_shards

ADAPTERS = "adapter_model.safetensors"
"""peft's name of the file of adapters."""
# Everything else in the model folder (config, tokenizer, templates, code) is copied.
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".index.json", ".gguf", ".h5", ".msgpack")


def write_folder(
    weights: Iterator[tuple[str, Tensor]], config: Config, path: str, *, writer: bool, head: Head = "tokens"
) -> None:
    """Exhaust `weights`; the writer puts them into `path` in safetensors files (see `write_shards`).

    The config and tokenizer are those of `model.path`, with the dtype of this run; with a value head, a sequence
    classifier's of one label. Raises BackendError where it cannot
    be written."""
    try:
        if writer:
            _write(weights, config, path, head)
    except (OSError, SafetensorError) as error:
        raise BackendError(f"model folder {path} could not be written: {error}") from error
    finally:
        # Whatever happened here, the other ranks are in the collectives of this stream.
        for _ in weights:
            pass


def _write(weights: Iterator[tuple[str, Tensor]], config: Config, path: str, head: Head) -> None:
    target, source = Path(path), Path(config.model.path)
    target.mkdir(parents=True, exist_ok=True)
    for file in sorted(source.iterdir()):
        if file.is_file() and not file.name.endswith(WEIGHTS):
            shutil.copyfile(file, target / file.name)
            (target / file.name).chmod(MODE)
    described = json.loads((target / "config.json").read_text())
    described.pop("torch_dtype", None)
    described["dtype"] = config.model.dtype
    if head == "value":
        described |= _classifier(described, source)
    (target / "config.json").write_text(json.dumps(described, indent=2) + "\n")
    write_shards(target, weights)


def write_adapters(weights: Iterator[tuple[str, Tensor]], config: Config, path: str, *, head: Head = "tokens") -> None:
    """Write what adapters (and a value head) have learnt, under peft's names, as a folder that
    `peft.PeftModel.from_pretrained` puts beside `model.path`. Raises BackendError where it cannot be written."""
    tensors = {f"base_model.model.{name}": tensor.cpu().contiguous() for name, tensor in weights}
    layers = [name.removesuffix(".lora_A.weight") for name in tensors if name.endswith(".lora_A.weight")]
    names = sorted({layer.rpartition(".")[2] for layer in layers})
    sees = any(".language_model." in layer for layer in layers)
    described = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if head == "tokens" else "SEQ_CLS",
        "base_model_name_or_path": str(Path(config.model.path).absolute()),
        "r": config.train.lora.rank,
        "lora_alpha": config.train.lora.alpha,
        # A vision tower may have layers of the same names.
        "target_modules": rf".*\.language_model\..*\.({'|'.join(names)})" if sees else names,
        "modules_to_save": ["score"] if head == "value" else None,
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
    }
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "adapter_config.json").write_text(json.dumps(described, indent=2) + "\n")
        save_file(tensors, folder / ADAPTERS, metadata={"format": "pt"})
        (folder / ADAPTERS).chmod(MODE)
    except (OSError, SafetensorError) as error:
        raise BackendError(f"adapter folder {path} could not be written: {error}") from error


def _classifier(described: Mapping[str, Any], source: Path) -> dict[str, Any]:
    """The fields of config.json that make a classifier with one label."""
    return {
        "architectures": [scoring_of(described["model_type"])],
        "id2label": {"0": "LABEL_0"},
        "label2id": {"LABEL_0": 0},
        "pad_token_id": pooled_padding(source),
    }


def pooled_padding(folder: Path) -> int | None:
    """The padding token of the classifier that is trained from `folder`: its score is read, as transformers does, at
    the last token that is not this one.

    A classifier keeps its own. A language model's has none where it would be the one that ends a response, and so takes
    one text at a time."""
    described = json.loads((folder / "config.json").read_text())
    own = described.get("pad_token_id")
    if own is not None and architecture_of(described).endswith(HEADS["classifier"]):
        return int(own)
    words = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    pad = words.pad_token_id if words.pad_token_id is not None else own
    return None if pad == words.eos_token_id else pad

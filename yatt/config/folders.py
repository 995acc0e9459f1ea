"""Whether every reader of a model folder sees one model: the trainer, the engine, and transformers, which sets it.

`mistakes` is the one place that refuses a folder for what it says. Those that read weights later read them alike
(`weight_files`), and refuse only what cannot be read.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from yatt.config.facts import HEADS, architecture_of
from yatt.config.weight_files import Stored, file_mistakes, read_json, same_bytes, stored, stored_in
from yatt.errors import ConfigError
from yatt.models.family import EMBEDDING, HEAD, tensors, tied
from yatt.models.fields import config_mistakes
from yatt.models.generic import embedding_rows, model_mistakes
from yatt.models.table import family_of
from yatt.models.vision import language, named, prefixes_of, vision_mistakes

FLOATS = ("F64", "F32", "F16", "BF16")
"""Numbers as safetensors names them. Others are codes, which mean something with their scales only."""
DERIVED = ("rotary_emb.inv_freq", "rotary_emb.cos_cached", "rotary_emb.sin_cached")
"""How names end of what older versions saved though it follows from the config: everybody passes over it."""
BESIDE = {
    "adapter_config.json": "an adapter, which transformers adds to the model where peft is installed; merge it",
    "hf_quant_config.json": "a quantization, which an engine obeys; use the model that was quantized",
}
"""Files that make another model of the folder for one of its readers."""


def mistakes(
    path: str, setting: str, *, weights: bool = True, judge: bool = False, any_family: bool = False
) -> list[str]:
    """One line for each reason why readers of the folder would not see one model that is trained here; with `weights`,
    of the weight files too. A judge is for the engine alone, which may read more than is trained. With
    `any_family` transformers trains the model as it reads it, and no table says which tensors there are.

    Raises ConfigError where the folder cannot be read, or is of no architecture that is known (`facts.model_facts`).
    """
    folder = Path(path)
    config = read_json(folder / "config.json", setting)
    architecture = architecture_of(config)
    family = family_of(architecture)
    tower = None if family is None else family.tower
    flat, reasons = language(config, tower), list[str]()
    if any_family and not judge:
        reasons += model_mistakes(config, architecture)
        reasons += _files(folder, setting, config) if weights else ()
        return [f"{setting}={path}: {one}" for one in reasons]
    if not judge and family is not None:
        reasons += config_mistakes(flat, family, architecture)
        reasons += vision_mistakes(config, tower) if tower is not None else ()
    if weights:
        reasons += _weights(folder, setting, flat, judge)
    return [f"{setting}={path}: {one}" for one in reasons]


def refuse(path: str, setting: str, *, weights: bool = True, any_family: bool = False) -> None:
    """Raises ConfigError with the `mistakes` there are."""
    reasons = mistakes(path, setting, weights=weights, any_family=any_family)
    if reasons:
        raise ConfigError("\n".join(reasons))


def _weights(folder: Path, setting: str, config: Mapping[str, Any], judge: bool) -> Iterator[str]:
    yield from file_mistakes(folder, setting)
    if not judge:
        yield from _other_models(folder)
    on_disk, architecture = stored(folder, setting), architecture_of(config)
    family = family_of(architecture)
    if family is None or (judge and config.get("quantization_config")):
        return
    prefixes = prefixes_of(on_disk, family.tower)
    expected = tensors(config, family, architecture, prefixes)
    embedding = named(EMBEDDING, prefixes)
    yield from _missing(on_disk, expected, config, embedding)
    if not judge:
        yield from _left_over(on_disk, expected, classifies=architecture == family.scoring)
        if tied(config, family) and architecture == family.causal:
            yield from _tied(folder, setting, on_disk, embedding)


def _other_models(folder: Path) -> Iterator[str]:
    for name, what in BESIDE.items():
        if (folder / name).exists():
            yield f"{name} is {what}"
    for file in sorted(folder.rglob("consolidated*.safetensors"))[:1]:
        yield f"an engine would read {file.relative_to(folder)} in place of the model; move it away"


def _files(folder: Path, setting: str, config: Mapping[str, Any]) -> Iterator[str]:
    """What can be told of weight files of which no table knows the tensors."""
    yield from file_mistakes(folder, setting)
    yield from _other_models(folder)
    on_disk = stored(folder, setting)
    yield from _codes(on_disk, on_disk)
    rows = embedding_rows({name: tensor.shape for name, tensor in on_disk.items()})
    if rows is not None and rows != config["vocab_size"]:
        yield f"its weights have {rows} embedding rows but vocab_size={config['vocab_size']}"
    if config.get("tie_word_embeddings") and not architecture_of(config).endswith(HEADS["classifier"]):
        yield from _tied(folder, setting, on_disk, EMBEDDING)


def _codes(on_disk: Mapping[str, Stored], expected: Collection[str]) -> Iterator[str]:
    codes = [name for name, tensor in on_disk.items() if name in expected and tensor.dtype not in FLOATS]
    if codes:
        dtype = on_disk[codes[0]].dtype
        yield f"{_first(codes)} is {dtype}, which is a code for a number; save the model in float32 or bfloat16"


def _missing(
    on_disk: Mapping[str, Stored], expected: Mapping[str, tuple[int, ...]], config: Mapping[str, Any], embedding: str
) -> Iterator[str]:
    absent = [name for name in expected if name not in on_disk]
    if absent:
        yield f"its weight files have no {_first(absent)}; save the model with save_pretrained"
    for name, shape in expected.items():
        if name not in on_disk or on_disk[name].shape == shape:
            continue
        if name == embedding and on_disk[name].shape[1:] == shape[1:]:
            yield f"its weights have {on_disk[name].shape[0]} embedding rows but vocab_size={config['vocab_size']}"
        else:
            yield f"{name} is {list(on_disk[name].shape)}, and config.json makes it {list(shape)}; mend config.json"
        return


def _left_over(
    on_disk: Mapping[str, Stored], expected: Mapping[str, tuple[int, ...]], *, classifies: bool
) -> Iterator[str]:
    """Tensors that would be lost, and those that are no numbers."""
    unknown = [name for name in on_disk if name not in expected and name != HEAD and not name.endswith(DERIVED)]
    if unknown:
        kind = "classifier" if classifies else "model"
        yield f"its weight files have {_first(unknown)}, which no {kind} of this architecture has; use another model"
    yield from _codes(on_disk, expected)


def _tied(folder: Path, setting: str, on_disk: Mapping[str, Stored], embedding: str) -> Iterator[str]:
    if HEAD in on_disk and embedding in on_disk and not same_bytes(HEAD, embedding, on_disk):
        yield f"config.json ties the embeddings, but {HEAD} is there and differs; set tie_word_embeddings to false"
    read = {tensor.file for tensor in on_disk.values()}
    for file in sorted(set(folder.glob("*.safetensors")) - read):
        # An engine looks for a head in every file there is, and unties the model where it finds one.
        if any(name.endswith(HEAD) for name in stored_in(file, setting)):
            yield f"config.json ties the embeddings, but {file.name} has a {HEAD}; move the file away"


def _first(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more tensors"

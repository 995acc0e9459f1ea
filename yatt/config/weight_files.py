"""Which safetensors files of a Hugging Face folder hold its model, and what is in them; read without torch.

As transformers reads them: `model.safetensors` where it is there, else the files that the index names. Never all there
are.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from yatt.errors import ConfigError

WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
CHUNK = 64 << 20


class Stored(NamedTuple):
    """A tensor of a file: its shape, and its dtype as safetensors names it, such as BF16."""

    shape: tuple[int, ...]
    dtype: str
    file: Path


def read_json(file: Path, setting: str) -> dict[str, Any]:
    """Raises ConfigError naming `setting` where the file of a model folder is missing, or holds no JSON object."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError:
        raise ConfigError(f"{setting}={file.parent}: it has no readable {file.name}") from None
    except ValueError as error:
        raise ConfigError(f"{setting}={file.parent}: {file.name} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{setting}={file.parent}: {file.name} is not a JSON object")
    return content


def weight_map(folder: Path, setting: str) -> dict[str, str]:
    """The index's tensor -> file, or nothing where there is no index. Raises ConfigError for one that names no file of
    the folder."""
    if not (folder / INDEX).is_file():
        return {}
    named = read_json(folder / INDEX, setting).get("weight_map")
    if not isinstance(named, dict) or not named:
        raise ConfigError(f"{setting}={folder}: the weight_map of {INDEX} names no weights; copy the folder again")
    for name in named.values():
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise ConfigError(f"{setting}={folder}: {INDEX} names {name}, which is no safetensors file of this folder")
    return named


def weight_files(folder: Path, setting: str) -> list[Path]:
    """The files that hold the model, in the order in which they are read. Raises ConfigError where one is missing."""
    if (folder / WHOLE).is_file():
        return [folder / WHOLE]
    files = [folder / name for name in sorted(set(weight_map(folder, setting).values()))]
    if not files:
        raise ConfigError(f"{setting}={folder}: no {WHOLE}; save the model with save_pretrained")
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise ConfigError(f"{setting}={folder}: weight file(s) missing: {', '.join(missing)}")
    return files


def stored_in(file: Path, setting: str) -> dict[str, Stored]:
    """The tensors of a file, from its header. Raises ConfigError where it is torn."""
    try:
        with safe_open(file, framework="np") as tensors:
            slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118
            return {name: Stored(tuple(one.get_shape()), one.get_dtype(), file) for name, one in slices.items()}
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{setting}={file.parent}: {file.name} cannot be read: {error}; copy it again") from None


def stored(path: str | Path, setting: str = "model.path") -> dict[str, Stored]:
    """Every tensor of a folder's model, by name. Raises ConfigError as `weight_files` and `stored_in` do."""
    tensors: dict[str, Stored] = {}
    for file in weight_files(Path(path), setting):
        tensors |= stored_in(file, setting)
    return tensors


def same_bytes(one: str, other: str, tensors: Mapping[str, Stored]) -> bool:
    """Whether two tensors are the same, to the bit."""
    if tensors[one][:2] != tensors[other][:2]:
        return False
    first, second = (_bytes(tensors[name].file, name) for name in (one, other))
    return all(np.array_equal(first[i : i + CHUNK], second[i : i + CHUNK]) for i in range(0, len(first), CHUNK))


def _bytes(file: Path, name: str) -> np.ndarray:
    """A tensor's bytes, mapped. A file begins with the length of its header in 8 bytes, then the header in JSON."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        start, stop = json.loads(opened.read(length))[name]["data_offsets"]
    return np.memmap(file, mode="r", offset=8 + length + start, shape=(stop - start,), dtype=np.uint8)


def file_mistakes(folder: Path, setting: str) -> Iterator[str]:
    """One line for each way in which two readers of these files would not see the same tensors."""
    files, named = weight_files(folder, setting), weight_map(folder, setting)
    by_file = {file.name: stored_in(file, setting) for file in files}
    yield from _index(by_file, named if files != [folder / WHOLE] else {})
    # An engine takes all files there are, less those that the index, where there is one, does not name.
    present = {file.name for file in folder.glob("*.safetensors")}
    engine = set(named.values()) or present
    if engine != set(by_file):
        yield (
            f"transformers reads {_some(sorted(by_file))} and an engine {_some(sorted(engine))}; "
            f"{'keep one of them' if named else 'move the others away'}"
        )


def _index(by_file: Mapping[str, Mapping[str, Stored]], named: Mapping[str, str]) -> Iterator[str]:
    seen: dict[str, str] = {}
    twice = {name for file in by_file.values() for name in file if sum(name in other for other in by_file.values()) > 1}
    if twice:
        where = [file for file, tensors in by_file.items() if min(twice) in tensors]
        yield f"{_some(sorted(twice))} is in {' and in '.join(where)}; keep one of them"
    for file, tensors in by_file.items():
        seen |= dict.fromkeys(tensors, file)
    if not named:
        return
    absent = sorted(name for name, file in named.items() if name not in by_file[file])
    if absent:
        file = named[absent[0]]
        yield f"{INDEX} says that {_some(absent)} is in {file}, which does not have it; copy the folder again"
    unnamed = sorted(seen.keys() - named.keys())
    if unnamed:
        yield f"{INDEX} does not name {_some(unnamed)}, which {seen[unnamed[0]]} has; write the index anew"


def _some(names: Sequence[str]) -> str:
    """The first name, and how many more there are."""
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"

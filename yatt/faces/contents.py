"""Digests of the folders and rows that a run reads: kept with a checkpoint, so that a run does not go on from it with
others under the same names."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import xxhash

from yatt.config.schema import Config
from yatt.data.rows import RowSource
from yatt.data.source import open_source
from yatt.errors import BadRow

PART, PARTS = 1 << 20, 16
"""Of a file of weights this many parts of so many bytes are looked at, evenly spread: it may be large."""
ROWS = 1000
"""Of the rows so many, evenly spread."""


def contents(config: Config) -> dict[str, str]:
    """By setting, what is there now, for every model and for the rows that a checkpoint depends on."""
    model, loads = config.model, config.algorithm.loads
    folders = {"model.path": model.path}
    folders |= {"critic.path": config.critic.path or model.path} if "critic" in loads else {}
    frozen = {"reference": model.reference, "teacher": model.teacher}
    folders |= {f"model.{name}": path for name, path in frozen.items() if path and name in loads}
    described = {setting: of_folder(Path(path)) for setting, path in folders.items()}
    rows = open_source(config.data, config.run.seed) if config.data.path is not None else None
    return described if rows is None else described | {"data.path": of_rows(rows)}


def of_folder(folder: Path) -> str:
    """Of a Hugging Face folder: its weights, sampled, and its tokenizer."""
    digest = xxhash.xxh3_64()
    for file in sorted((*folder.glob("*.safetensors"), *folder.glob("tokenizer.json"))):
        size = file.stat().st_size
        digest.update(f"{file.name} {size}\0".encode())
        with open(file, "rb") as source:
            for start in _spread(size, PARTS * PART, PART):
                source.seek(start)
                digest.update(source.read(PART))
    return digest.hexdigest()


def of_rows(source: RowSource) -> str:
    """How many rows there are, and what those looked at hold."""
    digest, count = xxhash.xxh3_64(), len(source)
    for index in _spread(count, ROWS, 1):
        try:
            row: Any = source.row(index)
        except BadRow as error:
            row = str(error)
        digest.update(json.dumps(row, default=_plain).encode() + b"\n")
    return f"{count} rows, {digest.hexdigest()}"


def _spread(size: int, most: int, step: int) -> Iterator[int]:
    """Where to look: everywhere in steps, or as often as fits into `most`, from the first to the last."""
    if size <= most:
        yield from range(0, size, step)
        return
    places = most // step
    yield from (round(place * (size - step) / (places - 1)) for place in range(places))


def _plain(value: Any) -> str:
    """Of what JSON does not have: bytes as they are, else only its kind."""
    return xxhash.xxh3_64(value).hexdigest() if isinstance(value, bytes) else type(value).__name__

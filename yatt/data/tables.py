"""Rows from Parquet files and from folders written by `datasets`; and compressed files unpacked."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow
import pyarrow.parquet
from datasets import Dataset, Value, load_from_disk

from yatt.data.values import without_nulls


class TableRows:
    """Rows of a table, counted from 1 in their origin as lines are. Images stay as they are stored, not decoded. A
    table has every field of a nested value in every row: those that hold null there are left out. A number of 32 bits
    or fewer has the digits that were written, not those that its value has in 64."""

    def __init__(self, table: Dataset, path: str) -> None:
        table = table.with_format(None)  # a folder keeps the format that rows were last shown in, and hides columns
        _leave_encoded(table.info.features)
        self._short = {
            name: np.dtype(feature.dtype).type
            for name, feature in table.features.items()
            if isinstance(feature, Value) and feature.dtype in ("float16", "float32")
        }
        self._table, self._path = table, path
        self._folder = path if os.path.isdir(path) else os.path.dirname(path)

    def __len__(self) -> int:
        return len(self._table)

    def row(self, index: int) -> dict[str, Any]:
        row = {name: without_nulls(value) for name, value in self._table[index].items()}
        for name, kind in self._short.items():
            if row[name] is not None:
                row[name] = float(str(kind(row[name])))
        return row

    def origin(self, index: int) -> str:
        return f"{self._path}:{index + 1}"

    def folder(self, index: int) -> str:
        return self._folder


def _leave_encoded(feature: Any) -> None:
    """Have images within a feature, at any depth, and whatever else would be decoded, given as they are stored."""
    if hasattr(feature, "decode_example") and hasattr(feature, "decode"):
        feature.decode = False
    elif isinstance(feature, dict):
        for inner in feature.values():
            _leave_encoded(inner)
    elif isinstance(feature, list):
        for inner in feature:
            _leave_encoded(inner)
    elif hasattr(feature, "feature"):
        _leave_encoded(feature.feature)


def open_parquet(path: str) -> TableRows:
    """A Parquet file, read into memory. Raises ValueError (pyarrow's) where it is torn."""
    return TableRows(Dataset(pyarrow.parquet.read_table(path)), path)


def open_dataset(path: str, suffixes: Sequence[str]) -> TableRows:
    """A folder of one split written by `save_to_disk`, memory-mapped. Raises ValueError otherwise, which names files of
    these suffixes."""
    if (Path(path) / "dataset_dict.json").exists():
        splits = sorted(child.name for child in Path(path).iterdir() if child.is_dir())
        raise ValueError(f"it has several splits; name one of {', '.join(f'{path}/{split}' for split in splits)}")
    if not (Path(path) / "state.json").exists():
        inside = sorted(file for file in Path(path).rglob("*") if file.is_file() and file.suffix.lower() in suffixes)
        # Where there are both, a `datasets` folder's own descriptions are JSON beside the files of rows.
        inside.sort(key=lambda file: file.suffix.lower() == ".json")
        pattern = f"{inside[0].parent}/*{inside[0].suffix}" if inside else f"{path}/*.jsonl"
        raise ValueError(f"it is a folder but none of `datasets`' save_to_disk; name files, such as {pattern}")
    return TableRows(load_from_disk(path), path)


def unpacked(path: str, packing: str) -> BinaryIO:
    """The contents of a compressed file, in a file without a name that goes when it is closed. Raises OSError where it
    is torn."""
    file = tempfile.TemporaryFile()  # noqa: SIM115 - its reader holds it as long as it lives
    with pyarrow.input_stream(path, compression=packing) as packed:
        shutil.copyfileobj(packed, file)
    file.seek(0)
    return file

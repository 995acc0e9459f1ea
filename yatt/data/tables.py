"""Rows from Parquet files and from folders written by `datasets`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet
from datasets import Dataset, Image, load_from_disk

from yatt.data.values import without_nulls


class TableRows:
    """Rows of a table, counted from 1 in their origin as lines are. Images stay as they are stored, not decoded. A
    table has every field of a nested value in every row: those that hold null there are left out."""

    def __init__(self, table: Dataset, path: str) -> None:
        for name, feature in table.features.items():
            if isinstance(feature, Image):
                table = table.cast_column(name, Image(decode=False))
        self._table, self._path = table, path

    def __len__(self) -> int:
        return len(self._table)

    def row(self, index: int) -> dict[str, Any]:
        return {name: without_nulls(value) for name, value in self._table[index].items()}

    def origin(self, index: int) -> str:
        return f"{self._path}:{index + 1}"


def open_parquet(path: str) -> TableRows:
    """A Parquet file, read into memory. Raises ValueError (pyarrow's) where it is torn."""
    return TableRows(Dataset(pyarrow.parquet.read_table(path)), path)


def open_dataset(path: str) -> TableRows:
    """A folder of one split written by `save_to_disk`, memory-mapped. Raises ValueError otherwise."""
    if (Path(path) / "dataset_dict.json").exists():
        splits = sorted(child.name for child in Path(path).iterdir() if child.is_dir())
        raise ValueError(f"it has several splits; name one of {', '.join(f'{path}/{split}' for split in splits)}")
    if not (Path(path) / "state.json").exists():
        raise ValueError(f"it is a folder but none of `datasets`' save_to_disk; name files, such as {path}/*.jsonl")
    return TableRows(load_from_disk(path), path)

"""Rows of text files that are not JSON Lines: CSV, and one JSON list."""

from __future__ import annotations

import csv
import json
import os
import sys
from array import array
from collections import Counter
from collections.abc import Iterator
from typing import Any, BinaryIO

from yatt.errors import BadRow

DELIMITERS = ",;\t"
WRAPPERS = ("data", "rows", "examples", "instances", "train")
"""Where an object that is a whole file may keep its list of rows."""
_BOM = b"\xef\xbb\xbf"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")

csv.field_size_limit(sys.maxsize)


class _Lines(Iterator[str]):
    """A file's lines as text, and how far they have been read."""

    def __init__(self, file: BinaryIO, position: int = 0) -> None:
        self._file, self.position, self.number = file, position, 0
        file.seek(position)

    def __next__(self) -> str:
        line = self._file.readline()
        if not line:
            raise StopIteration
        self.position += len(line)
        self.number += 1
        return line.decode("utf-8-sig" if self.position == len(line) else "utf-8", "surrogateescape")


class CsvRows:
    """A file of comma-separated values (or semicolons or tabs, where the first line has more of them) under a line of
    column names. Every value is text, an empty cell null. Holds where rows start, not what they say."""

    def __init__(self, file: BinaryIO, path: str, delimiter: str | None = None) -> None:
        """`file` is held open as long as the source lives; `path` names it. Raises ValueError for names that cannot be
        used."""
        self._file, self._path = file, path
        file.seek(0)
        first = file.readline()
        if first.startswith(_UTF16):
            raise ValueError("it is UTF-16 text; save it as UTF-8")
        self._delimiter = delimiter or max(DELIMITERS, key=first.decode("utf-8", "replace").count)
        self._starts, self._numbers = array("q"), array("q")
        self._columns: list[str] = []
        lines = _Lines(file)
        reader = csv.reader(lines, delimiter=self._delimiter, strict=True)
        while True:
            start, number = lines.position, lines.number + 1
            try:
                cells: list[str] | None = next(reader)
            except StopIteration:
                break
            except csv.Error:  # said when the row is read
                cells = None
            if not self._columns and cells is None:
                raise ValueError("its first line, the names of the columns, is no CSV")
            if cells == [] or (cells and not self._columns and not any(map(str.strip, cells))):
                continue
            if not self._columns:
                self._columns = _named(cells or [])
                continue
            self._starts.append(start)
            self._numbers.append(number)

    def __len__(self) -> int:
        return len(self._starts)

    def row(self, index: int) -> dict[str, Any]:
        lines = _Lines(self._file, self._starts[index])
        try:
            cells = next(csv.reader(lines, delimiter=self._delimiter, strict=True))
        except (csv.Error, StopIteration) as error:
            raise BadRow(f"not CSV: {error or 'the file has become shorter since it was opened'}") from None
        if not all(map(_is_text, cells)):
            raise BadRow("not UTF-8 text")
        if len(cells) != len(self._columns):
            raise BadRow(f"has {len(cells)} cells under {len(self._columns)} columns")
        return {name: cell or None for name, cell in zip(self._columns, cells, strict=True) if name}

    def origin(self, index: int) -> str:
        return f"{self._path}:{self._numbers[index]}"

    def folder(self, index: int) -> str:
        return os.path.dirname(self._path)


def _is_text(cell: str) -> bool:
    try:
        return cell.isascii() or bool(cell.encode())
    except UnicodeEncodeError:
        return False


def _named(cells: list[str]) -> list[str]:
    names = [cell.strip() for cell in cells]
    twice = [name for name, count in Counter(names).items() if name and count > 1]
    if twice:
        raise ValueError(f"two of its columns are called {twice[0]!r}")
    if not all(map(_is_text, names)):
        raise ValueError("its first line, the names of the columns, is not UTF-8 text")
    return names


class ListRows:
    """The objects of a JSON list, held in memory, and counted from 1 in their origin as lines are."""

    def __init__(self, items: list[Any], path: str) -> None:
        self._items, self._path = items, path

    def __len__(self) -> int:
        return len(self._items)

    def row(self, index: int) -> dict[str, Any]:
        item = self._items[index]
        if not isinstance(item, dict):
            raise BadRow(f"holds a {type(item).__name__}; each item must be a JSON object")
        return dict(item)

    def origin(self, index: int) -> str:
        return f"{self._path}:{index + 1}"

    def folder(self, index: int) -> str:
        return os.path.dirname(self._path)


def listed(file: BinaryIO, *, whole: bool) -> list[Any] | None:
    """The rows of a file that is one JSON list, or with `whole` one object around a list of objects; None where it is
    to be read line by line. Raises ValueError where, with `whole`, it can be neither."""
    file.seek(0)
    lines = (line.removeprefix(_BOM).strip() for line in file)
    first, second = (next(filter(None, lines), b"") for _ in range(2))
    if not first.startswith(b"[") and not (whole and first.startswith(b"{")):
        return None
    if first.startswith(b"{") and second and isinstance(_loaded(first), dict):
        return None  # an object per line
    file.seek(0)
    content = _loaded(file.read())
    if isinstance(content, ValueError) and whole:
        raise ValueError(f"not JSON: {content}")
    if isinstance(content, list):
        return content
    inside = [content[name] for name in WRAPPERS if _are_rows(content.get(name))] if isinstance(content, dict) else []
    if not inside and whole and second:
        raise ValueError(f"it is one object without a list of objects under {', '.join(map(repr, WRAPPERS))}")
    return list(inside[0]) if inside else None


def _are_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


def _loaded(text: bytes) -> Any:
    """The value of JSON text, or the ValueError that tells why it is none."""
    try:
        return json.loads(text.decode("utf-8-sig"))
    except RecursionError:
        return ValueError("it is nested too deep")
    except ValueError as error:
        return error

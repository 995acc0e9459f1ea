"""Rows of a dataset by number, each with the place it came from."""

from __future__ import annotations

import bisect
import glob
import json
import os
from array import array
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from yatt.data.formats import CsvRows, ListRows, listed
from yatt.data.values import DEEPEST, deeper
from yatt.errors import BadRow, DataError
from yatt.text import printable

Row = dict[str, Any]


class RowSource(Protocol):
    """Rows by number. Reading the same row twice gives the same."""

    def __len__(self) -> int: ...

    def row(self, index: int) -> Row:
        """Raises BadRow where the row cannot be read."""
        ...

    def origin(self, index: int) -> str:
        """Where the row stands, such as `train.jsonl:12`."""
        ...

    def folder(self, index: int) -> str:
        """Where the paths in the row start: at its file."""
        ...


class BadRows:
    """Counts the rows that cannot be used, and keeps the first few places, by reason."""

    KEPT = 5

    def __init__(self) -> None:
        self.count = 0
        self._places: dict[str, list[str]] = {}
        self._counts: Counter[str] = Counter()

    def add(self, origin: str, error: BadRow) -> None:
        reason = str(error)
        self.count += 1
        if reason not in self._places and len(self._places) == self.KEPT:
            return
        self._counts[reason] += 1
        places = self._places.setdefault(reason, [])
        if len(places) < self.KEPT:
            places.append(printable(origin))

    @property
    def reasons(self) -> list[str]:
        """The first different reasons, each with the place where it was first met, and others."""
        return [self._told(reason, *places) for reason, places in self._places.items()]

    def _told(self, reason: str, first: str, *others: str) -> str:
        more = self._counts[reason] - 1 - len(others)
        also = ", ".join(others) + (f" and {more} more" if more else "")
        return f"{first}: {reason}" + (f" (also {also})" if also else "")

    def failure(self, seen: int | None = None) -> DataError:
        """The error that says so, of `seen` rows looked at."""
        among = f" of {seen} looked at" if seen is not None else ""
        others = self.count - self._counts.total()
        listed = "; ".join(self.reasons) + (f"; and {others} more" if others else "")
        return DataError(f"{self.count} bad row(s){among}: {listed}. Mend them or set data.bad_rows=skip")


class JsonlRows:
    """A file of one JSON object per line, blank lines aside. Holds where lines start, not what they say."""

    def __init__(self, file: BinaryIO, path: str) -> None:
        """`file` is held open as long as the source lives; `path` names it."""
        self._file, self._path = file, path
        self._starts, self._lines = array("q"), array("q")
        position = 0
        file.seek(0)
        for number, line in enumerate(self._file, start=1):
            if line.strip():
                self._starts.append(position)
                self._lines.append(number)
            position += len(line)

    def __len__(self) -> int:
        return len(self._starts)

    def row(self, index: int) -> Row:
        self._file.seek(self._starts[index])
        line = self._file.readline()
        if not line:
            raise BadRow("is gone: the file has become shorter since it was opened")
        try:
            row = json.loads(line.decode("utf-8-sig"))
        except UnicodeDecodeError:
            raise BadRow("not UTF-8 text") from None
        except RecursionError:
            raise BadRow(f"not readable: it is nested deeper than {DEEPEST} levels") from None
        except ValueError as error:
            raise BadRow(f"not JSON: {error}") from None
        if not isinstance(row, dict):
            raise BadRow(f"holds a {type(row).__name__}; each line must be a JSON object")
        if line.count(b"[") + line.count(b"{") > DEEPEST and deeper(row, DEEPEST):
            raise BadRow(f"not readable: it is nested deeper than {DEEPEST} levels")
        return row

    def origin(self, index: int) -> str:
        return f"{self._path}:{self._lines[index]}"

    def folder(self, index: int) -> str:
        return os.path.dirname(self._path)


class JoinedRows:
    """Sources end to end."""

    def __init__(self, parts: Sequence[RowSource]) -> None:
        self._parts = parts
        self._ends: list[int] = []
        for part in parts:
            self._ends.append((self._ends[-1] if self._ends else 0) + len(part))

    def __len__(self) -> int:
        return self._ends[-1]

    def _find(self, index: int) -> tuple[RowSource, int]:
        part = bisect.bisect_right(self._ends, index)
        return self._parts[part], index - (self._ends[part - 1] if part else 0)

    def row(self, index: int) -> Row:
        part, inner = self._find(index)
        return part.row(inner)

    def origin(self, index: int) -> str:
        part, inner = self._find(index)
        return part.origin(inner)

    def folder(self, index: int) -> str:
        part, inner = self._find(index)
        return part.folder(inner)


class FirstRows:
    """The first `size` rows of a source, or all where it has fewer."""

    def __init__(self, source: RowSource, size: int) -> None:
        self._source, self._size = source, min(size, len(source))
        self.row, self.origin, self.folder = source.row, source.origin, source.folder

    def __len__(self) -> int:
        return self._size


PACKED = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
"""Suffixes of compressed files, and what pyarrow calls them."""
TEXTS = (".jsonl", ".json", ".csv", ".tsv")
FORMATS = "use .jsonl, .json, .csv or .tsv (also with .gz, .zst or .bz2), .parquet or a `datasets` folder"


def open_files(path: str | Sequence[str], setting: str) -> RowSource:
    """The rows of files and `datasets` folders, in the order named; a pattern's files sorted by name.

    Raises DataError naming `setting` where a file is missing, of another format, or nothing is in them.
    """
    parts = [
        _open_file(file, setting) for name in ([path] if isinstance(path, str) else path) for file in _expand(name)
    ]
    source = parts[0] if len(parts) == 1 else JoinedRows(parts) if parts else None
    if source is None or not len(source):
        raise DataError(f"{setting}={path!r} holds no rows; it needs at least one")
    return source


def _expand(name: str) -> list[str]:
    if os.path.exists(name):
        return [name]
    return sorted(glob.glob(name, recursive=True)) or [name]


def _open_file(path: str, setting: str) -> RowSource:
    packing = PACKED.get(Path(path).suffix.lower())
    suffix = Path(path).with_suffix("").suffix.lower() if packing else Path(path).suffix.lower()
    if not os.path.exists(path):
        raise DataError(f"{setting}={path!r}: no such file or folder")
    try:
        if os.path.isdir(path) or packing or suffix == ".parquet":
            # pyarrow and datasets take a second to import; a run on plain text or tasks never needs them.
            from yatt.data.tables import open_dataset, open_parquet, unpacked  # noqa: PLC0415

            if os.path.isdir(path):
                return open_dataset(path, (*TEXTS, *PACKED, ".parquet"))
            if suffix in TEXTS and packing:
                return _open_text(unpacked(path, packing), path, suffix)
            if suffix == ".parquet" and not packing:
                return open_parquet(path)
        if suffix in TEXTS and not packing:
            return _open_text(open(path, "rb"), path, suffix)
    except (OSError, ValueError) as error:
        raise DataError(f"{setting}={path!r} cannot be read: {str(error).splitlines()[0]}") from None
    raise DataError(f"{setting}={path!r} has no known format; {FORMATS}")


def _open_text(file: BinaryIO, path: str, suffix: str) -> RowSource:
    """The rows of a text file; of JSON what is in it says whether it is one list or one object per line."""
    if suffix in (".csv", ".tsv"):
        return CsvRows(file, path, "\t" if suffix == ".tsv" else None)
    items = listed(file, whole=suffix == ".json")
    return JsonlRows(file, path) if items is None else ListRows(items, path)

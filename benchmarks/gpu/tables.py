"""Rows of several tables, printed as they come: a line of names wherever they change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TextIO

WIDTH = 12


class Tables:
    """Prints to a stream, or nothing where it is None."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self._names: tuple[str, ...] = ()

    def say(self, line: str) -> None:
        if self._stream is not None:
            print(line, file=self._stream, flush=True)

    def row(self, row: Mapping[str, Any]) -> None:
        """`table` and the other names make the heading."""
        names = tuple(row)
        if names != self._names:
            self._names = names
            self.say("  ".join(f"{name:>{_width(name)}}" for name in names))
        self.say("  ".join(f"{_cell(row[name]):>{_width(name)}}" for name in names))


def _width(name: str) -> int:
    return max(WIDTH, len(name))


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "NO"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return "" if value is None else str(value)

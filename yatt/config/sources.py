"""Where held-out rows come from: the values of the column `evaluate.by`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from difflib import get_close_matches
from typing import Any

from yatt.config.columns import find_column
from yatt.errors import ConfigError
from yatt.text import printable

MOST_SOURCES = 50
NO_SOURCE = "(none)"
"""Stands for the source of a row without one."""


def source_of(metadata: Mapping[str, Any], by: str) -> str:
    value = find_column(metadata, by)
    return NO_SOURCE if value in (None, "") else printable(str(value))


def check_few(by: str, sources: Collection[str]) -> None:
    """Raises ConfigError where there are too many to tell apart."""
    if len(sources) > MOST_SOURCES:
        raise ConfigError(
            f"evaluate.by={by} has more than {MOST_SOURCES} values, such as {', '.join(sorted(sources)[:3])}; name a "
            "column that says where a row comes from"
        )


def check_any(by: str, sources: Collection[str], columns: Collection[str] = ()) -> None:
    """Raises ConfigError where no row has one. `columns` are those that rows have."""
    if set(sources) == {NO_SOURCE}:
        near = get_close_matches(by, columns, n=1)
        has = f" ({', '.join(columns)})" if columns else ""
        advice = f"did you mean {near[0]}?" if near else "see data.metadata_keys"
        raise ConfigError(f"evaluate.by={by}: no held-out row has this column among its metadata{has}; {advice}")

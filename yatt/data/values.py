"""Values of a row, as JSON has them: nested dicts and lists."""

from __future__ import annotations

from typing import Any

DEEPEST = 100
"""Levels of nesting that a row may have: more would reach the limits of those it is handed to."""


def without_nulls(value: Any) -> Any:
    """The same value without the fields of dicts, at any depth, that hold null."""
    if isinstance(value, dict):
        return {key: without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [without_nulls(inner) for inner in value] if isinstance(value, list) else value


def deeper(value: Any, levels: int) -> bool:
    """Whether a value is nested deeper than that."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels < 0 or any(deeper(one, levels - 1) for one in inner)

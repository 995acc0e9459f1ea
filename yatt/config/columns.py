"""How a setting names a column: `answer`, or a field within one, `reward_model.ground_truth`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

ABSENT: Any = object()
"""Stands for a column that a row has not."""


def find_column(row: Any, name: str, default: Any = None) -> Any:
    """The value of a row's column. A dot leads into a column's dict, or to an item of its list (`answers.0`); a column
    whose own name has the dot comes first. JSON text is read where a dot leads into it."""
    if isinstance(row, Mapping) and name in row:
        return row[name]
    parts = name.split(".")
    for size in range(len(parts) - 1, 0, -1):
        inner = _step(row, ".".join(parts[:size]))
        value = ABSENT if inner is ABSENT else find_column(_opened(inner), ".".join(parts[size:]), ABSENT)
        if value is not ABSENT:
            return value
    item = _step(row, name)
    return default if item is ABSENT else item


def _step(value: Any, name: str) -> Any:
    if isinstance(value, Mapping):
        return value.get(name, ABSENT)
    if isinstance(value, Sequence) and not isinstance(value, str | bytes) and name.isdecimal() and name.isascii():
        return value[int(name)] if int(name) < len(value) else ABSENT
    return ABSENT


def _opened(value: Any) -> Any:
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value

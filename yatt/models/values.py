"""Values of a config.json, checked and shown."""

from __future__ import annotations

import json
from typing import Any


def number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def shown(name: str, value: Any) -> str:
    """As in JSON, cut where it is long."""
    text = json.dumps(value)
    return f"{name}={text if len(text) <= 60 else text[:57] + '...'}"

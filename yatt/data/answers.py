"""A row's answer as the text that rewards compare with."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import numpy as np

from yatt.errors import BadRow


def answer_text(value: Any, key: str, after: str | None = None) -> str | None:
    """The answer as text, None where the row has none. `after` is the mark behind whose last place it stands.

    A number is written without an exponent, a whole one without a point: a column of integers becomes one of floats
    where a row has none. Raises BadRow for what is no finite number, text, true or false, or lacks the mark.
    """
    if isinstance(value, np.generic):
        value = float(str(value)) if isinstance(value, np.floating) else value.item()  # a float32 keeps its digits
    if value is None:
        return None
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, int | float | Decimal):
        return _number(value, key)
    if not isinstance(value, str):
        raise BadRow(f"column {key!r} holds a {type(value).__name__}; it must be text or a number{_inside(value, key)}")
    return value if after is None else _behind(value, key, after)


def _number(value: int | float | Decimal, key: str) -> str:
    if not (isinstance(value, int) or Decimal(value).is_finite()):
        raise BadRow(f"column {key!r} holds {value}; an answer is text or a finite number; give null for none")
    if value == 0:
        return "0"  # not -0
    text = format(Decimal(value if isinstance(value, int) else str(value)), "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def _inside(value: Any, key: str) -> str:
    """How to name a part of it."""
    names = list(value) if isinstance(value, dict) else ["0"] if isinstance(value, list | tuple) and value else []
    return f"; name a part of it, as in data.answer_key={key}.{names[0]}" if names else ""


def _behind(text: str, key: str, mark: str) -> str:
    _, seen, answer = text.rpartition(mark)
    if not seen or not answer.strip():
        raise BadRow(f"column {key!r} has nothing behind {mark!r}; see data.answer_after")
    return answer.strip()

"""How many bytes of data, as opposed to numbers about data, are in a message to the driver."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np

NUMBERS = 256
"""A sequence of plain numbers up to this long is a statistic; a longer one is data."""


def payload_bytes(message: Any) -> int:
    """Bytes of arrays, tensors, byte strings, long number sequences and long texts anywhere in `message`."""
    if isinstance(message, np.ndarray):
        return message.nbytes
    if hasattr(message, "element_size"):
        return int(message.element_size() * message.nelement())
    if isinstance(message, bytes | bytearray | memoryview):
        return len(message)
    if isinstance(message, str):
        return len(message) if len(message) > 4096 else 0
    if is_dataclass(message):
        return sum(payload_bytes(getattr(message, f.name)) for f in fields(message))
    if isinstance(message, Mapping):
        return sum(payload_bytes(value) for value in message.values())
    if isinstance(message, list | tuple | set | frozenset):
        plain = sum(isinstance(item, int | float) for item in message)
        return (8 * plain if plain > NUMBERS else 0) + sum(payload_bytes(item) for item in message)
    return 0

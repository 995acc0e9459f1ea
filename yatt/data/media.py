"""A prompt's images as bytes: read from a file, from base64 text, or from the row itself."""

from __future__ import annotations

import base64
import binascii
import os
from typing import Any

import numpy as np

from yatt.errors import BadRow

FORMS = "a path, data:...;base64,... text, bytes, or a list of these"


def read_media(value: Any, column: str) -> list[np.ndarray]:
    """The images of one row, each [N] uint8; none where the column is empty. A file is mapped, not copied.

    An image is a path from the working directory, text like "data:image/png;base64,iVBO...", bytes, or a dict with
    "bytes" or "path", as `datasets` keeps images. Raises BadRow naming the column where one cannot be read.
    """
    if value is None:
        return []
    return [_image(one, column) for one in (value if isinstance(value, list | tuple) else [value])]


def _image(value: Any, column: str) -> np.ndarray:
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, str):
        image = _decoded(value, column) if value.startswith("data:") else _mapped(value, column)
    elif isinstance(value, bytes):
        image = np.frombuffer(value, dtype=np.uint8)
    else:
        raise BadRow(f"column {column!r} holds a {type(value).__name__} for an image; it must be {FORMS}")
    if not len(image):
        raise BadRow(f"column {column!r}: the image is empty; give one, or null")
    return image


def _mapped(path: str, column: str) -> np.ndarray:
    try:
        return np.asarray(np.memmap(path, dtype=np.uint8, mode="r")) if os.path.getsize(path) else np.empty(0, np.uint8)
    except OSError as error:
        raise BadRow(f"column {column!r}: image {path!r:.200}: {error.strerror}, from {os.getcwd()}") from None


def _decoded(text: str, column: str) -> np.ndarray:
    head, _, body = text.partition(",")
    try:
        if not head.endswith(";base64"):
            raise ValueError("no ';base64,' after it")
        return np.frombuffer(base64.b64decode(body, validate=True), dtype=np.uint8)
    except (binascii.Error, ValueError) as error:
        raise BadRow(f"column {column!r}: {head[:40]!r} begins no base64 text: {error}; encode it anew") from None

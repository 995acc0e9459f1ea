"""A row's images as bytes: read from files, from base64 text, from the row itself, or, where that is allowed, from the
network."""

from __future__ import annotations

import base64
import binascii
import json
import os
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np

from yatt.errors import BadRow

FORMS = "a path, data:...;base64,... text, bytes, or a list of these"
MOST_BYTES = 128 << 20
"""An image file that is larger is refused."""
_NETWORK = ("http://", "https://")
_SOURCES = ("bytes", "path", "url", "base64", "data")
"""Where a dict may have an image, the first that holds something."""

Fetch = Callable[[str], bytes]


def listed_media(value: Any) -> list[Any]:
    """The images that a column holds, as they stand there. A file of text has a list as JSON."""
    if isinstance(value, str) and value.lstrip().startswith(("[", '{"')):
        try:
            value = json.loads(value)
        except ValueError:  # a path may begin so
            return [value]
    if value is None or isinstance(value, list | tuple):
        return [one for one in value or () if one is not None]
    return [value]


def read_image(value: Any, where: str, folder: str = "", fetch: Fetch | None = None) -> np.ndarray:
    """The bytes [N] uint8 of an image. A file is mapped, not copied.

    An image is a path from `folder` or a file:// address, text like "data:image/png;base64,iVBO...", bytes, or a dict
    with one of these, as `datasets` and messages have images; with `fetch`, an address of the network too. Raises
    BadRow, which begins with `where`, where it cannot be read."""
    while isinstance(value, Mapping):
        name = next((name for name in _SOURCES if value.get(name)), None)
        value = None if name is None else value[name]
        if name in ("base64", "data") and isinstance(value, str) and not value.startswith("data:"):
            value = f"data:;base64,{value}"
    if isinstance(value, str):
        image = _named(value, where, folder, fetch)
    elif isinstance(value, bytes | bytearray | memoryview):
        image = np.frombuffer(value, dtype=np.uint8)
    else:
        raise BadRow(f"{where} holds a {type(value).__name__} for an image; it must be {FORMS}")
    if not len(image):
        raise BadRow(f"{where}: the image is empty; give one, or null")
    if len(image) > MOST_BYTES:
        raise BadRow(f"{where}: the image has {len(image)} bytes; the most is {MOST_BYTES}")
    return image


def holds_image(value: Any) -> bool:
    """Whether a part of a message brings an image, or is a place for one of the row's column."""
    return not isinstance(value, Mapping) or any(value.get(name) is not None for name in _SOURCES)


def is_remote(value: Any) -> bool:
    """Whether an image is on the network."""
    while isinstance(value, Mapping):
        value = next((value[name] for name in _SOURCES if value.get(name)), None)
    return isinstance(value, str) and value.lower().startswith(_NETWORK)


def _named(text: str, where: str, folder: str, fetch: Fetch | None) -> np.ndarray:
    if text.startswith("data:"):
        return _decoded(text, where)
    if is_remote(text):
        if fetch is None:
            raise BadRow(
                f"{where}: image {text!r:.200} is on the network; store it beside the data, or set "
                "data.fetch_images=true"
            )
        return np.frombuffer(fetch(text), dtype=np.uint8)
    if text.lower().startswith("file:"):
        text = unquote(urlsplit(text).path)
    return _mapped(os.path.join(folder, os.path.expanduser(text)), where)


def _mapped(path: str, where: str) -> np.ndarray:
    try:
        return np.asarray(np.memmap(path, dtype=np.uint8, mode="r")) if os.path.getsize(path) else np.empty(0, np.uint8)
    except OSError as error:
        start = "" if os.path.isabs(path) else f", from {os.getcwd()}"
        raise BadRow(f"{where}: image {path!r:.200}: {error.strerror}{start}") from None
    except ValueError as error:  # a path with a null byte
        raise BadRow(f"{where}: image {path!r:.200}: {error}") from None


def _decoded(text: str, where: str) -> np.ndarray:
    head, _, body = text.partition(",")
    try:
        if not head.endswith(";base64"):
            raise ValueError("no ';base64,' after it")
        return np.frombuffer(base64.b64decode("".join(body.split()), validate=True), dtype=np.uint8)
    except (binascii.Error, ValueError) as error:
        raise BadRow(f"{where}: {head[:40]!r} begins no base64 text: {error}; encode it anew") from None

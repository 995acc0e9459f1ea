"""Positions of a sequence with images: three per token (time, row, column), as transformers' get_rope_index."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from yatt.types import Media


def positions(length: int, images: Iterable[Media], merge: int) -> np.ndarray:
    """Positions [3, length] of a sequence with these images, int64: of text, three times the same number, one more than
    the largest before it; of an image's tokens, where they lie in it, counted from there."""
    result = np.empty((3, length), np.int64)
    at = following = 0
    for image in sorted(images, key=lambda one: one.start):
        text = image.start - at
        result[:, at : image.start] = following + np.arange(text)
        following += text
        times, rows, columns = image.patches[0], image.patches[1] // merge, image.patches[2] // merge
        at = image.start + image.tokens
        result[:, image.start : at] = following + np.indices((times, rows, columns)).reshape(3, -1)
        following += max(times, rows, columns)
    result[:, at:] = following + np.arange(length - at)
    return result

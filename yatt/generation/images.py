"""The images of an engine's requests: read on a thread of their own, since a large one takes as long as several decode
steps, and once each for all requests that have it."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from weakref import WeakValueDictionary

import numpy as np

from yatt.errors import BackendError
from yatt.generation.engine import Image
from yatt.text import one_line
from yatt.types import Media
from yatt.vision.images import ImageReader

KEPT_BYTES = 256 << 20
"""Patches that are kept for requests still to come; those of requests under way are there in any case."""


class ImageQueue:
    """Makes the patches of images with the reader of a model's folder."""

    def __init__(self, folder: str, kept_bytes: int = KEPT_BYTES) -> None:
        """Raises ConfigError where the folder has no image processor."""
        self._reader = ImageReader(folder)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="images")
        # What follows is touched on that thread only.
        self._used: WeakValueDictionary[str, np.ndarray] = WeakValueDictionary()
        self._kept: OrderedDict[str, np.ndarray] = OrderedDict()
        self._kept_bytes = 0
        self._most_bytes = kept_bytes
        self.read = 0

    def ask(self, images: Sequence[Media], tell: Callable[[Future[list[Image]]], object]) -> None:
        """Have the patches of these images made, in their order; `tell` is called on a thread of this queue's once they
        are there, or it is known that one cannot be read: a BackendError. Returns at once."""
        self._thread.submit(self._all, images).add_done_callback(tell)

    def close(self) -> None:
        """Read nothing more; waits for an image that is being read."""
        self._thread.shutdown(cancel_futures=True)

    def _all(self, images: Sequence[Media]) -> list[Image]:
        return [Image(media, self._patches(number, media)) for number, media in enumerate(images, 1)]

    def _patches(self, number: int, media: Media) -> np.ndarray:
        patches = self._used.get(media.digest)
        if patches is None:
            try:
                patches = self._reader.read(media.handle, media.patches)
            except Exception as error:  # decoders raise whatever they like
                raise BackendError(f"image {number} cannot be read: {one_line(error)}") from error
            self.read += 1
            self._used[media.digest] = patches
        self._check(number, media, patches)
        self._keep(media.digest, patches)
        return patches

    def _check(self, number: int, media: Media, patches: np.ndarray) -> None:
        """What is said of an image must agree with itself: an engine would put its embeddings elsewhere."""
        if len(patches) != math.prod(media.patches) or media.tokens != self._reader.tokens(media.patches):
            raise BackendError(
                f"image {number} has {len(patches)} patches, but is said to have {' x '.join(map(str, media.patches))} "
                f"and to take {media.tokens} tokens"
            )

    def _keep(self, digest: str, patches: np.ndarray) -> None:
        if self._kept.pop(digest, None) is None:
            self._kept_bytes += patches.nbytes
        self._kept[digest] = patches
        while self._kept_bytes > self._most_bytes:
            self._kept_bytes -= self._kept.popitem(last=False)[1].nbytes

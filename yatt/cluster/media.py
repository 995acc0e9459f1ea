"""Images in Ray's object store: shared memory of the node, one copy whatever the number of readers.

An object of the store costs as much as the bytes of a large image: 2 to 3 ms of CPU over all processes, whatever its
size (`python -m benchmarks.datapath`). So images drawn one after another are one object, a parcel.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import ray
from ray import ObjectRef

from yatt.types import Media

PARCEL_BYTES = 8 << 20
"""A parcel that holds as many bytes is full. It is also what a single image may keep in the store for longer than it
is needed, and the memory that images take in the controller before they are sent."""


class Parcel:
    """Images that are one object, put into the store when the parcel is full or the first of them is sent."""

    def __init__(self) -> None:
        self._images: list[np.ndarray] = []
        self.nbytes = 0
        self.ref: ObjectRef[Any] | None = None

    def put(self) -> ObjectRef[Any]:
        if self.ref is None:
            self.ref, self._images = ray.put(self._images), []
        return self.ref

    def add(self, image: np.ndarray) -> ImageHandle:
        self._images.append(image)
        self.nbytes += image.nbytes
        return ImageHandle(self, len(self._images) - 1)


class ImageHandle(NamedTuple):
    """The handle of an image in the controller that holds it: the parcel, and which of its images."""

    parcel: Parcel
    number: int


class RayMediaStore:
    """`MediaStore` of one controller. A parcel is freed when neither the controller nor a message names one of its
    images. Where the run is on several nodes (`together` is False), each prompt has a parcel of its own: a node opens
    whole objects, and would be sent images that nobody there needs."""

    def __init__(self, together: bool) -> None:
        self._capacity = PARCEL_BYTES if together else 0
        self._last: weakref.ref[Parcel] | None = None

    def hold(self, images: Sequence[Media]) -> tuple[Media, ...]:
        if not images:
            return ()
        parcel = self._last() if self._last else None
        if parcel is None or parcel.ref is not None:
            parcel = Parcel()
            self._last = weakref.ref(parcel)
        media = tuple(replace(image, handle=parcel.add(image.handle)) for image in images)
        if parcel.nbytes >= self._capacity:
            parcel.put()
        return media


def address(handles: Sequence[ImageHandle]) -> tuple[Any, ...]:
    """The arguments that carry these images: of each, its parcel and its number there; then the parcels, which Ray
    hands over opened."""
    parcels = {id(handle.parcel): handle.parcel for handle in handles}
    positions = {name: position for position, name in enumerate(parcels)}
    places = [(positions[id(handle.parcel)], handle.number) for handle in handles]
    return (places, *(parcel.put() for parcel in parcels.values())) if handles else ()


def opened(message: Sequence[Any]) -> list[np.ndarray]:
    """The images of what `address` gave, as arrays that lie where the store has them."""
    places, *parcels = message or [[]]
    return [parcels[parcel][index] for parcel, index in places]

"""Moves a model's memory from its device to the host while others work there."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

Tensors = Callable[[], Iterable[Tensor]]


# Of glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEPT_BYTES = 2**31 - 1


def keep_freed_memory() -> None:
    """Let this process keep the memory of tensors that it frees, for the next ones.

    The C library gives that of each large tensor back at once, and the system then clears every page anew at its first
    use, which takes longer than what is done with it. Nothing happens where the library is not glibc."""
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        mallopt(M_MMAP_THRESHOLD, KEPT_BYTES)
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)


def release_freed_memory() -> None:
    """Give back what `keep_freed_memory` has kept. Nothing happens where the C library is not glibc."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)


class Shelf:
    """Moves tensors out of the device's memory and back, in place: references to one, or to a view of it, stay valid.

    `kept` are copied to the host and back, `scratch` come back as zeros. Both are asked for when they are to go, so
    that none is missed that has been made since.
    """

    def __init__(self, kept: Tensors, scratch: Tensors = lambda: ()) -> None:
        self._kept, self._scratch = kept, scratch
        self._away: list[tuple[torch.UntypedStorage, torch.UntypedStorage | None, int]] = []

    def put_away(self) -> int:
        """Free the device's memory; returns the bytes freed, 0 where they are away already."""
        if self._away:
            return 0
        kept, scratch = _storages(self._kept()), _storages(self._scratch())
        self._away = [(storage, _copy(storage), storage.nbytes()) for storage in kept.values()]
        self._away += [(storage, None, storage.nbytes()) for key, storage in scratch.items() if key not in kept]
        for storage, _, _ in self._away:
            storage.resize_(0)
        return sum(nbytes for _, _, nbytes in self._away)

    def take_back(self) -> int:
        """Undo `put_away`; returns the bytes taken."""
        away, self._away = self._away, []
        for storage, copy, nbytes in away:
            storage.resize_(nbytes)
            if copy is not None:
                storage.copy_(copy)
            else:
                torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage).zero_()
        return sum(nbytes for _, _, nbytes in away)


class Resident:
    """Something that lies on the device. `moves` says whether it lies there only while it is at work."""

    shelf: Shelf
    moves: bool

    @contextmanager
    def aboard(self) -> Iterator[None]:
        """On the device meanwhile; where it moves, only meanwhile."""
        self.take_back()
        try:
            yield
        finally:
            if self.moves:
                self.put_away()

    def put_away(self) -> None:
        """Leave the device's memory to others."""
        self.shelf.put_away()

    def take_back(self) -> None:
        """Undo `put_away`."""
        self.shelf.take_back()


def _copy(storage: torch.UntypedStorage) -> torch.UntypedStorage:
    copy: torch.UntypedStorage = storage.clone() if storage.device.type == "cpu" else storage.cpu()
    return copy


def _storages(tensors: Iterable[Tensor]) -> dict[int, torch.UntypedStorage]:
    """Each storage once, by its address."""
    every = (tensor.untyped_storage() for tensor in tensors)
    return {storage.data_ptr(): storage for storage in every if storage.nbytes()}

"""Tensors as they were at one moment, while a thread writes them and their owner goes on.

Nothing is copied at that moment. Who is about to change the tensors says so: what has not been written by then is
copied first, up to a limit of memory, and the rest waited for.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

PIECE_BYTES = 8 << 20


class Snapshot:
    """Contiguous tensors, to be written in their order. `limit` is how many bytes of copies there are at most."""

    def __init__(self, tensors: Sequence[Tensor], limit: int | None = None) -> None:
        self._pieces = [piece for tensor in tensors for piece in _pieces(tensor)]
        self._limit = limit
        self._copies: dict[int, Tensor] = {}
        self._copied_bytes = 0
        self._at = 0  # all before it are written
        self._changed = threading.Condition()
        self._secured = self._over = False

    def taken(self) -> Iterator[memoryview]:
        """The bytes of all tensors, piece by piece; each is used until the next one is asked for."""
        try:
            for index, piece in enumerate(self._pieces):
                with self._changed:
                    data = self._copies.get(index, piece)
                yield data.cpu().numpy().data
                with self._changed:
                    if (copy := self._copies.pop(index, None)) is not None:
                        self._copied_bytes -= copy.nbytes
                    self._at = index + 1
                    self._changed.notify_all()
        finally:
            self.forget()

    def forget(self) -> None:
        """Nothing more is written: the tensors are free, and so are the copies."""
        with self._changed:
            self._over = True
            self._copies.clear()
            self._changed.notify_all()

    def secure(self) -> None:
        """Return once the tensors may change: what is not written yet is copied, from the last piece on, and beyond the
        limit waited for."""
        for index in reversed(range(0 if self._secured else len(self._pieces))):
            piece = self._pieces[index]
            with self._changed:
                if self._over or index < self._at:
                    break
                # The one at work is read from where it lies, and so are all for whose copies there is no room.
                if index == self._at or not self._room(piece):
                    self._wait(index)
                    break
            copy = piece.to("cpu", copy=True)
            with self._changed:
                if index <= self._at:
                    self._wait(index)
                    break
                self._copies[index] = copy
                self._copied_bytes += copy.nbytes
        self._secured = True

    def _room(self, piece: Tensor) -> bool:
        return self._limit is None or self._copied_bytes + piece.nbytes <= self._limit

    def _wait(self, index: int) -> None:
        """Until this piece is written, and so all before it."""
        self._changed.wait_for(lambda: self._over or self._at > index)


def _pieces(tensor: Tensor) -> Sequence[Tensor]:
    """The tensor's bytes, cut; views of its memory."""
    pieces: Sequence[Tensor] = tensor.detach().view(-1).view(torch.uint8).split(PIECE_BYTES)
    return pieces

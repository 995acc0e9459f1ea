"""The generators of a run, seen from one controller, and which of them are still there."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Protocol, TypeVar

import numpy as np

from yatt.errors import ProcessDied
from yatt.protocols import Generator

R = TypeVar("R")
log = logging.getLogger(__name__)


class PlacedGenerator(Generator, Protocol):
    """A generator that knows which slots it occupies and on which node it runs."""

    slots: tuple[int, ...]
    node: str


class Fleet:
    """The generators of one role by number. One that dies is lost for the rest of the run, and the others take over its
    work. `awake` [generators] are those that sample, or soon will, as the leader last announced it. `lost` is the
    death of the last one, where none is left."""

    def __init__(self, generators: Sequence[PlacedGenerator]) -> None:
        self.generators = tuple(generators)
        self.up = np.ones(len(generators), dtype=bool)
        self.awake = np.ones(len(generators), dtype=bool)
        self.lost: ProcessDied | None = None

    def __len__(self) -> int:
        return len(self.generators)

    @property
    def alive(self) -> int:
        """How many are left."""
        return int(self.up.sum())

    @property
    def open(self) -> np.ndarray:
        """[generators] Those that may be given requests: the awake ones, or, where none is, all that live."""
        awake = self.up & self.awake
        return awake if awake.any() else self.up

    def lose(self, number: int, error: ProcessDied) -> None:
        """Go on without it. Raises `error` where it was the last."""
        if self.up[number]:
            self.up[number] = False
            log.warning("going on with %d of %d generators: %s", self.alive, len(self), error)
        if not self.alive:
            self.lost = self.lost or error
            raise error

    async def each(
        self, call: Callable[[int, PlacedGenerator], Awaitable[R]], among: Collection[int] | None = None
    ) -> dict[int, R]:
        """Call those alive (and `among` these) at once, each with its number; the answers of those that lived to give
        one. Raises ProcessDied where none is left."""

        async def one(number: int) -> tuple[int, R] | None:
            try:
                return number, await call(number, self.generators[number])
            except ProcessDied as error:
                self.lose(number, error)
                return None

        numbers = [n for n in np.flatnonzero(self.up).tolist() if among is None or n in among]
        return dict(answer for answer in await asyncio.gather(*map(one, numbers)) if answer is not None)

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
    """The generators of one role by number. When one dies, the others take over its work. `up` [generators] are those
    that live, `awake` those that sample, or soon will, as the leader last announced it, and `coming` those that the
    runtime starts anew when they die. `lost` is the death of the last one, where none is left and none is to come."""

    def __init__(self, generators: Sequence[PlacedGenerator], *, coming: bool = False) -> None:
        self.generators = list(generators)
        self.up = np.ones(len(generators), dtype=bool)
        self.awake = np.ones(len(generators), dtype=bool)
        self.coming = np.full(len(generators), coming)
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

    def lose(self, number: int, generator: PlacedGenerator, error: ProcessDied) -> None:
        """Go on without it; nothing happens where another stands in its place already. Raises `error` where it was the
        last and none is to come."""
        if self.generators[number] is not generator:
            return
        if self.up[number]:
            self.up[number] = False
            log.warning("going on with %d of %d generators: %s", self.alive, len(self), error)
        self._raise_if_lost(error)

    def join(self, number: int, generator: PlacedGenerator) -> None:
        """Another takes the place of one that died."""
        self.generators[number] = generator
        self.up[number] = True

    def give_up(self, number: int, error: ProcessDied) -> None:
        """It died, and is not started anew. Raises `error` where none is left and none is to come."""
        self.up[number] = self.coming[number] = False
        self._raise_if_lost(error)

    def _raise_if_lost(self, error: ProcessDied) -> None:
        if not self.up.any() and not self.coming.any():
            self.lost = self.lost or error
            raise error

    async def each(
        self, call: Callable[[int, PlacedGenerator], Awaitable[R]], among: Collection[int] | None = None
    ) -> dict[int, R]:
        """Call those alive (and `among` these) at once, each with its number; the answers of those that lived to give
        one. Raises ProcessDied where none is left and none is to come."""

        async def one(number: int) -> tuple[int, R] | None:
            generator = self.generators[number]
            try:
                return number, await call(number, generator)
            except ProcessDied as error:
                self.lose(number, generator, error)
                return None

        numbers = [n for n in np.flatnonzero(self.up).tolist() if among is None or n in among]
        return dict(answer for answer in await asyncio.gather(*map(one, numbers)) if answer is not None)

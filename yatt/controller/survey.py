"""What the reference says of every row, worked out before the first step, so that no reference is needed after."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

from yatt.controller.exchange import Exchange
from yatt.protocols import Peers, Trainer
from yatt.types import Pair

CHUNK = 256
"""Rows that one controller sends at a time."""


class Survey:
    """Of this controller's share of the rows, and of its held-out ones. All calls are collective.

    `known` fills with what everyone has found, by row: the `reference` of both sequences. It is a few numbers a row, on
    every controller, since the next epoch deals rows anew."""

    def __init__(
        self, *, peers: Peers, exchange: Exchange, trainer: Trainer, rows: Iterator[Pair], held_out: Sequence[Pair]
    ) -> None:
        self._peers, self._exchange, self._trainer = peers, exchange, trainer
        self._rows, self._unseen, self._calls = rows, iter(held_out), 0
        self.known: dict[int, tuple[float, float]] = {}
        self.held_out: list[Pair] = []

    async def advance(self) -> int:
        """Look at the next rows of everyone's; returns how many those were, 0 when all are known."""
        samples = list(islice(self._rows, CHUNK))
        found, rows = await self._ask(samples)
        if rows:
            mine = {sample.key.uid: found[sample.key.uid] for sample in samples}
            for theirs in await self._peers.all_gather(f"reference/{self._calls}", mine):
                self.known |= theirs
            return rows
        unseen = list(islice(self._unseen, CHUNK))
        found, rows = await self._ask(unseen)
        self.held_out += [_told(pair, found[pair.key.uid]) for pair in unseen]
        return rows

    def told(self, encode: Callable[[Any, int, int], Pair]) -> Callable[[Any, int, int], Pair]:
        """The same encoder of (row, uid, row number), which adds what is known of the row by then."""

        def encoded(row: Any, uid: int, index: int) -> Pair:
            pair = encode(row, uid, index)
            return _told(pair, self.known[index]) if index in self.known else pair

        return encoded

    async def _ask(self, samples: Sequence[Pair]) -> tuple[dict[int, tuple[float, float]], int]:
        """By row, what the reference says of these; and how many rows everyone asked of."""
        self._calls += 1
        rows = sum(await self._peers.all_gather(f"survey/{self._calls}", len(samples)))
        if not rows:
            return {}, 0
        shares = await self._exchange.balance(self._calls, samples, work="reference")
        return dict(await self._trainer.reference(shares)), rows


def _told(pair: Pair, sums: tuple[float, float]) -> Pair:
    """The same with what the reference says of both."""
    first, second = (replace(one, reference=known) for one, known in zip(pair.sequences, sums, strict=True))
    return Pair(first=first, second=second)

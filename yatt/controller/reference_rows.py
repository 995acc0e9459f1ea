"""Logprobs of the reference for every row, asked before the first step, so that no reference is needed afterwards."""

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

LogprobSums = tuple[float, float]
"""The reference's logprob of each sequence of a pair."""
PairEncoder = Callable[[Any, int, int], Pair]
"""Of (row, uid, row number)."""


class PrecomputedReference:
    """Asks the reference about this controller's share of the rows, and about its held-out ones. All calls are
    collective.

    `by_row` holds the answers for the rows of all controllers, by row number: two numbers a row on every controller,
    since the next epoch deals rows anew. `held_out` are this controller's held-out rows with their answers."""

    def __init__(
        self, *, peers: Peers, exchange: Exchange, trainer: Trainer, rows: Iterator[Pair], held_out: Sequence[Pair]
    ) -> None:
        self._peers, self._exchange, self._trainer = peers, exchange, trainer
        self._rows, self._held_out_rows, self._calls = rows, iter(held_out), 0
        self.by_row: dict[int, LogprobSums] = {}
        self.held_out: list[Pair] = []

    async def advance(self) -> int:
        """Ask about the next rows of all controllers; returns how many those were, 0 once all are known."""
        pairs = list(islice(self._rows, CHUNK))
        answers, asked = await self._ask(pairs)
        if asked:
            answered = {pair.key.uid: answers[pair.key.uid] for pair in pairs}
            for part in await self._peers.all_gather(f"reference/{self._calls}", answered):
                self.by_row |= part
            return asked
        pairs = list(islice(self._held_out_rows, CHUNK))
        answers, asked = await self._ask(pairs)
        self.held_out += [_with_reference(pair, answers[pair.key.uid]) for pair in pairs]
        return asked

    def added_to(self, encode: PairEncoder) -> PairEncoder:
        """The same encoder, which adds the reference's logprobs to the rows that are known when it is called."""

        def encoded(row: Any, uid: int, index: int) -> Pair:
            pair = encode(row, uid, index)
            return _with_reference(pair, self.by_row[index]) if index in self.by_row else pair

        return encoded

    async def _ask(self, pairs: Sequence[Pair]) -> tuple[dict[int, LogprobSums], int]:
        """The answers for these pairs by uid, perhaps others' among them; and how many pairs all controllers asked
        about."""
        self._calls += 1
        asked = sum(await self._peers.all_gather(f"reference rows/{self._calls}", len(pairs)))
        if not asked:
            return {}, 0
        shares = await self._exchange.balance(self._calls, pairs, work="reference")
        return dict(await self._trainer.reference(shares)), asked


def _with_reference(pair: Pair, sums: LogprobSums) -> Pair:
    """The same pair, each sequence with the reference's logprob of it."""
    first, second = pair.sequences
    return Pair(first=replace(first, reference=sums[0]), second=replace(second, reference=sums[1]))

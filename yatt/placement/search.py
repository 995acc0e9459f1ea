"""The best fixed split of the blocks that a bounded number of simulated runs finds."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

from yatt.placement.plan import Role, Split, apportion

TRIES = 12
"""Splits tried where there are more."""


def search(
    blocks: int,
    roles: Sequence[Role],
    seconds: Callable[[Split], float],
    *,
    tries: int = TRIES,
    first: Sequence[Split] = (),
) -> dict[tuple[int, ...], float]:
    """Seconds of each split tried, by the blocks of each role in turn. All splits are tried where they are few; else
    those to try `first`, a coarse grid, and then ever finer moves from the best. The same arguments try the same ones.
    """
    tried: dict[tuple[int, ...], float] = {}

    def ask(splits: Iterator[tuple[int, ...]]) -> None:
        for split in splits:
            if split not in tried and len(tried) < tries:
                tried[split] = seconds(dict(zip(roles, split, strict=True)))

    every = math.comb(blocks - 1, len(roles) - 1)
    if every <= tries:
        ask(_all(blocks, len(roles)))
        return tried
    ask(itertools.chain((tuple(split[role] for role in roles) for split in first), _coarse(blocks, roles)))
    step = max(1, blocks // 8)
    while step and len(tried) < tries:
        best = min(tried, key=lambda split: tried[split])
        ask(_moved(best, step))
        if min(tried, key=lambda split: tried[split]) == best:
            step //= 2
    return tried


def _all(blocks: int, roles: int) -> Iterator[tuple[int, ...]]:
    for cuts in itertools.combinations(range(1, blocks), roles - 1):
        yield tuple(b - a for a, b in itertools.pairwise((0, *cuts, blocks)))


def _coarse(blocks: int, roles: Sequence[Role]) -> Iterator[tuple[int, ...]]:
    """All roles alike, then each with three times what the others have."""
    for favoured in (None, *roles):
        split = apportion(blocks, {role: 3.0 if role == favoured else 1.0 for role in roles})
        yield tuple(split[role] for role in roles)


def _moved(split: tuple[int, ...], step: int) -> Iterator[tuple[int, ...]]:
    """With so many blocks of one role given to another, as many as it can spare."""
    for giver, taker in itertools.permutations(range(len(split)), 2):
        moved = list(split)
        size = min(step, split[giver] - 1)
        moved[giver] -= size
        moved[taker] += size
        yield tuple(moved)

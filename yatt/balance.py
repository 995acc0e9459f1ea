"""Which rank trains which sample, in which micro-batch: an equal share of cost, within a budget of tokens."""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from yatt.errors import ConfigError

# Per layer of width h, causal attention costs T / (12 h) of what the matrices cost; this is h = 4096.
QUADRATIC = 1 / (12 * 4096)

Costs = Sequence[float] | np.ndarray


def sample_cost(lengths: Sequence[int] | np.ndarray, a: float = 1.0, b: float = QUADRATIC) -> np.ndarray:
    """a * tokens + b * tokens^2 of each sample: matrices grow with its tokens, attention with their square."""
    tokens = np.asarray(lengths, dtype=np.float64)
    return a * tokens + b * tokens * tokens


def partition(costs: Costs, ranks: int) -> list[list[int]]:
    """Indices over `ranks` parts of nearly equal cost: the costliest left goes to the cheapest part.

    Every index exactly once, in rising order within a part. Ties go to the lower index and to the lower part. The
    costliest part is at most 4/3 of the best possible (Graham 1969).
    """
    parts: list[list[int]] = [[] for _ in range(ranks)]
    heap = [(0.0, rank) for rank in range(ranks)]
    values = np.asarray(costs, dtype=np.float64)
    for index in np.argsort(-values, kind="stable").tolist():
        cost, rank = heap[0]
        parts[rank].append(index)
        heapq.heapreplace(heap, (cost + float(values[index]), rank))
    return [sorted(part) for part in parts]


def pack(lengths: Sequence[int] | np.ndarray, costs: Costs, budget: int) -> list[list[int]]:
    """Indices in few micro-batches of at most `budget` tokens: the longest first, each into the fullest that takes it.

    Every index exactly once; the costliest micro-batch first, so that those of equal place on several ranks are alike.
    Raises ConfigError if one sample alone exceeds the budget.
    """
    sizes = np.asarray(lengths, dtype=np.int64)
    _check_budget(sizes, budget)
    batches: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens left, micro-batch), ascending
    for index in np.argsort(-sizes, kind="stable").tolist():
        size = int(sizes[index])
        place = bisect_left(room, (size, -1))
        if place < len(room):
            left, batch = room.pop(place)
        else:
            left, batch = budget, len(batches)
            batches.append([])
        batches[batch].append(index)
        insort(room, (left - size, batch))
    return _by_cost([sorted(batch) for batch in batches], costs)


def assign(
    lengths: Sequence[int], *, ranks: int, updates: int, budget: int, quadratic: float = QUADRATIC
) -> list[list[list[list[int]]]]:
    """Samples of a step, given by their lengths in canonical order, to `[update][rank][micro]` lists of indices.

    Updates take consecutive samples, as equal in number as can be; within one, ranks get nearly equal costs and the
    same number of micro-batches: those with fewer split theirs, and only a rank with fewer samples than micro-batches
    gets empty ones. Every index exactly once. Raises ConfigError if one sample alone exceeds `budget` tokens.
    """
    sizes = np.asarray(lengths, dtype=np.int64)
    _check_budget(sizes, budget)
    costs = sample_cost(sizes, b=quadratic)
    bounds = [len(sizes) * update // updates for update in range(updates + 1)]
    plan = []
    for start, stop in pairwise(bounds):
        packed = []
        for part in partition(costs[start:stop], ranks):
            chosen = np.asarray(part, dtype=np.int64) + start
            batches = pack(sizes[chosen], costs[chosen], budget)
            packed.append([[int(chosen[index]) for index in batch] for batch in batches])
        count = max(len(batches) for batches in packed)
        plan.append([_widen(batches, costs, count) for batches in packed])
    return plan


def _widen(batches: list[list[int]], costs: np.ndarray, count: int) -> list[list[int]]:
    """The same indices in `count` micro-batches: the costliest that can be split is, while any can."""
    batches = list(batches)
    while len(batches) < count:
        divisible = next((place for place, batch in enumerate(batches) if len(batch) > 1), None)
        if divisible is None:
            batches.append([])
            continue
        batch = batches.pop(divisible)
        halves = [[batch[index] for index in half] for half in partition(costs[batch], 2)]
        batches = _by_cost([*batches, *halves], costs)
    return batches


def _by_cost(batches: list[list[int]], costs: Costs) -> list[list[int]]:
    return sorted(batches, key=lambda batch: (-sum(float(costs[index]) for index in batch), batch))


def _check_budget(sizes: np.ndarray, budget: int) -> None:
    if len(sizes) and int(sizes.max()) > budget:
        index, longest = int(sizes.argmax()), int(sizes.max())
        raise ConfigError(
            f"train.tokens_per_micro_batch={budget} is less than the {longest} tokens of sample {index}; "
            f"use at least {longest}"
        )

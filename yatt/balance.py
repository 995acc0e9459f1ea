"""Which rank trains which sample, in which micro-batch: an equal share of cost, within a budget of tokens.

Pure functions of numbers: every process that calls them with the same numbers gets the same answer. Every tie goes to
the lower index."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from yatt.errors import ConfigError

# With this many micro-batches per pipeline stage the bubble, (S - 1) / (m + S - 1), is under a fifth of the time.
MICROS_PER_STAGE = 4

# With fewer samples than this side by side, plain loops are quicker than numpy's.
AT_ONCE = 12

Numbers = Sequence[float] | Sequence[int] | np.ndarray
Names = Sequence[str] | Sequence[int] | np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """Where each of N samples goes: optimizer update [N], data-parallel rank [N], micro-batch [N] within both.

    `micros[u]` is how many micro-batches each rank has in update u."""

    update: np.ndarray
    rank: np.ndarray
    micro: np.ndarray
    micros: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """The images of each of N samples: their patches [N], of which a micro-batch has at most `limit` (None: as many as
    its tokens let in), and what they add to its cost [N], in that of a token of text."""

    patches: np.ndarray
    costs: np.ndarray
    limit: int | None = None

    def within(self, tokens: np.ndarray, budget: int) -> np.ndarray:
        """Sizes [N] that keep both bounds where they add up to at most `budget`."""
        if self.limit is None:
            return tokens
        _check_budget("train.patches_per_micro_batch", self.patches, self.limit, "patches")
        # A sum of the greater of two shares is at least the greater of their sums.
        sizes: np.ndarray = np.maximum(tokens, -(-self.patches.astype(np.int64) * budget // self.limit))
        return sizes


def sample_cost(lengths: Numbers, a: float, b: float) -> np.ndarray:
    """a * tokens + b * tokens^2 of each sample: matrices grow with its tokens, attention with their square."""
    tokens = np.asarray(lengths, dtype=np.float64)
    return a * tokens + b * tokens * tokens


def assign(
    lengths: Sequence[int] | np.ndarray,
    *,
    ranks: int,
    updates: int,
    budget: int,
    quadratic: float,
    stages: int = 1,
    seconds: Numbers | None = None,
    images: Images | None = None,
    holders: Names | None = None,
    rank_nodes: Names | None = None,
) -> Assignment:
    """Where the samples of a step go, given by their lengths in canonical order.

    Updates take consecutive samples, as equal in number as can be. Within one, ranks get nearly equal costs and the
    same number of micro-batches of at most `budget` tokens, of which none is empty while its rank has samples for all.
    They stand in falling cost, so those of equal place are alike on all ranks.

    Over a pipeline of S `stages` a rank takes sum + (S - 1) * costliest of its micro-batches, so there are at least
    `MICROS_PER_STAGE` * S of them, or as many as the rank with fewest samples can fill.

    `seconds` [N] are where the second sequence of a pair begins, end to end, 0 for a single one: a pair costs what its
    sequences cost. Of a micro-batch with `images`, the patches are bounded too.

    `holders` [N] are the nodes that hold the samples, `rank_nodes` [ranks] those of the ranks. They decide only which
    rank takes which part; while all ranks are on one node they change nothing.

    Raises ConfigError if one sample alone exceeds the budget.
    """
    tokens = np.asarray(lengths, dtype=np.int64)
    _check_budget("train.tokens_per_micro_batch", tokens, budget, "tokens")
    sizes = tokens if images is None else images.within(tokens, budget)
    begins = np.zeros_like(sizes) if seconds is None else np.asarray(seconds, dtype=np.int64)
    costs = sample_cost(begins, 1.0, quadratic) + sample_cost(tokens - begins, 1.0, quadratic)
    if images is not None:
        costs += images.costs
    bounds = [len(sizes) * update // updates for update in range(updates + 1)]
    update = np.repeat(np.arange(updates), np.diff(bounds))
    rank, micro, micros = np.zeros_like(sizes), np.zeros_like(sizes), []
    for some in (slice(*pair) for pair in pairwise(bounds)):
        part = partition(costs[some], ranks)
        least = min(MICROS_PER_STAGE * stages, np.bincount(part, minlength=ranks).min()) if stages > 1 else 1
        micro[some], count = pack(sizes[some], costs[some], part, ranks=ranks, budget=budget, least=int(least))
        micros.append(count)
        if holders is not None and rank_nodes is not None:
            part = place(part, tokens[some], np.asarray(holders)[some], rank_nodes)[part]
        rank[some] = part
    return Assignment(update=update, rank=rank, micro=micro, micros=tuple(micros))


def partition(costs: Numbers, ranks: int) -> np.ndarray:
    """The part [N] of each sample, of `ranks` parts of nearly equal cost: the costliest left goes to the cheapest part.

    The costliest part is at most 4/3 of the best possible (Graham 1969).
    """
    values = np.asarray(costs, dtype=np.float64)
    part = np.zeros(len(values), dtype=np.int64)
    heap = [(0.0, number) for number in range(ranks)]
    for index in np.argsort(-values, kind="stable").tolist():
        cost, number = heap[0]
        part[index] = number
        heapq.heapreplace(heap, (cost + float(values[index]), number))
    return part


def pack(
    sizes: np.ndarray, costs: np.ndarray, part: np.ndarray, *, ranks: int, budget: int, least: int
) -> tuple[np.ndarray, int]:
    """The micro-batch [N] of each sample within its part, and how many each part has: `least`, or what they need.

    From the costliest on, a sample goes to the cheapest micro-batch with room for it. If some find none, all start
    again with as many more as these would fill on the part that has most of them.
    """
    if not len(sizes):
        return np.zeros(0, dtype=np.int64), 0
    counts = np.bincount(part, minlength=ranks)
    falling_costs = np.lexsort((-costs, part))
    if len(part) < AT_ONCE * counts.max():
        spread, rows = _spread_each, np.split(falling_costs, np.cumsum(counts)[:-1])
    else:
        turn = np.arange(len(part)) - np.repeat(np.cumsum(counts) - counts, counts)
        by_turn = falling_costs[np.argsort(turn, kind="stable")]
        # All parts advance together: the costliest sample of each, then the second of each, and so on.
        spread, rows = _spread_together, np.split(by_turn, np.cumsum(np.bincount(turn))[:-1])
    count = max(least, _filled(np.bincount(part, weights=sizes), budget))
    while True:
        micro, load, left = spread(sizes, costs, part, rows, (ranks, count), budget)
        if not left.any():
            break
        count += _filled(left, budget)
    falling = np.empty((ranks, count), dtype=np.int64)
    np.put_along_axis(falling, np.argsort(-load, axis=1, kind="stable"), np.arange(count)[None], axis=1)
    return falling[part, micro], count


def _filled(tokens: np.ndarray, budget: int) -> int:
    """Micro-batches that the fullest of these parts [ranks] takes at least."""
    return int(-(-tokens.max() // budget))


def _spread_together(
    sizes: np.ndarray, costs: np.ndarray, part: np.ndarray, rows: list[np.ndarray], shape: tuple[int, int], budget: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Micro-batch [N], cost [ranks, micros], and the tokens [ranks] of samples that found no room; `rows` are turns."""
    micro = np.zeros(len(sizes), dtype=np.int64)
    load, room, left = np.zeros(shape), np.full(shape, budget), np.zeros(shape[0])
    for chosen in rows:
        row, size = part[chosen], sizes[chosen]
        open_load = np.where(room[row] >= size[:, None], load[row], np.inf)
        best = open_load.argmin(axis=1)
        fits = room[row, best] >= size
        if not fits.all():
            left[row[~fits]] += size[~fits]
            chosen, row, size, best = chosen[fits], row[fits], size[fits], best[fits]
        micro[chosen] = best
        load[row, best] += costs[chosen]
        room[row, best] -= size
    return micro, load, left


def _spread_each(
    sizes: np.ndarray, costs: np.ndarray, part: np.ndarray, rows: list[np.ndarray], shape: tuple[int, int], budget: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same as `_spread_together`, one part after another: quicker where there are few."""
    micro, load, left = np.zeros(len(sizes), dtype=np.int64), np.zeros(shape), np.zeros(shape[0])
    for number, row in enumerate(rows):
        heap, room, chosen = [(0.0, m) for m in range(shape[1])], [budget] * shape[1], []
        for size, cost in zip(sizes[row].tolist(), costs[row].tolist(), strict=True):
            full = []
            while heap and room[heap[0][1]] < size:
                full.append(heapq.heappop(heap))
            if heap:
                cheapest, best = heap[0]
                heapq.heapreplace(heap, (cheapest + cost, best))
                room[best] -= size
                chosen.append(best)
            else:
                left[number] += size
                chosen.append(0)
            for entry in full:
                heapq.heappush(heap, entry)
        micro[row] = chosen
        load[number, [m for _, m in heap]] = [cheapest for cheapest, _ in heap]
    return micro, load, left


def place(part: np.ndarray, sizes: np.ndarray, holders: Names, rank_nodes: Names) -> np.ndarray:
    """The rank [ranks] of each part, so that many tokens stay on the node that holds them.

    Greedy: the part and the node with most tokens in common come first, while the node has ranks left. Parts keep their
    own numbers where that serves as well, so always where all ranks are on one node.
    """
    nodes, home = np.unique(np.asarray(rank_nodes), return_inverse=True)
    ranks = len(home)
    rank = np.arange(ranks)
    if len(nodes) == 1:
        return rank
    holder = np.searchsorted(nodes, np.asarray(holders)).clip(max=len(nodes) - 1)
    known = nodes[holder] == holders
    bytes_at = np.zeros((ranks, len(nodes)))
    np.add.at(bytes_at, (part[known], holder[known]), sizes[known])
    free = [np.flatnonzero(home == node).tolist() for node in range(len(nodes))]
    chosen = np.full(ranks, -1)
    for number, node in zip(
        *np.unravel_index(np.argsort(-bytes_at, axis=None, kind="stable"), bytes_at.shape), strict=True
    ):
        if chosen[number] < 0 and free[node]:
            chosen[number] = free[node].pop(0)
    return chosen if bytes_at[rank, home[chosen]].sum() > bytes_at[rank, home].sum() else rank


def _check_budget(setting: str, sizes: np.ndarray, budget: int, what: str) -> None:
    if len(sizes) and int(sizes.max()) > budget:
        index, longest = int(sizes.argmax()), int(sizes.max())
        raise ConfigError(
            f"{setting}={budget} is less than the {longest} {what} of sample {index}; use at least {longest}"
        )

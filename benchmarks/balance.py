"""Dealing samples to ranks and micro-batches: how even `yatt.balance.assign` is, and how long it takes.

Lengths are lognormal: median 1k tokens, one in a hundred above 10k. The other side is what one would write first with
equally many samples on every rank: sorted by cost and dealt in rounds, the costliest of each to the cheapest rank.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

import numpy as np

from benchmarks.common import alternate, main, median
from yatt.balance import assign, sample_cost
from yatt.models.facts import ModelFacts

MEDIAN, P99, BUDGET = 1_000, 10_000, 32_768
SIGMA = math.log(P99 / MEDIAN) / NormalDist().inv_cdf(0.99)
# Qwen3 8B.
SIZES = dict(hidden_size=4096, intermediate_size=12_288, layers=36, heads=32, kv_heads=8, head_dim=128)
QUADRATIC = ModelFacts(**SIZES, vocab_size=151_936, embedding_rows=151_936, max_positions=40_960, tied=False).quadratic


def unevenness(costs: np.ndarray, rank: np.ndarray, ranks: int) -> float:
    """Cost of the costliest rank over the mean: 1 is perfect, and the step takes this much longer than that."""
    loads = np.bincount(rank, weights=costs, minlength=ranks)
    return round(float(loads.max() / loads.mean()), 4)


def equal_counts(costs: np.ndarray, ranks: int) -> np.ndarray:
    """The rank of each sample."""
    rank, loads = np.zeros(len(costs), dtype=int), np.zeros(ranks)
    falling = np.argsort(-costs, kind="stable")
    for some in np.split(falling, range(ranks, len(costs), ranks)):
        rank[some] = np.argsort(loads, kind="stable")[: len(some)]
        loads[rank[some]] += costs[some]
    return rank


def case(samples: int, ranks: int, rounds: int) -> dict[str, Any]:
    lengths = np.random.default_rng(0).lognormal(math.log(MEDIAN), SIGMA, samples).astype(int) + 1
    costs = sample_cost(lengths, 1.0, QUADRATIC)
    limits = dict(ranks=ranks, updates=1, budget=max(BUDGET, int(lengths.max())), quadratic=QUADRATIC)
    seconds = alternate(
        rounds,
        assign=lambda: assign(lengths, **limits),
        equal_counts=lambda: equal_counts(sample_cost(lengths, 1.0, QUADRATIC), ranks),
    )
    assigned = assign(lengths, **limits)
    return {
        "samples": samples,
        "ranks": ranks,
        "max_over_mean": unevenness(costs, assigned.rank, ranks),
        # No split is below this: the longest sample is on one rank, whole.
        "floor": round(max(1.0, float(costs.max() * ranks / costs.sum())), 4),
        "seconds": median(seconds["assign"]),
        "micro_batches": assigned.micros[0],
        "equal_counts": unevenness(costs, equal_counts(costs, ranks), ranks),
        "equal_counts_seconds": median(seconds["equal_counts"]),
    }


def measure(quick: bool, samples: int | None, ranks: int | None) -> dict[str, Any]:
    """One case where samples or ranks are named, every case otherwise."""
    rounds = 1 if quick else 5
    if samples or ranks:
        return {"rounds": rounds} | case(samples or 8192, ranks or 128, rounds)
    counts, sizes = ((1024,), (8,)) if quick else ((1024, 8192, 65_536), (8, 64, 128, 512))
    return {"rounds": rounds, "results": [case(n, r, rounds) for n in counts for r in sizes if n >= r]}


if __name__ == "__main__":
    main("balance", measure, flags={"samples": int, "ranks": int})

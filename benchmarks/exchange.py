"""Dealing samples to ranks: how long `yatt.balance.assign` takes, and how even its split is beside dealing in turn.

Lengths are lognormal: median 1k tokens, one in a hundred above 10k, none above 32k.
"""

from __future__ import annotations

import math
from itertools import chain
from statistics import NormalDist
from typing import Any

import numpy as np

from benchmarks.common import alternate, main, median, significant
from yatt.balance import assign, sample_cost

MEDIAN, P99, LONGEST = 1_000, 10_000, 32_768
SIGMA = math.log(P99 / MEDIAN) / NormalDist().inv_cdf(0.99)


def unevenness(costs: np.ndarray, parts: list[list[int]]) -> float:
    """Cost of the costliest rank over the mean: 1 is perfect, and the step takes this much longer than that."""
    loads = [costs[part].sum() for part in parts]
    return max(loads) / float(np.mean(loads))


def measure(quick: bool) -> dict[str, Any]:
    counts, sizes, rounds = ((1_000,), (8,), 1) if quick else ((1_000, 8_000, 64_000), (8, 64, 512), 3)
    results = []
    for count in counts:
        drawn = np.random.default_rng(0).lognormal(math.log(MEDIAN), SIGMA, count)
        lengths = np.clip(drawn, 1, LONGEST).astype(int).tolist()
        costs = sample_cost(lengths)
        for ranks in sizes:
            settings = dict(ranks=ranks, updates=1, budget=LONGEST)
            seconds = alternate(rounds, assign=lambda s=settings, x=lengths: assign(x, **s))
            parts = [list(chain(*batches)) for batches in assign(lengths, **settings)[0]]
            results.append(
                {
                    "samples": count,
                    "ranks": ranks,
                    "seconds": median(seconds["assign"]),
                    "max_over_mean": significant(unevenness(costs, parts)),
                    "round_robin": significant(unevenness(costs, [list(range(r, count, ranks)) for r in range(ranks)])),
                    # No split is below this: the longest sample is on one rank, whole.
                    "least_possible": significant(max(1.0, float(costs.max() * ranks / costs.sum()))),
                }
            )
    return {"rounds": rounds, "results": results}


if __name__ == "__main__":
    main("exchange", measure)

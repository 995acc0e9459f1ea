"""Costs of at least 0, fitted to the seconds that work took: the one fit of the placement and of the simulation."""

from __future__ import annotations

from functools import cache
from itertools import combinations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
WORST = 1e6
"""Condition number of a set of terms, scaled alike, beyond which they are not told apart."""
GAIN = 1e-9
"""Share by which more terms have to explain more than fewer: above what rounding does to a sum."""


def nonnegative(products: Array, sums: Array) -> Array:
    """argmin |A x - b| over x >= 0, of `products` = A'A [N, N] and `sums` = A'b [N]: of the sets of terms with positive
    costs alone, the one that explains most. Where terms cannot be told apart, the fewest of them, the first ones; the
    others are 0. It looks at every set: N is a handful."""
    best, explained = np.zeros(len(sums)), 0.0
    scale = np.sqrt(np.maximum(np.diag(products), 1e-30))
    alike, moments = products / np.outer(scale, scale), sums / scale
    for sets in _sets(len(sums)):
        parts = alike[sets[:, :, None], sets[:, None, :]]
        told_apart = np.linalg.cond(parts) <= WORST
        sets = sets[told_apart]
        costs = np.linalg.solve(parts[told_apart], moments[sets][..., None])[..., 0]
        for terms, seconds in zip(sets, costs, strict=True):
            gain = float(seconds @ moments[terms])
            if seconds.min() > 0 and gain > explained * (1 + GAIN):
                best, explained = np.zeros(len(sums)), gain
                best[terms] = seconds / scale[terms]
    return best


@cache
def _sets(count: int) -> list[npt.NDArray[np.intp]]:
    """Sets of terms, by their size: [sets, size]."""
    return [np.array(list(combinations(range(count), size)), dtype=np.intp) for size in range(1, count + 1)]


def least_squares(a: Array, b: Array) -> Array:
    """argmin |a x - b| over x >= 0: [M, N], [M] -> [N]; see `nonnegative`."""
    return nonnegative(a.T @ a, a.T @ b)

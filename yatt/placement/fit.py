"""Costs of at least 0, fitted to the seconds that work took, for the placement and for the simulation."""

from __future__ import annotations

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
    count = len(sums)
    best, explained = np.zeros(count), 0.0
    scale = np.sqrt(np.maximum(np.diag(products), 1e-30))
    alike, moments = products / np.outer(scale, scale), sums / scale
    for size in range(1, count + 1):
        for terms in map(list, combinations(range(count), size)):
            part = alike[np.ix_(terms, terms)]
            if np.linalg.cond(part) > WORST:
                continue
            seconds = np.linalg.solve(part, moments[terms])
            gain = float(seconds @ moments[terms])
            if seconds.min() > 0 and gain > explained * (1 + GAIN):
                best, explained = np.zeros(count), gain
                best[terms] = seconds / scale[terms]
    return best


def least_squares(a: Array, b: Array) -> Array:
    """argmin |a x - b| over x >= 0: [M, N], [M] -> [N]; see `nonnegative`."""
    return nonnegative(a.T @ a, a.T @ b)

"""Counts of whole numbers in bins a quarter to an eighth as wide as what they hold; they add up over processes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping


def histogram(values: Iterable[int]) -> dict[int, int]:
    """How many of `values` (0 or more) are in each bin; a bin is named by the smallest value it holds. At most four
    bins per power of two: 64 for all values below 131,072."""
    counts: Counter[int] = Counter()
    for value, times in Counter(values).items():
        counts[value & -_width(value)] += times
    return dict(counts)


def quantile(counts: Mapping[int, int], share: float) -> float:
    """The value that `share` of all do not exceed, evenly spread within its bin; 0 where there is none."""
    left = share * sum(counts.values())
    for smallest, count in sorted(counts.items()):
        if left <= count:
            return smallest + (_width(smallest) - 1) * left / count
        left -= count
    return 0.0


def _width(value: int) -> int:
    """Values below 8 have a bin each; above, a power of two is cut into four."""
    return 1 << max(0, value.bit_length() - 3)

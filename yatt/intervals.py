"""95 % confidence intervals from sums that add up over processes.

Evan Miller, "Adding Error Bars to Evals" (arXiv 2411.00640): the prompts are a sample of all that could be asked, so
the standard error counts prompts. A prompt's responses are one cluster, which enters as its mean.
"""

from __future__ import annotations

from math import sqrt

from yatt.reports import Interval

Z = 1.959964
"""Standard deviations of a normal distribution on each side that hold 95 % of it."""


def wilson(correct: float, count: int) -> Interval:
    """Of a share, from single trials that are right or wrong (Wilson 1927):
    (p + z^2 / 2n +- z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n). `count` is 1 or more."""
    share, spread = correct / count, Z * Z / count
    half = Z * sqrt(share * (1 - share) / count + spread / (4 * count))
    return max(0.0, (share + spread / 2 - half) / (1 + spread)), min(1.0, (share + spread / 2 + half) / (1 + spread))


def normal(total: float, squares: float, count: int) -> Interval | None:
    """Of a mean of shares, one per prompt, from their sum and the sum of their squares: mean +- z s / sqrt(n), s^2 the
    sample variance (n - 1), cut to [0, 1]. None where `count` is below 2. Where all prompts agree it has no width."""
    if count < 2:
        return None
    mean = total / count
    variance = max(0.0, squares - count * mean * mean) / (count - 1)
    half = Z * sqrt(variance / count)
    return max(0.0, mean - half), min(1.0, mean + half)

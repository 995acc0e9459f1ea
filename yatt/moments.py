"""Mean and deviation of numbers that come in parts, such as the rewards of a step on several controllers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

EQUAL = 1e-6
"""Deviations below this share of the mean are lost in sums of squares."""


@dataclass(frozen=True, slots=True)
class Moments:
    """How many numbers, their mean, and the sum of their squared deviations from it.

    A sum of squares would lose a deviation that is small beside the mean; this one does not (Welford 1962; Chan, Golub
    and LeVeque 1979). Of equal numbers the deviations are exactly 0.
    """

    count: int = 0
    mean: float = 0.0
    deviations: float = 0.0

    @classmethod
    def of(cls, values: Iterable[float]) -> Moments:
        """Of these numbers."""
        count, mean, deviations = 0, 0.0, 0.0
        for value in values:
            count += 1
            away = value - mean
            mean += away / count
            deviations += away * (value - mean)
        return cls(count, mean, deviations)

    @classmethod
    def of_sums(cls, count: float, total: float, squares: float) -> Moments:
        """Of numbers with this sum and sum of squares, as former checkpoints have them. A deviation that these cannot
        hold counts as 0."""
        if count < 1:
            return cls()
        mean = total / count
        deviations = max(0.0, squares - count * mean * mean)
        return cls(int(count), mean, deviations if deviations > count * (EQUAL * mean) ** 2 else 0.0)

    def __add__(self, other: Moments) -> Moments:
        """Of both together."""
        count = self.count + other.count
        if not count:
            return Moments()
        away, share = other.mean - self.mean, other.count / count
        between = away * away * self.count * share
        return Moments(count, self.mean + away * share, self.deviations + other.deviations + between)

    @property
    def variance(self) -> float:
        """Of these numbers themselves: the mean of their squared deviations; 0 of none."""
        return self.deviations / max(1, self.count)

    @property
    def sample_variance(self) -> float:
        """Of what they are a sample of (n - 1); 0 of fewer than two."""
        return self.deviations / max(1, self.count - 1)

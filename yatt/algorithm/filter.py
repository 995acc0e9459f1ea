"""Which groups are dropped before training: predicates over a group's rewards. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import fsum

TOLERANCE = 1e-9
"""Rewards nearer than this are the same: weighted sums are rounded."""

Filter = Callable[[Sequence[float]], bool]
"""A group's rewards -> whether it is dropped."""


def keep(rewards: Sequence[float]) -> bool:
    """Drop nothing."""
    return False


def all_equal(rewards: Sequence[float], tolerance: float = TOLERANCE) -> bool:
    """Drop a group of equal rewards, or of fewer than two: its advantages are 0 (DAPO, arXiv 2503.14476)."""
    return not rewards or max(rewards) - min(rewards) <= tolerance


def band(low: float, high: float) -> Filter:
    """Drop a group whose mean reward is outside [low, high]: too hard or too easy (PRIME, arXiv 2502.01456)."""

    def outside(rewards: Sequence[float]) -> bool:
        return not rewards or not low - TOLERANCE <= fsum(rewards) / len(rewards) <= high + TOLERANCE

    return outside


# rollout.filter, beside "band" and a function of the user's.
FILTERS: dict[str, Filter] = {"none": keep, "all_equal": all_equal}


class AcceptanceRate:
    """A running estimate of the share of groups that are kept, older steps fading by half.

    It begins as if `PRIOR` groups had been kept: it is never 0, so that what it sizes is finite, and the first few
    groups of a run, which end in no fair order, do not swing it. `see` counts a group of this step as soon as it has
    ended; `close` takes the counts of all controllers in place of those seen here, so that everyone starts the next
    step with the same estimate.
    """

    FADING = 0.5
    PRIOR = 16.0

    def __init__(self) -> None:
        self._past = (0.0, 0.0)
        self._kept = self._ended = 0

    def see(self, kept: bool) -> None:
        self._kept += kept
        self._ended += 1

    def close(self, kept: int, ended: int) -> None:
        past_kept, past_ended = self._past
        self._past = (self.FADING * past_kept + kept, self.FADING * past_ended + ended)
        self._kept = self._ended = 0

    @property
    def value(self) -> float:
        kept, ended = self._past
        return (self.PRIOR + kept + self._kept) / (self.PRIOR + ended + self._ended)

    def state(self) -> list[float]:
        """As of the last `close`."""
        return list(self._past)

    def restore(self, state: Sequence[float]) -> None:
        kept, ended = state
        self._past = (float(kept), float(ended))
        self._kept = self._ended = 0

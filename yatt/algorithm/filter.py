"""Which groups are dropped before training: predicates over a group's rewards. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence


def keep(rewards: Sequence[float]) -> bool:
    """Drop nothing."""
    return False


def all_equal(rewards: Sequence[float], tolerance: float = 1e-9) -> bool:
    """Drop a group of equal rewards, or of fewer than two: its advantages are 0 (DAPO, arXiv 2503.14476)."""
    return not rewards or max(rewards) - min(rewards) <= tolerance


# rollout.filter: true means that the group is dropped.
FILTERS: dict[str, Callable[[Sequence[float]], bool]] = {"none": keep, "all_equal": all_equal}

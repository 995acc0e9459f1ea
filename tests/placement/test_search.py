"""The search for the best fixed split, on seconds given by hand, and in `yatt plan`'s world against every split."""

from __future__ import annotations

import math

import pytest

from yatt.placement.search import TRIES, search


def work(weights):
    """Seconds where each role's work is spread over its blocks, the longest counting."""
    return lambda split: max(weight / split[role] for role, weight in weights.items())


@pytest.mark.parametrize("share", [0.02, 0.1, 0.22, 0.5, 0.8, 0.97])
@pytest.mark.parametrize("blocks", [16, 32, 64, 512])
def test_two_roles(blocks, share):
    seconds = work({"policy": share, "judge": 1 - share})
    tried = search(blocks, ("policy", "judge"), seconds)
    best = min(seconds({"policy": count, "judge": blocks - count}) for count in range(1, blocks))
    assert len(tried) <= TRIES and all(sum(split) == blocks and min(split) > 0 for split in tried)
    assert min(tried.values()) <= 1.25 * best
    assert tried == search(blocks, ("policy", "judge"), seconds)


def test_few_splits_are_all_tried():
    tried = search(5, ("policy", "a", "b"), lambda split: float(split["a"]))
    assert len(tried) == math.comb(4, 2) == 6 and set(map(sum, tried)) == {5}
    assert search(2, ("policy", "judge"), lambda split: 1.0) == {(1, 1): 1.0}


def test_several_judges():
    seconds = work({"policy": 10.0, "a": 50.0, "b": 4.0})
    tried = search(64, ("policy", "a", "b"), seconds, tries=24)
    assert len(tried) <= 24 and min(tried.values()) <= 1.25  # 64 / 64 would be the best of fractions

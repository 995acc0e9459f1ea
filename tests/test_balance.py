"""Balance: every sample once, within the budget, the same number of micro-batches everywhere, nearly equal costs."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yatt.balance import assign, pack, partition, sample_cost
from yatt.errors import ConfigError

LENGTHS = st.lists(st.integers(1, 100), max_size=60)


def flat(nested):
    return [x for item in nested for x in flat(item)] if isinstance(nested, list) else [nested]


def test_cost_by_hand():
    assert sample_cost([10, 100], a=2.0, b=0.5).tolist() == [20 + 50, 200 + 5000]


def test_partition_by_hand():
    # 8 | 7 | 6 -> the third part; 5 joins 6 (11), 4 joins 7 (11), 3 joins 8 (11).
    assert partition([8, 7, 6, 5, 4, 3], 3) == [[0, 5], [1, 4], [2, 3]]
    assert partition([1, 1, 1], 2) == [[0, 2], [1]]
    assert partition([], 2) == [[], []]


def test_pack_by_hand():
    # Budget 10: 7 alone, 6, then 4 goes where least is left (6 + 4), 3 to the 7, 2 to a new one.
    lengths = [6, 2, 7, 4, 3]
    assert pack(lengths, lengths, 10) == [[0, 3], [2, 4], [1]]


@settings(deadline=None)  # time is not what is tested
@given(st.lists(st.integers(1, 100), min_size=1, max_size=6), st.integers(1, 3))
def test_partition_is_within_four_thirds_of_the_best(costs, ranks):
    parts = partition(costs, ranks)
    assert sorted(flat(parts)) == list(range(len(costs))) and len(parts) == ranks

    def worst(placed):
        return max(sum(c for c, r in zip(costs, placed, strict=True) if r == rank) for rank in range(ranks))

    best = min(worst(placed) for placed in product(range(ranks), repeat=len(costs)))
    assert max(sum(costs[i] for i in part) for part in parts) <= 4 / 3 * best
    assert parts == partition(costs, ranks)


@settings(deadline=None)
@given(LENGTHS, st.integers(100, 300))
def test_pack_keeps_the_budget_and_wastes_little(lengths, budget):
    batches = pack(lengths, sample_cost(lengths), budget)
    assert sorted(flat(batches)) == list(range(len(lengths)))
    sizes = [sum(lengths[i] for i in batch) for batch in batches]
    assert all(0 < size <= budget for size in sizes)
    # No two micro-batches could have been one.
    assert len(sizes) < 2 or sum(sorted(sizes)[:2]) > budget


@settings(max_examples=200, deadline=None)
@given(LENGTHS, st.integers(1, 6), st.integers(1, 4), st.integers(100, 250))
def test_assign(lengths, ranks, updates, budget):
    plan = assign(lengths, ranks=ranks, updates=updates, budget=budget)
    assert sorted(flat(plan)) == list(range(len(lengths)))
    assert len(plan) == updates and all(len(update) == ranks for update in plan)
    # Updates take consecutive samples, as equal in number as can be.
    assert [i for update in plan for i in sorted(flat(update))] == list(range(len(lengths)))
    counts = [len(flat(update)) for update in plan]
    assert max(counts) - min(counts) <= 1
    for update in plan:
        assert len({len(batches) for batches in update}) == 1
        for batches in update:
            assert all(sum(lengths[i] for i in batch) <= budget for batch in batches)
            # An empty micro-batch only where there is no sample left to put in it.
            assert all(batches) or all(len(batch) <= 1 for batch in batches)
    assert plan == assign(lengths, ranks=ranks, updates=updates, budget=budget)


def test_long_tails_are_level():
    lengths = np.minimum(np.random.default_rng(0).lognormal(6, 1, 2048).astype(int) + 1, 8192)
    cost = sample_cost(lengths)
    (update,) = assign(lengths.tolist(), ranks=16, updates=1, budget=8192)
    loads = [sum(cost[i] for i in flat(batches)) for batches in update]
    assert max(loads) / np.mean(loads) < 1.005
    # Few micro-batches: at most 5 % more than the tokens would fill.
    assert len(update[0]) * 8192 * 16 < 1.05 * lengths.sum() + 8192 * 16


def test_a_sample_over_the_budget_is_named():
    with pytest.raises(ConfigError, match=r"tokens_per_micro_batch=100 .* 150 tokens of sample 1; use at least 150"):
        assign([20, 150], ranks=1, updates=1, budget=100)

"""Balance: every sample once, within the budget, the same number of micro-batches everywhere, nearly equal costs."""

import dataclasses
import math
from itertools import pairwise, product
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yatt import balance
from yatt.balance import assign, pack, partition, place, sample_cost
from yatt.errors import ConfigError
from yatt.models.facts import ModelFacts

QUADRATIC = 2e-5
LENGTHS = st.lists(st.integers(1, 100), max_size=60)
LIMITS = st.fixed_dictionaries(
    {
        "ranks": st.integers(1, 6),
        "updates": st.integers(1, 4),
        "budget": st.integers(100, 250),
        "quadratic": st.sampled_from([0.0, 0.001, 0.1]),
        "stages": st.integers(1, 3),
    }
)


def array(*values):
    return np.array(values)


def lognormal(samples, seed):
    """Median 1k tokens, one in a hundred above 10k (2.3263 standard deviations of the logarithm)."""
    return np.random.default_rng(seed).lognormal(math.log(1000), math.log(10) / 2.3263, samples).astype(int) + 1


def micro_costs(assigned, costs, ranks):
    """[rank, micro-batch] of the only update."""
    (micros,) = assigned.micros
    costs_by_place = np.zeros((ranks, micros))
    np.add.at(costs_by_place, (assigned.rank, assigned.micro), costs)
    return costs_by_place


def test_cost_by_hand():
    assert sample_cost([10, 100], a=2.0, b=0.5).tolist() == [20 + 50, 200 + 5000]


def test_quadratic_part_of_a_models_cost_by_hand():
    # Per layer: q and o 8 x (2 x 4) each, k and v 8 x 4 each, three of 8 x 16: 64 + 64 + 32 + 32 + 384 = 576.
    # Two layers and a head of 8 x 10: 1232 multiplications per token; 2 layers x 2 heads x 4 per token^2.
    rest = dict(max_positions=64, tied=False)
    small = dict(hidden_size=8, intermediate_size=16, layers=2, heads=2, kv_heads=1, head_dim=4, vocab_size=10)
    assert ModelFacts(**small, **rest, embedding_rows=10).quadratic == pytest.approx(16 / 1232)
    # Llama 7B is near the rule of thumb, 1 / (12 x hidden): its layers have 12.06 x hidden^2 weights.
    llama = dict(hidden_size=4096, intermediate_size=11008, layers=32, heads=32, kv_heads=32, head_dim=128)
    facts = ModelFacts(**llama, **rest, vocab_size=32000, embedding_rows=32000)
    assert facts.quadratic == pytest.approx(1 / (12 * 4096), rel=0.04)


def test_partition_by_hand():
    # 8 | 7 | 6 -> the third part; 5 joins 6 (11), 4 joins 7 (11), 3 joins 8 (11).
    assert partition([8, 7, 6, 5, 4, 3], 3).tolist() == [0, 1, 2, 2, 1, 0]
    assert partition([1, 1, 1], 2).tolist() == [0, 1, 0]
    assert partition([], 2).tolist() == []


@given(st.lists(st.integers(1, 100), min_size=1, max_size=6), st.integers(1, 3))
def test_partition_is_within_four_thirds_of_the_best(costs, ranks):
    def worst(placed):
        return max(sum(c for c, r in zip(costs, placed, strict=True) if r == rank) for rank in range(ranks))

    best = min(worst(placed) for placed in product(range(ranks), repeat=len(costs)))
    assert worst(partition(costs, ranks).tolist()) <= 4 / 3 * best


@pytest.mark.parametrize(
    ("sizes", "quadratic", "budget", "least", "micro", "count"),
    [
        # 22 tokens: three of 10. 7 | 6 | 4, 3 joins the 4 (7), 2 joins the 6 (8): the 8 first, then both 7.
        ([6, 2, 7, 4, 3], 0.0, 10, 1, [0, 0, 1, 2, 2], 3),
        # 18 tokens fill two, but the third 6 finds no room: a third micro-batch.
        ([6, 6, 6], 0.0, 10, 1, [0, 1, 2], 3),
        # Costs 90 | 30 + 30; then 12 goes beside the 90: the cheaper has room for 2 tokens only, and 3 are asked.
        ([9, 5, 5, 3], 1.0, 12, 1, [0, 1, 1, 0], 2),
        # One would do; three are asked for: 4 | 3 | 2, 1 joins the 2. The 3 was there before it was as costly.
        ([1, 2, 3, 4], 0.0, 10, 3, [2, 2, 1, 0], 3),
    ],
)
def test_pack_one_part_by_hand(sizes, quadratic, budget, least, micro, count):
    costs = sample_cost(sizes, float(quadratic == 0), quadratic)
    packed, found = pack(array(*sizes), costs, np.zeros(len(sizes), dtype=int), ranks=1, budget=budget, least=least)
    assert packed.tolist() == micro and found == count


def test_ranks_have_as_many_micro_batches_by_hand():
    # 10 | 4 + 4 + 4: 12 tokens make two micro-batches of 10, so the rank with one sample has an empty one.
    assigned = assign([10, 4, 4, 4], ranks=2, updates=1, budget=10, quadratic=0.0)
    assert assigned.rank.tolist() == [0, 1, 1, 1]
    assert assigned.micro.tolist() == [0, 0, 1, 0] and assigned.micros == (2,)


@pytest.mark.parametrize(
    ("samples", "stages", "micros"),
    [
        (64, 1, 2),  # 32 samples of 10 tokens per rank, 160 tokens a micro-batch
        (64, 2, 8),  # four per stage
        (64, 9, 32),  # no more than there are samples
        (9, 2, 4),  # on the rank with fewest
        (1, 2, 1),  # the other rank has none
        (0, 2, 0),
    ],
)
def test_a_pipeline_gets_more_micro_batches_by_hand(samples, stages, micros):
    assigned = assign([10] * samples, ranks=2, updates=1, budget=160, quadratic=0.0, stages=stages)
    assert assigned.micros == (micros,)


@settings(max_examples=300)
@given(LENGTHS, LIMITS)
def test_assign(lengths, limits):
    assigned = assign(lengths, **limits)
    ranks, updates, budget, stages = (limits[name] for name in ("ranks", "updates", "budget", "stages"))
    costs = sample_cost(lengths, 1.0, limits["quadratic"])
    # Updates take consecutive samples, as equal in number as can be.
    assert len(assigned.update) == len(assigned.rank) == len(assigned.micro) == len(lengths)
    assert sorted(assigned.update.tolist()) == assigned.update.tolist()
    numbers = [(assigned.update == update).sum() for update in range(updates)]
    assert sum(numbers) == len(lengths) and max(numbers) - min(numbers) <= 1
    assert len(assigned.micros) == updates
    for update, micros in enumerate(assigned.micros):
        mine = np.flatnonzero(assigned.update == update)
        counts = [(assigned.rank[mine] == rank).sum() for rank in range(ranks)]
        assert sum(counts) == len(mine)
        # No more micro-batches than samples allow, and for a pipeline no fewer either.
        assert micros <= max(counts) and (stages == 1 or micros >= min(4 * stages, min(counts)))
        for rank, count in enumerate(counts):
            batches = [mine[(assigned.rank[mine] == rank) & (assigned.micro[mine] == m)] for m in range(micros)]
            assert sum(map(len, batches)) == count
            assert all(sum(lengths[i] for i in batch) <= budget for batch in batches)
            # An empty micro-batch only where there are too few samples.
            assert sum(len(batch) > 0 for batch in batches) == min(count, micros)
            falling = [costs[batch].sum() for batch in batches]
            assert all(a >= b * (1 - 1e-12) for a, b in pairwise(falling))
    again = assign(np.array(lengths, dtype=int), **limits)
    assert [x.tolist() for x in places(again)] == [x.tolist() for x in places(assigned)]
    assert again.micros == assigned.micros


def places(assigned):
    return assigned.update, assigned.rank, assigned.micro


@pytest.mark.parametrize("samples", [100, 1000])
def test_samples_over_half_the_budget_are_alone(samples):
    # 51 tokens each of 100: the tokens would fill about half as many micro-batches as there must be.
    assigned = assign([51] * samples, ranks=2, updates=1, budget=100, quadratic=QUADRATIC)
    assert assigned.micros == (samples // 2,)


def test_a_sample_over_the_budget_is_named():
    with pytest.raises(ConfigError, match=r"tokens_per_micro_batch=100 .* 150 tokens of sample 1; use at least 150"):
        assign([20, 150], ranks=1, updates=1, budget=100, quadratic=QUADRATIC)


def test_parts_go_where_their_tokens_are_by_hand():
    # The longer sample is part 0, the other part 1, and each is held where the other's rank stands.
    limits = dict(ranks=2, updates=1, budget=10, quadratic=0.0, rank_nodes=["a", "b"])
    assert assign([5, 4], holders=["b", "a"], **limits).rank.tolist() == [1, 0]
    assert assign([5, 4], holders=["a", "b"], **limits).rank.tolist() == [0, 1]
    # Nobody trains on c. The shorter sample finds b, the longer what is left.
    assert assign([5, 4], holders=["c", "b"], **limits).rank.tolist() == [0, 1]
    assert assign([5, 4], holders=["c", "a"], **limits).rank.tolist() == [1, 0]
    # Part 0 holds 4 tokens on a and 5 on b, part 1 holds 4 on b. Greed would keep 5 tokens at home, not 4 + 4.
    assert place(array(0, 0, 1), array(4, 5, 4), ["a", "b", "b"], ["a", "b"]).tolist() == [0, 1]
    # Two ranks on a: the two parts with most of their tokens there get them, in that order.
    assert place(array(0, 1, 2), array(1, 2, 3), ["a", "a", "a"], ["a", "a", "b"]).tolist() == [2, 1, 0]


@settings(max_examples=200)
@given(LENGTHS, LIMITS, st.data())
def test_locality_names_parts_and_changes_none(lengths, limits, data):
    nodes = st.integers(0, 3)
    size = len(lengths)
    holders = np.array(data.draw(st.lists(nodes, min_size=size, max_size=size)), dtype=int)
    rank_nodes = np.array(data.draw(st.lists(nodes, min_size=limits["ranks"], max_size=limits["ranks"])))
    plain = assign(lengths, **limits)
    local = assign(lengths, holders=holders, rank_nodes=rank_nodes, **limits)
    assert local.micros == plain.micros
    assert local.update.tolist() == plain.update.tolist() and local.micro.tolist() == plain.micro.tolist()
    for update in range(limits["updates"]):
        mine = plain.update == update
        pairs = set(zip(plain.rank[mine].tolist(), local.rank[mine].tolist(), strict=True))
        assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})
        sizes = np.array(lengths, dtype=int)[mine]
        kept = [sizes[rank_nodes[a.rank[mine]] == holders[mine]].sum() for a in (plain, local)]
        assert kept[0] <= kept[1]
    if len(set(rank_nodes.tolist())) == 1:
        assert local.rank.tolist() == plain.rank.tolist()


@pytest.mark.parametrize(
    ("samples", "ranks", "seed"),
    [*((8192, 128, seed) for seed in range(5)), *((65536, 512, seed) for seed in range(2))],
)
def test_long_tails_are_level(samples, ranks, seed):
    lengths = lognormal(samples, seed)
    costs, budget = sample_cost(lengths, 1.0, QUADRATIC), max(32768, lengths.max())
    assigned = assign(lengths, ranks=ranks, updates=1, budget=budget, quadratic=QUADRATIC)
    loads = micro_costs(assigned, costs, ranks).sum(axis=1)
    assert loads.max() / loads.mean() < 1.01 * max(1.0, costs.max() / loads.mean())
    # Few micro-batches: what the tokens of the fullest rank fill, and at most one more.
    fullest = np.bincount(assigned.rank, weights=lengths).max()
    assert assigned.micros[0] <= math.ceil(fullest / budget) + 1


def test_a_pipeline_is_filled():
    # 64 samples a rank over 4 stages: 16 micro-batches, of which the bubble is 3 / (16 + 3) of the time; 3 / 16 more
    # than the work itself if all were alike, and up to a twentieth beyond that is granted to their unevenness.
    lengths = np.random.default_rng(0).integers(500, 1500, 64 * 8)
    costs = sample_cost(lengths, 1.0, QUADRATIC)
    times = {}
    for stages in (1, 4):
        assigned = assign(lengths, ranks=8, updates=1, budget=20_000, quadratic=QUADRATIC, stages=stages)
        micros = micro_costs(assigned, costs, 8)
        times[stages] = (micros.sum(axis=1) + 3 * micros.max(axis=1)).max() / micros.sum(axis=1).mean()
    assert times[4] < 1.05 * (1 + 3 / 16) < times[1]


@given(st.data(), st.integers(1, 30), st.integers(1, 6))
@settings(max_examples=60)
def test_packing_part_by_part_is_packing_all_parts_together(data, count, ranks):
    sizes = np.array(data.draw(st.lists(st.integers(1, 90), min_size=count, max_size=count)))
    part = np.array(data.draw(st.lists(st.integers(0, ranks - 1), min_size=count, max_size=count)))
    costs = sample_cost(sizes, 1.0, 0.01)
    packed = []
    for at_once in (0, 10**9):
        with mock.patch.object(balance, "AT_ONCE", at_once):
            packed.append(pack(sizes, costs, part, ranks=ranks, budget=100, least=1))
    (together, many), (each, few) = packed
    assert many == few and together.tolist() == each.tolist()


def test_images_count_in_cost_and_in_what_a_micro_batch_holds():
    """By hand: four samples of 10 tokens; the first two show images of 40 and 30 patches, at a cost of 20 and 15."""
    images = balance.Images(patches=np.array([40, 30, 0, 0]), costs=np.array([20.0, 15.0, 0.0, 0.0]))
    shape = dict(ranks=2, updates=1, budget=40, quadratic=0.0)
    found = balance.assign([10] * 4, images=images, **shape)
    # Costs 30, 25, 10, 10: the dearest two apart, then one of the others to the cheaper rank each time.
    assert found.rank.tolist() == [0, 1, 1, 0] and found.micros == (1,)
    bounded = dataclasses.replace(images, limit=40)
    # On one rank all four are 40 tokens, within the budget, but 70 patches are not within 40.
    one = shape | {"ranks": 1}
    assert balance.assign([10] * 4, images=images, **one).micros == (1,)
    found = balance.assign([10] * 4, images=bounded, **one)
    by_micro = np.bincount(found.micro, weights=images.patches)
    assert by_micro.max() <= 40 and np.bincount(found.micro).sum() == 4 and found.micro[0] != found.micro[1]
    with pytest.raises(
        ConfigError, match=r"train\.patches_per_micro_batch=39 is less than the 40 patches of sample 0; use at"
    ):
        balance.assign([10] * 4, images=dataclasses.replace(images, limit=39), **shape)


@given(
    rows=st.lists(st.tuples(st.integers(1, 50), st.integers(0, 80)), min_size=1, max_size=30),
    ranks=st.integers(1, 4),
)
def test_no_micro_batch_holds_more_patches_or_tokens_than_it_may(rows, ranks):
    tokens, patches = (np.array(column) for column in zip(*rows, strict=True))
    images = balance.Images(patches=patches, costs=patches / 7, limit=80)
    found = balance.assign(tokens, ranks=ranks, updates=1, budget=50, quadratic=0.01, images=images)
    slots = found.rank * found.micros[0] + found.micro
    assert np.bincount(slots, weights=tokens).max() <= 50
    assert np.bincount(slots, weights=patches).max() <= 80

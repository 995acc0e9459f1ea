"""Who gets which blocks: definitions by hand, properties, and whole phases played against an independent reference."""

import random
from dataclasses import replace

import numpy as np
import pytest
from fluid import Measure, Work, bound, lognormal, play, whole
from hypothesis import given, settings
from hypothesis import strategies as st

from yatt.placement.forecast import Forecast, Load, Speed
from yatt.placement.plan import POLICY, apportion
from yatt.placement.policy import MODES, Choice, miss, open_mode, text

SPEED = Speed(step=0.01, per_request=1e-4, prefill=3e-5, capacity=256, engines=1, per_kv_token=0.0)
JUDGE = "judge"


def load(requests=0, coming=0.0, tokens=100.0, length=100.0, longest=100.0, prefix=0.0, speed=SPEED):
    return Load(
        requests=requests, coming=coming, tokens=tokens, length=length, longest=longest, prefix=prefix, speed=speed
    )


def mode(name, *roles, given=None):
    return open_mode(name, given=given or {}, parameters=dict.fromkeys((POLICY, *roles), 1.0))


def works(count, median, judged, *, ratio=10.0, judges=1, speed=SPEED, judge_speed=SPEED):
    """Responses whose 99th percentile is `ratio` times the median, and judgements that read them."""
    drawn = lognormal(count, median, ratio * median, seed=1)
    found = {POLICY: Work(speed, drawn, 200.0)}
    for i in range(judges):
        lengths = lognormal(count, judged, 3 * judged, seed=2 + i)
        found[f"{JUDGE}{i or ''}"] = Work(judge_speed, lengths, 200 + float(np.mean(drawn)))
    return found


# --- definitions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("blocks", "weights", "split"),
    [
        # 8 * 1.5 / 73.5 = 0.16 and 7.84: one at least, and the rest.
        (8, {"policy": 1.5, "j": 72}, {"policy": 1, "j": 7}),
        (8, {"policy": 7, "j": 7}, {"policy": 4, "j": 4}),
        # 3.5, 2.1, 1.4: 3 + 2 + 1, and the one left to the largest rest.
        (7, {"policy": 5, "a": 3, "b": 2}, {"policy": 4, "a": 2, "b": 1}),
        # 0.04, 0.04, 3.92: 1 + 1 + 3 is one too many.
        (4, {"policy": 1, "a": 1, "b": 98}, {"policy": 1, "a": 1, "b": 2}),
    ],
)
def test_weighted_is_the_largest_remainder_by_hand(blocks, weights, split):
    assert apportion(blocks, weights) == split
    opened = open_mode("weighted", given={}, parameters=weights)
    assert opened.start(blocks, None, None, 0.0).split == split and opened.look is None


def test_fixed_modes_by_hand():
    assert mode("colocated", "a", "b").start(4, None, None, 1.0).split == {"policy": 4, "a": 0, "b": 0}
    partial = mode("partial", "a", given={"policy": 3, "a": 1})
    assert partial.start(4, None, {"policy": 1, "a": 3}, 1.0).split == {"policy": 3, "a": 1} and partial.look is None
    for name in ("dynamic", "disaggregated"):
        choice = mode(name, "a", "b").start(8, None, None, 1.0)
        assert choice.split == {"policy": 6, "a": 1, "b": 1} and "nothing measured yet" in choice.why
        few = mode(name, "a", "b").start(2, None, None, 1.0)  # for three roles: they take turns
        assert few.split == {"policy": 2, "a": 0, "b": 0} and "the judges' turn comes later" in few.why
    assert set(MODES) == {"colocated", "partial", "weighted", "dynamic", "disaggregated"}


def test_bound_by_hand():
    slow = Speed(step=0.1, per_request=0.01, prefill=0.001, capacity=10, engines=2, per_kv_token=0.0)
    loads = {
        # 20 * 50 + 10 * 100 = 2000 tokens. A full batch takes 0.1 + 10 * 0.01 = 0.2 s, so 0.02 s a token; 10 are yet to
        # read 5 tokens: 0.05 s. Two engines: (40 + 0.05) / 2 = 20.025 s of a block.
        POLICY: load(requests=20, coming=10, tokens=50, length=100, longest=300, prefix=5, speed=slow),
        # 30 * 20 = 600 tokens: 12 s; 30 * 40 to read: 1.2 s; 6.6 s of a block.
        JUDGE: load(coming=30, length=20, longest=60, prefix=40, speed=slow),
    }
    # Alone: 300 * 0.11 = 33 s, then 20 * 0.11 + 40 * 0.001 = 2.24 s.
    assert bound(loads, 1) == pytest.approx(35.24)
    assert bound({role: replace(one, coming=300) for role, one in loads.items()}, 1) == pytest.approx(
        (31000 * 0.02 + 300 * 5 * 0.001) / 2 + (6000 * 0.02 + 300 * 40 * 0.001) / 2
    )
    assert bound({POLICY: loads[POLICY]}, 4) == pytest.approx(33.0)


def test_forecast_by_hand():
    slow = Speed(step=0.1, per_request=0.01, prefill=0.0, capacity=10, engines=2, per_kv_token=0.0)

    def seconds(blocks, loads):
        return float(Forecast(loads=loads, blocks=sum(blocks)).seconds(np.array([blocks], dtype=float))[0])

    # 8 responses of 50 tokens on 4 engines: 2 at once, 50 steps of 0.12 s.
    even = load(requests=8, tokens=50, length=50, longest=50, speed=slow)
    assert seconds([2], {POLICY: even}) == pytest.approx(50 * 0.12)
    # On 2 engines of a capacity of 2, another 2 wait: 50 steps of 0.12 s, twice.
    small = replace(even, speed=replace(slow, capacity=2))
    assert seconds([1], {POLICY: small}) == pytest.approx(2 * 50 * 0.12)
    # All end at once; then the judge takes 8 of 20 tokens on 2 engines: 20 steps of 0.14 s.
    judge = load(coming=8, length=20, longest=20, speed=slow)
    assert seconds([2, 1], {POLICY: even, JUDGE: judge}) == pytest.approx(50 * 0.12 + 20 * 0.14)
    # Work without a block never ends.
    assert seconds([0, 3], {POLICY: even, JUDGE: judge}) == np.inf
    assert seconds([0, 3], {POLICY: replace(even, requests=0), JUDGE: load(requests=6, speed=slow)}) == pytest.approx(
        100 * 0.11
    )


def test_a_growing_cache_slows_the_steps_by_hand():
    slow = Speed(step=0.1, per_request=0.01, prefill=0.0, capacity=10, engines=2, per_kv_token=0.001)

    def seconds(blocks, one):
        return float(Forecast(loads={POLICY: one}, blocks=blocks).seconds(np.array([[blocks]], dtype=float))[0])

    # 2 at once on 4 engines, of 50 tokens after 20: 50 steps of 0.12 s, and 2 * (50 * 20 + 50^2 / 2) tokens held.
    even = load(requests=8, tokens=50, length=50, longest=50, prefix=20, speed=slow)
    assert seconds(2, even) == pytest.approx(50 * 0.12 + 4.5)
    # They have sampled 30 already.
    assert seconds(2, replace(even, drawn=30)) == pytest.approx(50 * 0.12 + 4.5 + 2 * 50 * 30 * 0.001)
    # On 2 engines of a capacity of 2 all of it twice.
    assert seconds(1, replace(even, speed=replace(slow, capacity=2))) == pytest.approx(2 * (50 * 0.12 + 4.5))


@pytest.mark.parametrize("ratio", [1.5, 3.0, 8.0])
def test_a_growing_cache_slows_the_steps_as_in_a_sum_over_them(ratio):
    """400 responses on one engine, lengths in equal parts of the forecast's family: those left at each step, and what
    they hold."""
    speed = Speed(step=0.004, per_request=1e-5, prefill=0.0, capacity=1000, engines=1, per_kv_token=1e-7)
    longest, prefix, drawn = 3000.0, 200.0, 500.0
    lengths = longest * (1 - ((np.arange(400) + 0.5) / 400) ** (1 / (ratio - 1)))
    lengths[0] = longest
    left = (lengths[None, :] > np.arange(3000)[:, None]).sum(axis=1)
    held = left * (prefix + drawn + np.arange(3000))
    exact = float(np.sum(0.004 + 1e-5 * left + 1e-7 * held))
    one = load(requests=400, tokens=longest / ratio, longest=longest, prefix=prefix, speed=speed)
    found = Forecast(loads={POLICY: replace(one, drawn=drawn)}, blocks=1).seconds(np.array([[1.0]]))
    assert float(found[0]) == pytest.approx(exact, rel=0.02) and exact > 3000 * 0.004 * 1.1


def test_what_has_not_been_read_and_what_moves_by_hand():
    """8 judgements of 20 tokens and a prompt of 100, on 2 blocks of 2 engines: 2 at once, 20 steps of 0.12 s."""
    slow = Speed(step=0.1, per_request=0.01, prefill=0.01, capacity=10, engines=2, per_kv_token=0.0)
    judge = load(requests=8, tokens=20, length=20, longest=20, prefix=100, speed=slow)
    loads = {POLICY: load(speed=slow), JUDGE: judge}

    def seconds(split, *, before=None, **changed):
        known = {**loads, JUDGE: replace(judge, **changed)}
        held = None if before is None else np.array(before, dtype=float)
        forecast = Forecast(loads=known, blocks=6, switching=3.0, before=held)
        return float(forecast.seconds(np.array([split], dtype=float))[0])

    assert seconds([4, 2]) == pytest.approx(2.4)
    assert seconds([4, 2], unread=4) == pytest.approx(2.4 + 1 * 100 * 0.01)  # one on each engine
    assert seconds([4, 2], unread=1) == pytest.approx(2.4 + 100 * 0.01)  # a prompt is read by one engine
    # From 4 blocks to 2: half of them move, those that run on the blocks lost, 4 onto 4 engines.
    assert seconds([4, 2], before=[2, 4]) == pytest.approx(2.4 + 1 * 100 * 0.01)
    # All of them run on two of the four blocks: the others are the ones to lose.
    assert seconds([4, 2], before=[2, 4], held=(4, 0, 4, 0)) == pytest.approx(2.4)
    assert seconds([4, 2], before=[2, 4], held=(4, 1, 3, 0)) == pytest.approx(2.4 + 1 / 4 * 100 * 0.01)
    # From 1 block to 2, after half of the switching: 4 move to the new block's 2 engines; not if all are unread.
    assert seconds([4, 2], before=[5, 1]) == pytest.approx(2.4 + 1.5 + 2 * 100 * 0.01)
    assert seconds([4, 2], before=[5, 1], unread=8) == pytest.approx(2.4 + 1.5 + 2 * 100 * 0.01)  # read once, by all 4
    assert seconds([4, 2], before=[6, 0]) == pytest.approx(2.4 + 3.0 + 2 * 100 * 0.01)  # asleep, it has read nothing


def test_the_longest_may_turn_out_otherwise_by_hand():
    """One response on one engine, 0.11 s a step, of 300 tokens as far as is known, 200 of which are drawn."""
    slow = Speed(step=0.1, per_request=0.01, prefill=0.0, capacity=10, engines=1, per_kv_token=0.0)
    one = replace(load(requests=1, tokens=50, length=50, longest=100, speed=slow), gone=200)

    def seconds(*spread):
        forecast = Forecast(loads={POLICY: one}, blocks=1, spread=spread)
        return float(forecast.seconds(np.array([[1.0]]))[0])

    assert seconds(1.0) == pytest.approx(100 * 0.11)
    assert seconds(1.5) == pytest.approx(250 * 0.11)
    assert seconds(0.5) == pytest.approx(60 * 0.11)  # it is longer by now: a fifth is left
    assert seconds(0.5, 1.0, 1.5) == pytest.approx((60 + 100 + 250) / 3 * 0.11)


def test_colocated_is_serial():
    look = mode("colocated", "a", "b").look
    drawing, judging = {"policy": 4, "a": 0, "b": 0}, {"policy": 0, "a": 4, "b": 0}
    idle, few, many = load(), load(requests=1), load(requests=50)

    def after(split, policy, a, b):
        choice = look(split, {"policy": policy, "a": a, "b": b}, 1.0)
        return choice and max(choice.split, key=choice.split.get)

    assert after(drawing, few, many, many) is None  # the policy has requests
    assert after(drawing, idle, few, many) == "b"  # the judge with most work
    assert after(drawing, load(coming=9), idle, idle) is None  # more is coming, and no judge has work
    assert after(drawing, load(coming=9), few, idle) == "a"
    assert after(judging, many, few, many) is None  # this judge has requests
    assert after(judging, many, idle, many) == "b"  # another judge's turn
    assert after(judging, few, idle, idle) == "policy"  # refills
    assert after(judging, idle, idle, idle) is None


def test_a_look_without_effect_is_none_and_one_with_says_why():
    look = mode("dynamic", JUDGE).look
    waiting = load(requests=5000, coming=1000, tokens=300, longest=600)
    loads = {POLICY: load(requests=20, longest=400), JUDGE: waiting}
    choice = look({POLICY: 30, JUDGE: 2}, loads, 1.0)
    assert choice.split[JUDGE] > 20 and choice.split[POLICY] >= 1
    assert look(choice.split, loads, 1.0) is None
    assert choice.why.startswith(
        "policy 20 requests x 100 tokens; judge 5000 requests x 300 tokens + 1000 coming x 100 tokens; "
        "policy 30 + judge 2 ends in "
    )
    assert f"now policy {choice.split[POLICY]} + judge {choice.split[JUDGE]}: {choice.seconds:.3g} s" in choice.why
    assert look({POLICY: 30, JUDGE: 2}, loads, 1e6) is None  # switching costs more than it gains


def test_the_words_of_a_decision():
    loads = {POLICY: load(requests=3, tokens=50), JUDGE: load()}
    said = text(loads, {POLICY: 2, JUDGE: 0}, np.inf, {POLICY: 1, JUDGE: 1}, 12.345, 0.5)
    assert said == (
        "policy 3 requests x 50 tokens; judge idle; policy 2 + judge 0 never ends; "
        "now policy 1 + judge 1: 12.3 s, switching takes 0.5 s"
    )
    assert text(loads, {POLICY: 2}, 1.0, {POLICY: 2}, 1.0, 0.5).endswith("policy 2 ends in 1 s; kept")


# --- properties ------------------------------------------------------------------------------------------------------

speeds = st.builds(
    Speed,
    step=st.floats(1e-4, 0.1),
    per_request=st.floats(0, 1e-2),
    prefill=st.floats(0, 1e-3),
    capacity=st.integers(1, 300),
    engines=st.integers(1, 4),
    per_kv_token=st.floats(0, 1e-4),
)
lengths = st.floats(1, 1e5)
some_loads = st.builds(
    Load,
    requests=st.integers(0, 5000),
    coming=st.one_of(st.just(0.0), st.floats(0.01, 5000)),
    tokens=lengths,
    length=lengths,
    longest=lengths,
    prefix=st.floats(0, 1e5),
    speed=speeds,
)


@st.composite
def moments(draw):
    """Blocks, how they are held, and what there is to do."""
    roles = (POLICY, "a", "b", "c")[: draw(st.integers(1, 4))]
    blocks = draw(st.integers(len(roles), 40))
    cuts = sorted(draw(st.lists(st.integers(0, blocks), min_size=len(roles) - 1, max_size=len(roles) - 1)))
    split = dict(zip(roles, np.diff([0, *cuts, blocks]).tolist(), strict=True))
    return split, {role: draw(some_loads) for role in roles}, draw(st.floats(0, 60))


def check_split(split, loads, blocks):
    """It adds up, and no role with work is left without a block, unless the policy has all for now."""
    assert sum(split.values()) == blocks and min(split.values()) >= 0 and set(split) == set(loads)
    if split[POLICY] < blocks or not loads[POLICY].requests + loads[POLICY].coming:
        assert all(split[role] for role, one in loads.items() if one.requests + one.coming)


@pytest.mark.slow
@settings(max_examples=80)
@given(moments())
def test_dynamic_splits_add_up_and_starve_nobody(moment):
    split, loads, switching = moment
    blocks, opened = sum(split.values()), mode("dynamic", *list(loads)[1:])
    begun = opened.start(blocks, loads, None, switching)
    check_split(begun.split, loads, blocks)
    assert opened.start(blocks, loads, None, switching) == begun
    assert opened.start(blocks, loads, begun.split, switching).split == begun.split  # no change without a reason
    moved = opened.look(split, loads, switching)
    assert opened.look(split, loads, switching) == moved
    if moved is None:
        check_split(split, loads, blocks)
    else:
        check_split(moved.split, loads, blocks)
        assert moved.split != split and "\n" not in moved.why


@settings(max_examples=80)
@given(moments())
def test_a_move_settles(moment):
    """On the same data a few looks lead to a split that is kept: nothing goes round in a circle."""
    split, loads, switching = moment
    for name in ("dynamic", "colocated"):
        opened = mode(name, *list(loads)[1:])
        for _ in range(4):
            choice = opened.look(split, loads, switching)
            if choice is None:
                break
            split = choice.split
        assert choice is None


@settings(max_examples=15)
@given(
    st.integers(1, 6),
    st.integers(1, 3),
    st.lists(st.floats(1, 2000), min_size=1, max_size=40),
    st.floats(0, 5),
    st.booleans(),
    st.integers(0, 9),
)
def test_every_phase_ends(blocks, judges, drawn, switching, blind, seed):
    """Also with fewer blocks than roles, as where engines have died, and with rough measurements."""
    speed = replace(SPEED, capacity=4)
    rest = random.Random(seed)
    found = {POLICY: Work(speed, drawn, 10.0)}
    for i in range(judges):
        found[f"j{i}"] = Work(speed, [rest.uniform(1, 500) for _ in drawn], 100.0)
    for name in ("dynamic", "colocated"):
        opened = mode(name, *list(found)[1:])
        see = Measure(noise=0.1, blind=blind, seed=seed)
        split = opened.start(blocks, whole(found, see) if name == "dynamic" else None, None, switching).split
        play(found, split, opened.look, every=0.5, switching=switching, measure=see)


# --- whole phases ----------------------------------------------------------------------------------------------------


def run(found, blocks, *, switching=2.0, measure=None):
    """Seconds under dynamic over the bound, and how often blocks changed hands."""
    loads, opened = whole(found), mode("dynamic", *list(found)[1:])
    best = bound(loads, blocks)
    split = opened.start(blocks, whole(found, measure), None, switching).split
    seconds, splits = play(found, split, opened.look, every=best / 100, switching=switching, measure=measure)
    return seconds / best, len(splits) - 1


def static(found, blocks):
    """Seconds over the bound, and as predicted, of fixed splits from end to end."""
    loads = whole(found)
    best, played = bound(loads, blocks), {}
    for own in sorted({max(1, min(blocks - 1, round(blocks * i / 8))) for i in range(1, 9)}):
        split = {POLICY: own, JUDGE: blocks - own}
        predicted = Forecast(loads=loads, blocks=blocks).seconds(np.array([[own, blocks - own]], dtype=float))[0]
        played[own] = play(found, split)[0] / best, predicted / best
    return played


def test_within_an_eighth_of_the_bound_at_64_blocks():
    """p99 ten times the median. 2048 and 4096 responses: 32 and 64 on an engine."""
    assert run(works(2048, 1000, 300), 64)[0] < 1.125
    assert run(works(4096, 1000, 300), 64)[0] < 1.125


@pytest.mark.parametrize(
    ("found", "blocks"),
    [
        (works(512, 1000, 300), 8),
        (works(2048, 400, 2000), 32),  # judgements longer than most responses
        (works(2048, 400, 400), 4),  # twice as many as fit at once
        (works(1024, 300, 300, ratio=3, judge_speed=replace(SPEED, step=0.05, engines=2)), 4),
    ],
)
def test_dynamic_is_never_much_above_the_best_fixed_split(found, blocks):
    """And the forecast, on which it rests, is within a sixth of what fixed splits take."""
    played = static(found, blocks)
    for seconds, predicted in played.values():
        assert predicted == pytest.approx(seconds, rel=1 / 6)
    assert run(found, blocks)[0] <= 1.02 * min(seconds for seconds, _ in played.values())


def test_dynamic_is_below_colocated():
    found = works(2048, 400, 400)
    serial = mode("colocated", JUDGE)
    seconds, splits = play(found, {POLICY: 16, JUDGE: 0}, serial.look, every=0.5, switching=2.0)
    assert splits == [{POLICY: 16, JUDGE: 0}, {POLICY: 0, JUDGE: 16}]
    assert run(found, 16)[0] * bound(whole(found), 16) < 0.9 * seconds


def test_the_tail_is_gathered_onto_fewer_engines():
    """20 responses are left on 30 blocks and thousands of judgements wait."""
    judging = load(requests=5980, coming=20, tokens=1500, length=1500, longest=2000)
    loads = {POLICY: load(requests=20, tokens=4000, length=4000, longest=4000, prefix=500), JUDGE: judging}
    choice = mode("dynamic", JUDGE).look({POLICY: 30, JUDGE: 2}, loads, 1.0)
    assert 1 <= choice.split[POLICY] <= 10
    # The reverse: the judge has little until thousands of responses have ended.
    loads = {POLICY: load(requests=9000, tokens=900, longest=2000), JUDGE: load(requests=3, coming=9000, length=10)}
    assert mode("dynamic", JUDGE).look({POLICY: 4, JUDGE: 28}, loads, 1.0).split[POLICY] >= 28


def test_no_move_where_nothing_is_gained():
    """20 responses on 30 blocks, and judgements that 2 blocks keep up with: blocks that idle stay where they are."""
    found = {POLICY: Work(SPEED, [4000.0] * 20, 500.0), JUDGE: Work(SPEED, [300.0] * 20, 500.0)}
    seconds, splits = play(found, {POLICY: 30, JUDGE: 2}, mode("dynamic", JUDGE).look, every=0.5, switching=1.0)
    # 4000 steps with a request per engine; then 300 with ten.
    assert splits == [{POLICY: 30, JUDGE: 2}]
    assert seconds == pytest.approx(4000 * 0.0101 + 300 * 0.0110, rel=0.02)


NOISE = 0.1
"""Every measured number is off by up to a tenth, independently, at each look and between any two steps."""


@pytest.mark.slow
def test_noise_does_not_make_it_oscillate():
    for found, blocks in ((works(1024, 1000, 300), 32), (works(512, 1000, 600), 4), (works(1024, 400, 400), 8)):
        exact, _ = run(found, blocks)
        for seed in (0, 1):
            seconds, moves = run(found, blocks, measure=Measure(noise=NOISE, seed=seed))
            assert moves <= 3 and seconds < 1.05 * exact
        opened, see, split, changes = mode("dynamic", JUDGE), Measure(noise=NOISE), None, 0
        for _ in range(40):
            after = opened.start(blocks, whole(found, see), split, 2.0).split
            changes, split = changes + (split is not None and after != split), after
        assert changes <= 1


@pytest.mark.slow
@pytest.mark.parametrize(("judged", "capacity"), [(500, 32), (2000, 8)])
def test_it_follows_responses_that_grow(judged, capacity):
    """Responses of 500 tokens, then of 2000. In the first step after the growth, begun with the loads of the one
    before, dynamic is as fast as the best fixed split that knows them; the fixed split of before is far from it."""
    few, blocks = replace(SPEED, capacity=capacity), 16
    short, long = (works(1024, median, judged, ratio=3, speed=few, judge_speed=few) for median in (500, 2000))

    def fixed(found):
        return {own: play(found, {POLICY: own, JUDGE: blocks - own})[0] for own in range(3, 15, 2)}

    before, after, opened = fixed(short), fixed(long), mode("dynamic", JUDGE)
    split = opened.start(blocks, whole(short), None, 2.0).split
    seconds, _ = play(long, split, opened.look, every=2.0, switching=2.0)
    assert after[min(before, key=before.get)] > 1.15 * min(after.values())
    assert seconds < 1.03 * min(after.values())


def test_a_start_leaves_a_split_that_has_become_wrong():
    loads, opened = whole(works(2048, 1000, 300)), mode("dynamic", JUDGE)
    best = opened.start(16, loads, None, 2.0)
    assert opened.start(16, loads, {POLICY: 2, JUDGE: 14}, 2.0).split == best.split
    assert opened.start(16, loads, {POLICY: 2, JUDGE: 14}, 1e6).split == {POLICY: 2, JUDGE: 14}
    assert opened.start(16, loads, {POLICY: 2, JUDGE: 10}, 1e6).split == best.split  # of another number of blocks


def test_a_rollout_whose_end_was_not_foreseen_teaches_nothing():
    loads = {POLICY: load(coming=8), JUDGE: load(coming=8)}
    foreseen = float(Forecast(loads=loads, blocks=2).seconds(np.array([[1.0, 1.0]]))[0])
    assert miss(loads, {POLICY: 1, JUDGE: 1}, 1.5 * foreseen) == pytest.approx(1.5)
    assert miss(loads, {POLICY: 0, JUDGE: 2}, 5.0) == 1.0  # it would never have ended


def test_what_forecasts_missed_counts_at_the_start():
    """All blocks to the policy is best by the forecast; where that has been too good by half, they are divided."""
    loads, opened = whole(works(2048, 1000, 300)), mode("dynamic", JUDGE)
    turned = opened.start(16, loads, None, 2.0, (1.0, 1.0))
    assert turned.split == {POLICY: 16, JUDGE: 0} and opened.start(16, loads, None, 2.0) == turned
    divided = opened.start(16, loads, turned.split, 2.0, (1.0, 1.5))
    assert divided.split[JUDGE] > 0 and turned.seconds < divided.seconds < 1.5 * turned.seconds
    assert opened.start(16, loads, divided.split, 2.0, (1.5, 1.0)).split == turned.split


def test_choices_are_plain_numbers():
    choice = mode("dynamic", JUDGE).start(8, whole(works(64, 100, 100)), None, 1.0)
    assert isinstance(choice, Choice) and {type(count) for count in choice.split.values()} == {int}
    assert type(choice.seconds) is float

"""Shaped rewards, and samples with their advantages, against numbers worked by hand."""

import json
import math
from dataclasses import replace

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from yatt.algorithm.rewards import RewardShaper, overlong_penalty, part_weights
from yatt.algorithm.samples import samples
from yatt.config.algorithms import RECIPES
from yatt.config.schema import AlgorithmConfig, JudgeConfig, RewardConfig, RewardFunctionConfig
from yatt.faces.metrics import _rollout_numbers
from yatt.moments import Moments
from yatt.reports import RolloutCounts, add_counts
from yatt.types import Group, Prompt, SampleKey, Score, Span, Trajectory


def group(uid, rewards, lengths, finish=None, parts=None, baseline=None):
    prompt = Prompt(uid=uid, text="p", tokens=np.arange(2, dtype=np.int32))
    trajectories = tuple(
        Trajectory(
            prompt=prompt,
            sibling=i,
            tokens=np.arange(2 + n, dtype=np.int32),
            loss_mask=np.arange(2 + n) >= 2,
            rollout_logprobs=np.full(2 + n, -0.5, dtype=np.float32),
            spans=(),
            finish=(finish or ["stop"] * len(rewards))[i],
            text="",
            score=Score(status="ok", value=value, parts=parts[i] if parts else {}),
        )
        for i, (value, n) in enumerate(zip(rewards, lengths, strict=True))
    )
    return Group(prompt=prompt, trajectories=trajectories, baseline=baseline)


def advantages(groups, *rest, **settings):
    return [s.advantage for s in samples(groups, AlgorithmConfig(**settings), 8, *rest)]


def rewards(groups, *rest, **settings):
    return [s.reward for s in samples(groups, AlgorithmConfig(**settings), 8, *rest)]


def test_samples_carry_their_groups_advantage():
    groups = [group(10, [1.0, 0.0], [3, 4]), group(4, [5.0, 5.0], [1, 1])]
    made = samples(groups, AlgorithmConfig(normalize_std=False), 8)
    assert [s.key for s in made] == [SampleKey(10, 0), SampleKey(10, 1), SampleKey(4, 0), SampleKey(4, 1)]
    assert [s.advantage for s in made] == [0.5, -0.5, 0.0, 0.0]
    assert [s.reward for s in made] == [1.0, 0.0, 5.0, 5.0]
    assert made[1].tokens.tolist() == [0, 1, 2, 3, 4, 5] and made[1].trained_tokens == 4
    assert made[0].rollout_logprobs is not None
    assert [s.trained_tokens for s in made] == [3, 4, 1, 1]


def test_each_recipes_advantage_by_hand():
    # Rewards 1, 0 of 2 and 6 tokens; the greedy response got .5.
    pair = [group(0, [1.0, 0.0], [2, 6], baseline=0.5)]
    half = 0.5 / (math.sqrt(0.5) + 1e-6)
    wanted = {
        "grpo": [half, -half],
        "dr_grpo": [0.5, -0.5],
        "gpg": [0.5, -0.5],
        "rloo": [1.0, -1.0],
        "opo": [0.75, -0.25],  # baseline (2 * 1 + 6 * 0) / 8
        "remax": [0.5, -0.5],
    }
    for name, values in wanted.items():
        assert advantages(pair, name=name) == pytest.approx(values, abs=1e-12), name


def test_token_algorithms_get_rewards_and_no_advantage():
    groups = [group(0, [1.0, 0.0, 0.5], [2, 2, 2]), group(1, [3.0], [1])]
    for name in ("ppo", "reinforce_plus_plus", "distillation"):
        assert advantages(groups, name=name) == [1.0] * 4
        assert rewards(groups, name=name) == [1.0, 0.0, 0.5, 3.0]
    # Less the mean of its group: .5, and of the lone one itself.
    assert rewards(groups, name="reinforce_plus_plus_baseline") == [0.5, -0.5, 0.0, 0.0]
    assert samples([], AlgorithmConfig(name="ppo"), 8) == []


@pytest.mark.parametrize("name", [name for name, recipe in RECIPES.items() if recipe.reinforces])
def test_no_groups_are_no_samples(name):
    assert samples([], AlgorithmConfig(name=name), 8, None, {"reward": 1.0}) == []


def test_gdpo_normalises_each_part():
    # right: 1, 0: deviations +-.5 over sqrt(.5); short: 20, 40: the other way. Weights 1 and .25: (1 - .25) of it. The
    # extra number right.length is no reward.
    parts = [{"right": 1.0, "short": 20.0, "right.length": 9}, {"right": 0.0, "short": 40.0, "right.length": 1}]
    given = [group(0, [6.0, 10.0], [4, 4], parts=parts)]
    unit = math.sqrt(0.5)
    weights = {"right": 1.0, "short": 0.25}
    assert advantages(given, None, weights, name="gdpo") == pytest.approx([0.75 * unit, -0.75 * unit], abs=1e-5)
    # Lengths 2 and 6 of 8: the penalty is one reward more, of weight length_penalty.
    shorter = [group(0, [6.0, 10.0], [2, 6], parts=parts)]
    found = advantages(shorter, None, weights, name="gdpo", length_penalty=0.5)
    assert found == pytest.approx([1.25 * unit, -1.25 * unit], abs=1e-5)
    with pytest.raises(ValueError, match="prompt 0, sibling 0: its score has no part wrong, only right, short"):
        advantages(given, None, {"wrong": 1.0}, name="gdpo")


def test_part_weights_are_those_of_the_reward():
    assert part_weights(RewardConfig(function="exact_match")) == {"reward": 1.0}
    functions = {
        "right": RewardFunctionConfig(function="a:b"),
        "short": RewardFunctionConfig(function="a:c", weight=0.1),
    }
    judges = {"judge": JudgeConfig(path="x", weight=0.5)}
    assert part_weights(RewardConfig(functions=functions, models=judges)) == {"right": 1.0, "short": 0.1, "judge": 0.5}


def test_overlong_penalty_by_hand():
    # Limit 100, buffer 20: free up to 80; 85 -> (80 - 85) / 20; 100 -> -1.
    assert [overlong_penalty(n, 100, 20) for n in (1, 80, 85, 90, 100, 130)] == [0.0, 0.0, -0.25, -0.5, -1.0, -1.0]
    assert overlong_penalty(100, 100, 0) == 0.0 and overlong_penalty(101, 100, 0) == -1.0


def test_overlong_settings():
    truncated = [group(0, [1.0, 0.0, 0.5], [2, 8, 2], ["stop", "length", "stop"])]
    plain = AlgorithmConfig(normalize_std=False)
    assert [s.advantage for s in samples(truncated, plain, 8)] == [0.5, -0.5, 0.0]
    # mask: the truncated one is gone, the others keep the baseline it was part of.
    masked = samples(truncated, plain.model_copy(update={"overlong": "mask"}), 8)
    assert [(s.key.sibling, s.advantage) for s in masked] == [(0, 0.5), (2, 0.0)]
    # penalty, buffer 4: 8 tokens -> -1; rewards 1, -1, .5: mean 1/6.
    settings = plain.model_copy(update={"overlong": "penalty", "overlong_buffer": 4})
    found = [s.advantage for s in samples(truncated, settings, 8)]
    assert found == pytest.approx([1 - 1 / 6, -1 - 1 / 6, 0.5 - 1 / 6])


def test_a_missing_reward_is_an_error():
    bad = group(0, [1.0], [2])
    with pytest.raises(ValueError, match="prompt 0, sibling 0"):
        samples([group(0, [None], [2])], AlgorithmConfig(), 8)
    assert samples([bad], AlgorithmConfig(), 8)[0].advantage == 0.0


def test_a_reward_is_clipped_then_penalised():
    # 5 is held at 2; 4 of 8 tokens at .5 take .25 off; overlong: buffer 6, 4 tokens are 2 over 2 free ones: -2/6.
    given = [group(0, [5.0, -5.0, 1.0], [4, 4, 8])]
    assert rewards(given, reward_clip=2.0) == [2.0, -2.0, 1.0]
    assert rewards(given, reward_clip=2.0, length_penalty=0.5) == [1.75, -2.25, 0.5]
    found = rewards(given, reward_clip=2.0, length_penalty=0.5, overlong="penalty", overlong_buffer=6)
    assert found == pytest.approx([1.75 - 1 / 3, -2.25 - 1 / 3, -0.5])


def test_rewards_are_normalised_by_earlier_steps():
    config = AlgorithmConfig(reward_normalize=True, reward_clip=1.0)
    shaper = RewardShaper(config, 8)
    first, second = group(0, [1.0, 3.0, 8.0], [1, 1, 1]).trajectories, group(1, [9.0, 0.5], [1, 1]).trajectories
    assert [shaper.shaped(t) for t in first] == [1.0, 1.0, 1.0]  # the first step as it is, but for the clip
    shaper.close(Moments.of([1.0, 3.0, 8.0]))
    # Mean 4, sample variance (9 + 1 + 16) / 2 = 13: (9 - 4) / sqrt(13) is over 1; (.5 - 4) / sqrt(13).
    assert [shaper.shaped(t) for t in second] == pytest.approx([1.0, -3.5 / math.sqrt(13)])
    other = RewardShaper(config, 8)
    other.restore(shaper.state())
    assert other.shaped(second[1]) == shaper.shaped(second[1])
    # Over both steps: 1, 3, 8, 9, .5: mean 4.3, squares 74 + 81.25; (155.25 - 5 * 18.49) / 4 = 15.7.
    shaper.close(Moments.of([9.0, 0.5]))
    assert shaper.scaled(5.0) == pytest.approx(0.7 / math.sqrt(15.7))


def test_equal_rewards_are_only_centred():
    shaper = RewardShaper(AlgorithmConfig(reward_normalize=True), 8)
    shaper.close(Moments.of([0.1]))
    assert shaper.scaled(0.7) == 0.7  # one reward says nothing of the deviation
    for _ in range(6):
        shaper.close(add_counts([_counts([0.1, 0.1, 0.1])] * 3).rewards)
    assert shaper.scaled(0.7) == pytest.approx(0.6)


def _counts(rewards):
    """What a controller counts of these rewards."""
    return RolloutCounts(scored=len(rewards), reward_sum=sum(rewards), reward_deviations=Moments.of(rewards).deviations)


def test_a_small_deviation_beside_a_large_mean_is_kept():
    """1e6 - 0.01, 1e6 and 1e6 + 0.01, as often, over three controllers and two steps: a mean of 1e6, and deviations
    whose squares are 1/25,000,000,000,000,000 of the rewards' squares."""
    shaper = RewardShaper(AlgorithmConfig(reward_normalize=True), 8)
    low, middle, high = ([1e6 + d] * 5 for d in (-0.01, 0.0, 0.01))
    for _ in range(2):
        total = add_counts([_counts(low + high), _counts(middle), _counts([])])
        row = _rollout_numbers(total)
        # Of 15 rewards, 10 are 0.01 away: the deviation is 0.01 * sqrt(2 / 3).
        assert (row["reward_mean"], row["reward_std"]) == pytest.approx((1e6, 0.01 * math.sqrt(2 / 3)), rel=1e-6)
        shaper.close(total.rewards)
    # And of 30 with one degree of freedom less: 0.01 * sqrt(20 / 29).
    assert shaper.scaled(1e6 + 0.01) == pytest.approx(math.sqrt(29 / 20), rel=1e-5)
    other = RewardShaper(AlgorithmConfig(reward_normalize=True), 8)
    other.restore(json.loads(json.dumps(shaper.state())))
    assert other.scaled(1e6 - 0.01) == shaper.scaled(1e6 - 0.01) == pytest.approx(-math.sqrt(29 / 20), rel=1e-5)


@hypothesis.settings(max_examples=100)
@hypothesis.given(
    st.lists(st.lists(st.floats(-1, 1), max_size=9), min_size=1, max_size=5),
    st.sampled_from([0.0, 1.0, -1e3, 1e6, 1e9]),
)
def test_moments_of_parts_are_those_of_the_whole(parts, mean):
    """In any order, against numpy's, which looks at the numbers twice."""
    numbers = np.array([mean + x for part in parts for x in part])
    for order in (parts, parts[::-1]):
        found = sum((Moments.of(mean + x for x in part) for part in order), Moments())
        assert found.count == len(numbers)
        if len(numbers):
            rounding = 1e-14 * abs(mean) + 1e-15
            assert found.mean == pytest.approx(numbers.mean(), abs=10 * rounding)
            assert math.sqrt(found.variance) == pytest.approx(numbers.std(), rel=1e-6, abs=10 * rounding)


def test_former_sums_are_read_with_what_they_can_hold():
    # 0 and 2, and 30 rewards of 0.1; 1e6 +- 0.01 is lost in a sum of squares, and counted as equal as it was then.
    assert Moments.of_sums(2, 2.0, 4.0) == Moments(2, 1.0, 2.0)
    assert Moments.of_sums(30, sum([0.1] * 30), sum([0.1 * 0.1] * 30)).deviations == 0.0
    rewards = [1e6 - 0.01, 1e6 + 0.01] * 500
    assert Moments.of_sums(1000, sum(rewards), sum(r * r for r in rewards)).deviations == 0.0
    assert Moments.of_sums(0, 0.0, 0.0) == Moments()


def test_a_greedy_baseline_is_scaled_like_the_rewards():
    config = AlgorithmConfig(name="remax", reward_normalize=True, reward_clip=5.0, length_penalty=0.5)
    shaper = RewardShaper(config, 8)
    shaper.close(Moments.of([0.0, 2.0]))  # mean 1, deviation sqrt(2)
    given = [group(0, [3.0, 1.0], [4, 8], baseline=1.0), group(1, [100.0], [8], baseline=-1.0)]
    # (3 - 1) / sqrt(2) - .25 - 0, and 0 - .5 - 0. The last is held at 5, less .5, less (-1 - 1) / sqrt(2).
    root = math.sqrt(2)
    found = [s.advantage for s in samples(given, config, 8, shaper)]
    assert found == pytest.approx([root - 0.25, -0.5, 5 - 0.5 + root])


def test_samples_say_where_the_tokens_of_the_policy_as_it_is_now_begin():
    """A prompt of 2 tokens and a response of 6, whose first 4 tokens version 3 drew and whose last 2 version 4."""
    (drawn,) = group(1, [1.0], [6]).trajectories
    spans = (Span(start=0, stop=4, version=3), Span(start=4, stop=6, version=4))
    mixed = Group(prompt=drawn.prompt, trajectories=(replace(drawn, spans=spans),))
    found = {v: samples([mixed], AlgorithmConfig(), 8, version=v)[0].fresh for v in (3, 4, 5)}
    assert found == {3: 2, 4: 6, 5: 8}

"""Group advantages and filters, against numbers worked by hand."""

import math

import pytest
import torch

from yatt.algorithm.advantage import ESTIMATORS, Outcomes, gdpo, grpo, opo, remax, rloo
from yatt.algorithm.filter import FILTERS, all_equal
from yatt.config.schema import AlgorithmConfig


def close(found, wanted):
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=found.dtype), rtol=0, atol=3e-6)


def test_grpo_by_hand():
    # Group 7: rewards 1, 0, 2: mean 1, sample variance (0 + 1 + 1) / 2 = 1. Group 3: 1, 0: mean .5, variance .5.
    rewards, groups = torch.tensor([1.0, 1.0, 0.0, 0.0, 2.0]), torch.tensor([7, 3, 7, 3, 7])
    half = 0.5 / math.sqrt(0.5)
    close(grpo(rewards, groups), [0.0, half, -1.0, -half, 1.0])
    close(grpo(rewards, groups, normalize_std=False), [0.0, 0.5, -1.0, -0.5, 1.0])
    # eps is added to the standard deviation: (2 - 1) / (1 + 1) = .5.
    close(grpo(rewards, groups, eps=1.0)[4:], [0.5])


def test_rloo_by_hand():
    # Each minus the mean of the others: 1 - (0 + 2) / 2, 0 - (1 + 2) / 2, 2 - (1 + 0) / 2; and 1 - 0, 0 - 1.
    rewards, groups = torch.tensor([1.0, 0.0, 2.0, 1.0, 0.0]), torch.tensor([0, 0, 0, 1, 1])
    close(rloo(rewards, groups), [0.0, -1.5, 1.5, 1.0, -1.0])


def test_opo_by_hand():
    # Group 0: lengths 1, 3 and rewards 1, 0: baseline (1 * 1 + 3 * 0) / 4 = .25. Group 1: 2, 2, 4 tokens, rewards 1, 0,
    # 1: (2 + 0 + 4) / 8 = .75.
    rewards, groups = torch.tensor([1.0, 1.0, 0.0, 0.0, 1.0]), torch.tensor([0, 1, 0, 1, 1])
    close(opo(rewards, torch.tensor([1, 2, 3, 2, 4]), groups), [0.75, 0.25, -0.25, -0.75, 0.25])


def test_remax_by_hand():
    close(remax(torch.tensor([1.0, 0.0, 0.5]), torch.tensor([0.0, 1.0, 0.5])), [1.0, -1.0, 0.0])


def test_gdpo_by_hand():
    # One group of three. Part 0: 1, 0, 2: mean 1, sample deviation 1: 0, -1, 1. Part 1: 10, 10, 40: mean 20, variance
    # (100 + 100 + 400) / 2 = 300: -10, -10, 20 over sqrt(300). Weights 1 and .5.
    parts = torch.tensor([[1.0, 10.0], [0.0, 10.0], [2.0, 40.0]])
    tenth = 10 / math.sqrt(300)
    wanted = [0 - 0.5 * tenth, -1 - 0.5 * tenth, 1 + 0.5 * 2 * tenth]
    close(gdpo(parts, torch.zeros(3, dtype=torch.long), torch.tensor([1.0, 0.5])), wanted)


def outcomes(rewards, groups, **columns):
    """Of responses of one token, each alone the greedy one's equal, the reward being the only part."""
    given = dict(
        lengths=torch.ones(len(rewards)), baselines=rewards, parts=rewards[:, None], weights=torch.ones(1).double()
    )
    return Outcomes(rewards=rewards, groups=groups, **{**given, **columns})


@pytest.mark.parametrize("name", ESTIMATORS)
def test_no_signal_is_exactly_zero(name):
    # 0.1 is not a binary fraction: the mean of seven is not 0.1 exactly. The last group has one member.
    def estimate(rewards, groups):
        return ESTIMATORS[name](outcomes(rewards, groups), AlgorithmConfig())

    rewards, groups = torch.tensor([0.1] * 7 + [5.0], dtype=torch.float64), torch.tensor([0] * 7 + [1])
    assert torch.equal(estimate(rewards, groups), torch.zeros(8, dtype=torch.float64))
    assert estimate(torch.zeros(0), torch.zeros(0, dtype=torch.long)).shape == (0,)
    assert estimate(torch.tensor([1, 0]), torch.tensor([0, 0])).dtype == torch.float32


def test_estimators_against_a_loop():
    torch.manual_seed(0)
    rewards, groups = torch.randn(60, dtype=torch.float64), torch.randint(0, 9, (60,))
    lengths = torch.randint(1, 50, (60,)).double()
    for i in range(60):
        own = rewards[groups == groups[i]]
        others = (own.sum() - rewards[i]) / (len(own) - 1)
        assert abs(rloo(rewards, groups)[i] - (rewards[i] - others)) < 1e-12
        share = lengths[groups == groups[i]] / lengths[groups == groups[i]].sum()
        assert abs(opo(rewards, lengths, groups)[i] - (rewards[i] - (share * own).sum())) < 1e-12
        assert abs(grpo(rewards, groups)[i] - (rewards[i] - own.mean()) / (own.std() + 1e-6)) < 1e-12


def test_filters():
    assert all_equal([1.0, 1.0 + 1e-12]) and all_equal([0.0]) and all_equal([])
    assert not all_equal([0.0, 1.0]) and all_equal([0.0, 0.4], tolerance=0.5)
    assert not FILTERS["none"]([1.0, 1.0]) and FILTERS["all_equal"]([1.0, 1.0])

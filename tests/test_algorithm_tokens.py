"""Token advantages, against numbers worked by hand and sums straight from the definitions."""

import math

import pytest
import torch

from yatt.algorithm.token_advantage import (
    TOKEN_ESTIMATORS,
    TokenOutcomes,
    distillation,
    gae,
    reinforce_plus_plus,
    token_rewards,
    whiten,
)
from yatt.config.algorithms import TOKEN_ADVANTAGES
from yatt.config.schema import AlgorithmConfig

# Two sequences of 4 and 3 tokens. The first trains tokens 1 and 3 (a gap between), the second its tokens 5 and 6.
CU = torch.tensor([0, 4, 7], dtype=torch.int32)
MASK = torch.tensor([False, True, False, True, False, True, True])
NAN = math.nan


def close(found, wanted):
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=found.dtype), rtol=0, atol=1e-6)


def test_token_rewards_by_hand():
    rewards = torch.tensor([2.0, -1.0])
    close(token_rewards(rewards, MASK, CU), [0, 0, 0, 2, 0, 0, -1])
    penalty = torch.tensor([NAN, 0.5, NAN, 0.25, NAN, 1.0, 0.0])
    close(token_rewards(rewards, MASK, CU, penalty), [0, -0.5, 0, 1.75, 0, -1, -1])
    # A sequence without a trained token has nowhere to put its reward.
    none = torch.tensor([False] * 4 + [False, True, True])
    close(token_rewards(rewards, none, CU), [0, 0, 0, 0, 0, 0, -1])


def test_gae_by_hand():
    # gamma .5, lambda .5. First sequence: rewards 0, 2 and values 1, 4: d = 0 + .5 * 4 - 1 = 1, then 2 - 4 = -2;
    # A = 1 + .25 * -2 = .5, then -2; targets A + V = 1.5, 2. Second: rewards 1, -1 and values 0, 2: d = 1 + 1 - 0 = 2,
    # then -3; A = 2 - .75 = 1.25, -3; targets 1.25, -1. What stands outside the mask is never looked at.
    rewards = torch.tensor([NAN, 0.0, NAN, 2.0, NAN, 1.0, -1.0])
    values = torch.tensor([NAN, 1.0, NAN, 4.0, NAN, 0.0, 2.0])
    advantages, targets = gae(rewards, values, MASK, CU, gamma=0.5, lam=0.5)
    close(advantages, [0, 0.5, 0, -2, 0, 1.25, -3])
    close(targets, [0, 1.5, 0, 2, 0, 1.25, -1])


def test_gae_at_its_ends():
    rewards, values = torch.tensor([0.0, 0, 0, 2, 0, 1, -1]), torch.tensor([0.0, 1, 0, 4, 0, 0, 2])
    # lambda 0: one step ahead, with gamma 1: 0 + 4 - 1 and 2 - 4; 1 + 2 - 0 and -1 - 2.
    close(gae(rewards, values, MASK, CU, gamma=1.0, lam=0.0)[0], [0, 3, 0, -2, 0, 3, -3])
    # lambda 1: the reward to go, 2, 2 and 0, -1, less the value; the targets are the reward to go itself.
    advantages, targets = gae(rewards, values, MASK, CU, gamma=1.0, lam=1.0)
    close(advantages, [0, 1, 0, -2, 0, 0, -3])
    close(targets, [0, 2, 0, 2, 0, 0, -1])


def test_reinforce_plus_plus_by_hand():
    rewards = torch.tensor([NAN, 0.0, NAN, 2.0, NAN, 1.0, -1.0])
    # gamma .5: 0 + .5 * 2 = 1, 2; 1 - .5 = .5, -1.
    plain = reinforce_plus_plus(rewards, MASK, CU, gamma=0.5)
    close(plain, [0, 1, 0, 2, 0, 0.5, -1])
    # Mean of 1, 2, .5, -1 is .625; deviations .375, 1.375, -.125, -1.625; squares add up to 4.6875, over 3 is 1.5625,
    # whose root is 1.25.
    whitened = whiten(plain, MASK)
    close(whitened, [0, 0.3, 0, 1.1, 0, -0.1, -1.3])


def test_distillation_by_hand():
    close(distillation(torch.tensor([-1.0, -2.0]), torch.tensor([-1.5, -0.5])), [0.5, -1.5])


def test_whiten_by_hand():
    # 1, 3, 8: mean 4, deviations -3, -1, 4, sample variance 26 / 2 = 13.
    x, mask = torch.tensor([1.0, NAN, 3.0, 8.0]), torch.tensor([True, False, True, True])
    root = math.sqrt(13)
    close(whiten(x, mask), [-3 / root, 0, -1 / root, 4 / root])


def test_whiten_with_nothing_to_tell_apart():
    full = torch.ones(7, dtype=torch.bool)
    # 0.1 is no binary fraction; the mean of its sums need not be 0.1.
    assert torch.equal(whiten(torch.full((7,), 0.1), full), torch.zeros(7))
    assert torch.equal(whiten(torch.full((7,), 0.1, dtype=torch.float64), full), torch.zeros(7).double())
    assert torch.equal(whiten(torch.tensor([5.0, 1.0]), torch.tensor([True, False])), torch.zeros(2))
    assert torch.equal(whiten(torch.tensor([5.0, NAN]), torch.tensor([False, False])), torch.zeros(2))
    assert whiten(torch.zeros(0), torch.zeros(0).bool()).shape == (0,)


def test_whitened_replicas_are_the_whole():
    generator = torch.Generator().manual_seed(0)
    x, mask = torch.randn(90, generator=generator) * 3 + 5, torch.rand(90, generator=generator) < 0.6
    whole = whiten(x, mask)
    parts = [slice(0, 40), slice(40, 40), slice(40, 90)]  # the second replica has nothing
    found = replicas(x, mask, parts)
    torch.testing.assert_close(torch.cat(found), whole, rtol=0, atol=1e-6)
    assert abs(whole[mask].double().mean()) < 1e-6 and abs(whole[mask].double().std() - 1) < 1e-6
    assert torch.equal(whole[~mask], torch.zeros(int((~mask).sum())))


def replicas(x, mask, parts):
    """Whiten each part as a replica of its own. `total` learns one more sum each round, until all are known."""
    known = []
    for round_ in range(3):
        said = []

        def total(sums, said=said):
            said.append(sums)
            return known[len(said) - 1] if len(said) <= len(known) else sums

        found, heard = [], []
        for part in parts:
            said.clear()
            found.append(whiten(x[part], mask[part], total=total))
            heard.append(list(said))
        assert all(len(one) == 2 for one in heard)
        if round_ < 2:
            known.append(sum(one[round_] for one in heard))
    return found


@pytest.mark.parametrize("gamma", [1.0, 0.9])
@pytest.mark.parametrize("lam", [1.0, 0.7])
def test_token_estimators_against_double_loops(gamma, lam):
    generator = torch.Generator().manual_seed(1)
    lengths = [1, 17, 2, 40, 5]
    cu = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()])
    total = sum(lengths)
    mask = torch.rand(total, generator=generator) < 0.6
    mask[cu[:-1]] = False
    rewards, values = torch.randn(2, total, generator=generator, dtype=torch.float64)
    advantages, targets = gae(rewards, values, mask, cu, gamma=gamma, lam=lam)
    to_go = reinforce_plus_plus(rewards, mask, cu, gamma=gamma)
    wanted = torch.zeros(3, total, dtype=torch.float64)
    for start, stop in zip(cu[:-1].tolist(), cu[1:].tolist(), strict=True):
        trained = [t for t in range(start, stop) if mask[t]]
        ahead = [values[t].item() for t in trained[1:]] + [0.0]
        delta = [rewards[t].item() + gamma * v - values[t].item() for t, v in zip(trained, ahead, strict=False)]
        for i, t in enumerate(trained):
            wanted[0, t] = sum((gamma * lam) ** k * delta[i + k] for k in range(len(trained) - i))
            wanted[1, t] = wanted[0, t] + values[t]
            wanted[2, t] = sum(gamma**k * rewards[trained[i + k]].item() for k in range(len(trained) - i))
    torch.testing.assert_close(torch.stack([advantages, targets, to_go]), wanted, rtol=1e-12, atol=1e-12)


def test_a_hundred_thousand_tokens_are_quick():
    lengths = [30_000, *[700] * 100]
    cu = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()])
    mask = torch.ones(100_000, dtype=torch.bool)
    ones = torch.ones(100_000)
    advantages, _ = gae(ones, torch.zeros(100_000), mask, cu, gamma=1.0, lam=1.0)
    assert advantages[0] == 30_000 and advantages[29_999] == 1 and advantages[30_000] == 700


def test_the_table_has_every_token_advantage():
    assert tuple(TOKEN_ESTIMATORS) == TOKEN_ADVANTAGES
    logprobs = torch.full((7,), -1.0)
    told = TokenOutcomes(
        token_rewards=torch.tensor([0.0, 0, 0, 2, 0, 1, -1]),
        loss_mask=MASK,
        cu_seqlens=CU,
        old_logprobs=logprobs,
        values=torch.tensor([0.0, 1, 0, 4, 0, 0, 2]),
        teacher_logprobs=torch.tensor([-9.0, -0.5, -9, -2, -9, -1, -1]),
    )
    config = AlgorithmConfig(name="ppo", gamma=0.5, gae_lambda=0.5)
    found = {name: estimate(told, config) for name, estimate in TOKEN_ESTIMATORS.items()}
    close(found["gae"][0], [0, 0.5, 0, -2, 0, 1.25, -3])
    close(found["gae"][1], [0, 1.5, 0, 2, 0, 1.25, -1])
    for name in ("reinforce_plus_plus", "reinforce_plus_plus_baseline"):
        close(found[name][0], [0, 1, 0, 2, 0, 0.5, -1])
        assert found[name][1] is None
    close(found["distillation"][0], [0, 0.5, 0, -1, 0, 0, 0])

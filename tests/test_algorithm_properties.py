"""What must hold whatever the numbers: parts add up to the whole, order does not matter, scale and shift of rewards."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from yatt.algorithm.advantage import gdpo, grpo, opo, remax, rloo
from yatt.algorithm.correction import LEVELS, MODES, weights
from yatt.algorithm.loss import AGGREGATES, LOSSES, divisor, policy_loss, value_loss
from yatt.algorithm.token_advantage import gae, reinforce_plus_plus, token_rewards, whiten
from yatt.types import Denominator

few = settings(max_examples=20, derandomize=True)
cuts = st.lists(st.integers(1, 9), min_size=2, max_size=6)
seeds = st.integers(0, 2**16)


class Batch:
    """Sequences of given lengths with random columns; each trains its second token, if it has one, and others."""

    def __init__(self, lengths, seed):
        generator = torch.Generator().manual_seed(seed)
        self.lengths, total = lengths, sum(lengths)
        self.columns = torch.randn(5, total, generator=generator, dtype=torch.float64) * 0.4
        self.mask = torch.rand(total, generator=generator) < 0.6
        starts = self.bounds(lengths)[:-1]
        self.mask[starts] = False

    @staticmethod
    def bounds(lengths):
        return torch.tensor([0, *torch.tensor(lengths, dtype=torch.long).cumsum(0).tolist()])

    def part(self, order):
        """Columns, mask and bounds of these sequences end to end, and where their tokens were."""
        starts = self.bounds(self.lengths)
        where = torch.cat([torch.arange(starts[i], starts[i + 1]) for i in order])
        return self.columns[:, where], self.mask[where], self.bounds([self.lengths[i] for i in order]), where


def loss_and_gradient(batch, orders, kind, aggregate):
    """Summed over micro-batches of these sequences, under the whole's denominator."""
    counts = [int(m.sum()) for m in batch.mask.split(batch.lengths)]
    total = Denominator(tokens=sum(counts), sequences=sum(n > 0 for n in counts))
    shape = dict(aggregate=aggregate, max_tokens=16, denominator=divisor(aggregate, total))
    loss, gradient = torch.zeros((), dtype=torch.float64), torch.zeros(2, len(batch.mask), dtype=torch.float64)
    for order in orders:
        (logprobs, old, advantages, values, returns), mask, cu, where = batch.part(order)
        logprobs, values = logprobs.clone().requires_grad_(), values.clone().requires_grad_()
        part = policy_loss(logprobs, old, advantages, mask, cu, kind=kind, dual_clip=3.0, **shape).loss
        part = part + value_loss(values, old, returns, mask, cu, clip=0.1, **shape).loss
        part.backward()
        loss += part.detach()
        gradient[0, where], gradient[1, where] = logprobs.grad, values.grad
    return loss, gradient


@pytest.mark.parametrize("kind", LOSSES)
@given(lengths=cuts, seed=seeds, aggregate=st.sampled_from(sorted(AGGREGATES)), data=st.data())
@settings(few, max_examples=10)
def test_split_and_order_do_not_matter(kind, lengths, seed, aggregate, data):
    batch = Batch(lengths, seed)
    order = data.draw(st.permutations(range(len(lengths))))
    cut = data.draw(st.integers(1, len(lengths) - 1))
    whole = loss_and_gradient(batch, [list(range(len(lengths)))], kind, aggregate)
    split = loss_and_gradient(batch, [order[:cut], order[cut:]], kind, aggregate)
    torch.testing.assert_close(split, whole, rtol=1e-12, atol=1e-14)


@pytest.mark.slow
@given(lengths=cuts, seed=seeds, data=st.data())
@few
def test_token_advantages_and_corrections_do_not_depend_on_neighbours(lengths, seed, data):
    batch = Batch(lengths, seed)
    order = data.draw(st.permutations(range(len(lengths))))

    def told(order):
        (rewards, values, old, rollout, _), mask, cu, where = batch.part(order)
        found = torch.empty(3 + len(LEVELS) * len(MODES), len(where), dtype=torch.float64)
        corrected = [
            weights(old, rollout, mask, cu, level=level, mode=mode, low=0.8, high=1.2)
            for level in LEVELS
            for mode in MODES
        ]
        to_go = reinforce_plus_plus(rewards, mask, cu, gamma=0.9)
        found[:, where] = torch.stack([*gae(rewards, values, mask, cu, gamma=0.9, lam=0.8), to_go, *corrected])
        return found

    torch.testing.assert_close(told(order), told(list(range(len(lengths)))), rtol=1e-12, atol=1e-13)


@given(seed=seeds, scale=st.floats(0.1, 10), shift=st.floats(-5, 5))
@few
def test_group_advantages_under_scale_and_shift(seed, scale, shift):
    generator = torch.Generator().manual_seed(seed)
    groups = torch.arange(12) % 3
    rewards, baselines = torch.randn(2, 12, generator=generator, dtype=torch.float64)
    lengths = torch.randint(1, 30, (12,), generator=generator)
    other = scale * rewards + shift

    def same(found, wanted):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9)

    same(rloo(other, groups), scale * rloo(rewards, groups))
    same(opo(other, lengths, groups), scale * opo(rewards, lengths, groups))
    same(remax(other, scale * baselines + shift), scale * remax(rewards, baselines))
    same(
        grpo(other, groups, normalize_std=False),
        scale * grpo(rewards, groups, normalize_std=False),
    )
    # Divided by the deviation, neither counts; of several rewards, each may be in a unit of its own.
    same(grpo(other, groups, eps=0.0), grpo(rewards, groups, eps=0.0))
    own = torch.tensor([1.0, 0.3], dtype=torch.float64)
    parts = torch.stack([rewards, baselines], 1)
    same(gdpo(torch.stack([other, baselines], 1), groups, own, eps=0.0), gdpo(parts, groups, own, eps=0.0))
    everything = torch.ones(12, dtype=torch.bool)
    same(whiten(other, everything), whiten(rewards, everything))


def test_where_scale_and_shift_do_count():
    mask, cu = torch.tensor([False, True, False, True, True]), torch.tensor([0, 2, 5])
    rewards, values = torch.tensor([1.0, 3.0]), torch.tensor([0.0, 0.5, 0, 0.5, 0.5])

    def advantages(rewards, gamma):
        return gae(token_rewards(rewards, mask, cu), values, mask, cu, gamma=gamma, lam=1.0)[0][mask].tolist()

    # The critic learned from rewards as they were: twice the reward is not twice the advantage, nor does one more
    # cancel. 1 - .5, and 3 - .5 twice; doubled 2 - .5 and 6 - .5; shifted 2 - .5 and 4 - .5.
    assert advantages(rewards, 1.0) == [0.5, 2.5, 2.5]
    assert advantages(2 * rewards, 1.0) == [1.5, 5.5, 5.5]
    assert advantages(rewards + 1, 1.0) == [1.5, 3.5, 3.5]

    def whitened(rewards, gamma):
        return whiten(reinforce_plus_plus(token_rewards(rewards, mask, cu), mask, cu, gamma=gamma), mask)

    # One reward per sequence and gamma 1: a shift moves every token alike, and whitening takes it away. With a discount
    # it moves earlier tokens less, and does not go away.
    torch.testing.assert_close(whitened(rewards + 7, 1.0), whitened(rewards, 1.0))
    assert not torch.allclose(whitened(rewards + 7, 0.5), whitened(rewards, 0.5), atol=0.1)
    torch.testing.assert_close(whitened(3 * rewards, 0.5), whitened(rewards, 0.5))

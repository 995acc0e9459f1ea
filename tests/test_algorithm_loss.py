"""Losses, aggregates and KL estimators, against numbers worked by hand and gradients by formula."""

import math

import pytest
import torch

from yatt.algorithm.kl import AdaptiveCoefficient, kl
from yatt.algorithm.loss import AGGREGATES, divisor, policy_loss, sft_loss, to_scalar
from yatt.errors import ConfigError
from yatt.types import Denominator

# Three sequences of 3, 2 and 2 tokens; the last has no trained token.
CU = torch.tensor([0, 3, 5, 7])
MASK = torch.tensor([False, True, True, False, True, False, False])
VALUES = torch.tensor([90.0, 1.0, 3.0, 90.0, 8.0, 90.0, math.nan])


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        ("token_mean", (1 + 3 + 8) / 3),
        ("sequence_mean", ((1 + 3) / 2 + 8) / 2),  # the third sequence has nothing to say and does not count
        ("sequence_sum", (1 + 3 + 8) / 2),
        ("fixed_length", (1 + 3 + 8) / 10 / 2),
    ],
)
def test_aggregates_by_hand(kind, wanted):
    found = to_scalar(VALUES, MASK, CU, kind, max_tokens=10)
    assert found.dtype == VALUES.dtype and found.item() == pytest.approx(wanted)
    own = 3 if kind == "token_mean" else 2
    assert to_scalar(VALUES, MASK, CU, kind, 10, denominator=30).item() == pytest.approx(wanted * own / 30)
    assert divisor(kind, Denominator(tokens=3, sequences=2)) == own


def test_sft_is_the_negative_mean_logprob():
    logprobs = torch.tensor([0.0, -1.0, -3.0, 0.0, -8.0, 0.0, 0.0])
    assert sft_loss(logprobs, MASK, CU).item() == 4.0
    assert sft_loss(logprobs, MASK, CU, aggregate="sequence_mean").item() == 5.0
    assert sft_loss(logprobs, MASK, CU, denominator=6).item() == 2.0


def test_fixed_length_needs_a_length():
    with pytest.raises(ConfigError, match="max_tokens=None"):
        to_scalar(VALUES, MASK, CU, "fixed_length")


@pytest.mark.parametrize("kind", AGGREGATES)
def test_nothing_to_train_is_zero_with_a_gradient(kind):
    logprobs = torch.zeros(7, requires_grad=True)
    loss = policy_loss(
        logprobs, torch.zeros(7), torch.ones(7), torch.zeros(7).bool(), CU, aggregate=kind, max_tokens=4
    ).loss
    loss.backward()
    assert loss.item() == 0.0 and torch.equal(logprobs.grad, torch.zeros(7))


def one(ratio, advantage, **settings):
    """Loss, clip fraction and d loss / d logp of a single token."""
    logprob = torch.tensor([0.0, math.log(ratio)], dtype=torch.float64, requires_grad=True)
    mask, cu = torch.tensor([False, True]), torch.tensor([0, 2])
    advantages = torch.tensor([advantage] * 2, dtype=torch.float64)
    result = policy_loss(logprob, torch.zeros(2, dtype=torch.float64), advantages, mask, cu, **settings)
    result.loss.backward()
    return result.loss.item(), result.clip_fraction.item(), logprob.grad[1].item()


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "clipped", "gradient"),
    [
        (1.0, 2.0, -2.0, 0, -2.0),  # on policy: -A, gradient -A r
        (1.1, 2.0, -2.2, 0, -2.2),
        (1.5, 2.0, -2.6, 1, 0.0),  # A > 0 and r > 1.3: held at 1.3
        (0.5, 2.0, -1.0, 0, -1.0),  # A > 0 and r small: free to grow back
        (1.5, -2.0, 3.0, 0, 3.0),  # A < 0 and r large: free to shrink
        (0.5, -2.0, 1.6, 1, 0.0),  # A < 0 and r < .8: held at .8
        (5.0, 0.0, 0.0, 0, 0.0),
    ],
)
def test_ppo_clip_by_hand(ratio, advantage, loss, clipped, gradient):
    found = one(ratio, advantage, clip_low=0.2, clip_high=0.3)
    assert found == pytest.approx((loss, clipped, gradient))


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "clipped", "gradient"),
    [
        (5.0, -2.0, 6.0, 1, 0.0),  # -A r = 10, at most -A c = 6
        (2.0, -2.0, 4.0, 0, 4.0),  # below the bound
        (0.5, -2.0, 1.6, 1, 0.0),  # the ordinary clip is untouched
        (5.0, 2.0, -2.4, 1, 0.0),  # A > 0 knows no dual clip
    ],
)
def test_dual_clip_by_hand(ratio, advantage, loss, clipped, gradient):
    assert one(ratio, advantage, dual_clip=3.0) == pytest.approx((loss, clipped, gradient))


def batch(seed=0, lengths=(4, 6, 3, 5)):
    generator = torch.Generator().manual_seed(seed)
    total = sum(lengths)
    cu = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()])
    columns = [
        torch.randn(total, generator=generator, dtype=torch.float64) * scale - shift
        for scale, shift in ((0.3, 1), (0.3, 1), (1, 0))
    ]
    mask = torch.rand(total, generator=generator) < 0.7
    mask[cu[:-1]], mask[cu[:-1] + 1] = False, True
    return columns, mask, cu


@pytest.mark.parametrize("kind", AGGREGATES)
def test_gradient_against_the_formula(kind):
    (logprobs, old, advantages), mask, cu = batch()
    logprobs.requires_grad_()
    result = policy_loss(logprobs, old, advantages, mask, cu, clip_high=0.28, aggregate=kind, max_tokens=16)
    result.loss.backward()
    # d loss / d logp_t = -A r w where the clip does not hold; w is the token's weight in the aggregate.
    ratio = (logprobs.detach() - old).exp()
    held = ((advantages > 0) & (ratio > 1.28)) | ((advantages < 0) & (ratio < 0.8))
    weight = torch.zeros_like(ratio)
    for start, stop in zip(cu[:-1].tolist(), cu[1:].tolist(), strict=True):
        share = {"token_mean": 1 / mask.sum().item(), "sequence_mean": 1 / mask[start:stop].sum().item() / 4}
        weight[start:stop] = share.get(kind, 1 / 4 if kind == "sequence_sum" else 1 / 16 / 4)
    wanted = torch.where(mask & ~held, -advantages * ratio * weight, torch.zeros_like(ratio))
    torch.testing.assert_close(logprobs.grad, wanted, rtol=1e-12, atol=1e-15)
    assert held[mask].any() and result.clip_fraction.item() == pytest.approx(held[mask].double().mean().item())


@pytest.mark.parametrize("kind", AGGREGATES)
def test_halves_add_up_under_the_global_denominator(kind):
    (logprobs, old, advantages), mask, cu = batch(1)
    settings = {"aggregate": kind, "max_tokens": 16, "dual_clip": 2.0}
    whole = policy_loss(logprobs, old, advantages, mask, cu, **settings).loss
    denominator = divisor(kind, Denominator(tokens=int(mask.sum()), sequences=4))
    cut = int(cu[1])
    left, right = slice(0, cut), slice(cut, None)
    parts = [
        policy_loss(logprobs[p], old[p], advantages[p], mask[p], bounds, denominator=denominator, **settings).loss
        for p, bounds in ((left, cu[:2]), (right, cu[1:] - cut))
    ]
    torch.testing.assert_close(parts[0] + parts[1], whole, rtol=1e-12, atol=0)


def test_wild_values_stay_finite():
    logprobs = torch.tensor([-math.inf, 0.0, -1.0], requires_grad=True)
    old = torch.tensor([-math.inf, -500.0, -500.0])
    mask, cu = torch.tensor([False, True, True]), torch.tensor([0, 3])
    for advantage in (1.0, -1.0):
        loss = policy_loss(logprobs, old, torch.full((3,), advantage), mask, cu).loss
        (gradient,) = torch.autograd.grad(loss, logprobs)
        assert loss.isfinite() and gradient.isfinite().all()


def test_kl_by_hand():
    # d = logp - ref = ln 2 and -ln 2: k3 = e^-d + d - 1 = .5 + ln 2 - 1 and 2 - ln 2 - 1.
    ln2 = math.log(2)
    logprobs, ref = torch.tensor([-1.0, -1.0 - ln2]), torch.tensor([-1.0 - ln2, -1.0])
    wanted = {"k1": [ln2, -ln2], "k2": [ln2**2 / 2] * 2, "k3": [ln2 - 0.5, 1 - ln2]}
    for kind, values in wanted.items():
        torch.testing.assert_close(kl(logprobs, ref, kind), torch.tensor(values))
        assert kl(torch.tensor([-500.0]), torch.tensor([0.0]), kind).isfinite().all()


def test_kl_estimators_against_torch():
    # The expectation of k1 and k3 under the policy is the KL of the distributions, exactly.
    torch.manual_seed(0)
    policy, reference = torch.randn(2, 50, dtype=torch.float64).log_softmax(-1)
    exact = torch.nn.functional.kl_div(reference, policy, log_target=True, reduction="sum")
    for kind in ("k1", "k3"):
        torch.testing.assert_close((policy.exp() * kl(policy, reference, kind)).sum(), exact)
    assert (kl(policy, reference, "k3") >= 0).all()


def test_kl_gradients_are_those_the_note_says():
    # On average over the policy, as losses: k1 has no gradient, k2 that of KL(policy || reference), k3 the other KL's.
    torch.manual_seed(1)
    logits, reference = torch.randn(2, 6, dtype=torch.float64)
    logits, reference = logits.requires_grad_(), reference.log_softmax(-1)

    def gradient(value):
        return torch.autograd.grad(value, logits)[0]

    def estimated(kind):
        logprobs = logits.log_softmax(-1)
        return gradient((logprobs.exp().detach() * kl(logprobs, reference, kind)).sum())

    policy = logits.log_softmax(-1)
    wanted = {
        "k1": torch.zeros(6, dtype=torch.float64),
        "k2": gradient((policy.exp() * (policy - reference)).sum()),
        "k3": gradient((reference.exp() * (reference - logits.log_softmax(-1))).sum()),
    }
    for kind, value in wanted.items():
        torch.testing.assert_close(estimated(kind), value, rtol=0, atol=1e-14)


def test_adaptive_coefficient_by_hand():
    # Target 6, horizon 1000, 100 responses. KL 6.6: error .1, times 1 + .1 * .1. KL 60 and 0 are held at +-.2.
    coefficient = AdaptiveCoefficient(0.5, 6.0, 1000.0)
    coefficient.update(6.6, 100)
    assert coefficient.value == pytest.approx(0.5 * 1.01)
    coefficient.update(60.0, 100)
    assert coefficient.value == pytest.approx(0.5 * 1.01 * 1.02)
    coefficient.update(0.0, 100)
    assert coefficient.value == pytest.approx(0.5 * 1.01 * 1.02 * 0.98)
    again = AdaptiveCoefficient(0.5, 6.0, 1000.0)
    again.restore(coefficient.state())
    assert again.value == coefficient.value
    fixed = AdaptiveCoefficient(0.5, None, 1000.0)
    fixed.update(60.0, 100)
    assert fixed.value == 0.5

"""GSPO, CISPO, SAPO, GPG, a loss of one's own, and the critic's, against numbers worked by hand and other ways to say
the same."""

import math

import pytest
import torch

from yatt.algorithm.loss import LOSSES, LossSettings, LossTokens, policy_loss, value_loss
from yatt.config.algorithms import RECIPES


def column(*values):
    return torch.tensor(values, dtype=torch.float64)


def one(kind, ratio, advantage, **settings):
    """Loss, clip fraction and d loss / d logp of a single trained token, whose old logp is -1."""
    logprobs = column(0, -1 + math.log(ratio)).requires_grad_()
    mask, cu = torch.tensor([False, True]), torch.tensor([0, 2])
    result = policy_loss(logprobs, column(0, -1), column(advantage, advantage), mask, cu, kind=kind, **settings)
    result.loss.backward()
    assert logprobs.grad[0] == 0
    return result.loss.item(), result.clip_fraction.item(), logprobs.grad[1].item()


@pytest.mark.parametrize(
    ("ratio", "advantage", "weight", "clipped"),
    [
        (1.0, 2.0, 1.0, 0),
        (1.2, 2.0, 1.2, 0),
        (1.5, 2.0, 1.28, 1),  # held at 1.28, and still pushed: -A 1.28
        (1.5, -2.0, 1.28, 1),  # whatever the sign of A
        (0.3, -2.0, 0.5, 1),  # clip_low .5
    ],
)
def test_cispo_by_hand(ratio, advantage, weight, clipped):
    # -A w logp with logp = ln r - 1, and w without gradient.
    found = one("cispo", ratio, advantage, clip_low=0.5, clip_high=0.28)
    assert found == pytest.approx((-advantage * weight * (math.log(ratio) - 1), clipped, -advantage * weight))


def test_cispo_of_the_recipe_has_no_lower_bound():
    settings = {name: RECIPES["cispo"].defaults[name] for name in ("clip_low", "clip_high")}
    assert one("cispo", 1e-6, 1.0, **settings)[1:] == pytest.approx((0, -1e-6))


@pytest.mark.parametrize("advantage", [2.0, -2.0, 0.0])
@pytest.mark.parametrize("ratio", [0.1, 0.7, 1.0, 2.0, 6.0])
def test_sapo_gradient_is_the_papers(ratio, advantage):
    # Weight sech^2(tau (r - 1) / 2) on the policy gradient A r (arXiv 2511.20347): another form of 4 p (1 - p).
    tau = 1.0 if advantage > 0 else 1.05
    loss, clipped, gradient = one("sapo", ratio, advantage)
    assert gradient == pytest.approx(-advantage * ratio / math.cosh(tau * (ratio - 1) / 2) ** 2, abs=1e-12)
    assert loss == pytest.approx(-advantage * 4 / tau / (1 + math.exp(-tau * (ratio - 1))), abs=1e-12)
    assert clipped == 0


def test_sapo_by_hand():
    # On policy: p = 1/2, loss -A 4/tau 1/2 = -2 A / tau, gradient -A, whatever tau.
    assert one("sapo", 1.0, 3.0, tau_positive=2.0) == pytest.approx((-3.0, 0, -3.0))
    assert one("sapo", 1.0, -3.0, tau_negative=4.0) == pytest.approx((1.5, 0, 3.0))
    # r = 1 + ln 3, tau 1: p = 3/4, loss -A 3, gradient -A r 4 3/16.
    ratio = 1 + math.log(3)
    assert one("sapo", ratio, 1.0) == pytest.approx((-3.0, 0, -0.75 * ratio))


def test_gpg_by_hand():
    # -A logp, however far the ratio: logp = ln 9 - 1.
    assert one("gpg", 9.0, 2.0, clip_high=0.1) == pytest.approx((-2 * (math.log(9) - 1), 0, -2.0))


# Three sequences: trained ratios 2, 8 (geometric mean 4); 1.21, 1 (mean 1.1); and none trained.
CU = torch.tensor([0, 3, 6, 7])
MASK = torch.tensor([False, True, True, False, True, True, False])
LOG_RATIOS = column(9, math.log(2), math.log(8), 9, math.log(1.21), 0, 9)


def gspo(advantages, **settings):
    logprobs = (LOG_RATIOS - 1).requires_grad_()
    result = policy_loss(logprobs, column(*[-1] * 7), advantages, MASK, CU, kind="gspo", **settings)
    result.loss.backward()
    return result.loss.item(), result.clip_fraction.item(), logprobs.grad[MASK].tolist()


def test_gspo_by_hand():
    # A = -1 and 1: losses 4 and -1.1 (within .2), mean over sequences 1.45. d / d logp_t = -A s / 2 tokens / 2
    # sequences.
    advantages = column(-1, -1, -1, 1, 1, 1, 1)
    loss, clipped, gradient = gspo(advantages, aggregate="sequence_mean")
    assert (loss, clipped) == pytest.approx((1.45, 0))
    assert gradient == pytest.approx([1.0, 1.0, -1.1 / 4, -1.1 / 4])
    # A = 1 for both: s = 4 is held at 1.05, and with it both its tokens; so is 1.1.
    loss, clipped, gradient = gspo(advantages.abs(), aggregate="sequence_mean", clip_high=0.05)
    assert (loss, clipped, gradient) == (pytest.approx(-1.05), 1.0, [0, 0, 0, 0])
    # A = -1 and clip_low: 1.1 is above, free.
    assert gspo(-advantages.abs(), clip_high=0.05)[1] == 0


@pytest.mark.parametrize("seed", range(3))
def test_gspo_is_the_sequence_loss(seed):
    # The objective as it is written: J = mean over sequences of min(s A, clip(s) A), s differentiated as a whole.
    generator = torch.Generator().manual_seed(seed)
    lengths, per_sequence = [4, 7, 3, 6], torch.randn(4, generator=generator, dtype=torch.float64)
    cu = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()])
    mask = torch.rand(20, generator=generator) < 0.7
    mask[cu[:-1]], mask[cu[:-1] + 1] = False, True
    old = torch.randn(20, generator=generator, dtype=torch.float64) - 2
    logprobs = (old + 0.2 * torch.randn(20, generator=generator, dtype=torch.float64)).requires_grad_()
    advantages = per_sequence.repeat_interleave(torch.tensor(lengths))
    settings = dict(clip_low=0.03, clip_high=0.04)
    found = policy_loss(logprobs, old, advantages, mask, cu, kind="gspo", aggregate="sequence_mean", **settings).loss
    terms = []
    for i, (start, stop) in enumerate(zip(cu[:-1].tolist(), cu[1:].tolist(), strict=True)):
        own = mask[start:stop]
        s = (logprobs[start:stop] - old[start:stop])[own].mean().exp()
        terms.append(torch.minimum(s * per_sequence[i], s.clamp(0.97, 1.04) * per_sequence[i]))
    wanted = -torch.stack(terms).mean()
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    (mine,), (theirs,) = torch.autograd.grad(found, logprobs), torch.autograd.grad(wanted, logprobs)
    torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


def test_weights_multiply_token_losses_and_have_no_gradient():
    logprobs, weights = column(0, -1, -1).requires_grad_(), column(5, 0.5, 2).requires_grad_()
    mask, cu = torch.tensor([False, True, True]), torch.tensor([0, 3])
    loss = policy_loss(logprobs, logprobs.detach(), column(9, 1, 3), mask, cu, weights=weights).loss
    loss.backward()
    # (-1 * .5 - 3 * 2) / 2.
    assert loss.item() == -3.25
    assert logprobs.grad.tolist() == [0, -0.25, -3.0] and weights.grad is None


def test_a_loss_of_ones_own():
    def squared(tokens: LossTokens, settings: LossSettings):
        """Pull the ratio towards 1 + clip_high."""
        return (tokens.ratio - 1 - settings.clip_high).square(), tokens.ratio > 2

    # (3 - 1.5)^2 = 2.25, gradient 2 * 1.5 * 3; over 2.
    assert one(squared, 3.0, 0.0, clip_high=0.5) == pytest.approx((2.25, 1, 9.0))


def test_a_loss_sees_nothing_outside_the_mask():
    mask, wild = torch.tensor([False, True, True]), column(math.nan, -1, -2)

    def seen(tokens: LossTokens, settings: LossSettings):
        for number in (tokens.logprobs, tokens.log_ratio, tokens.advantages):
            assert number[0] == 0 and number[1:].isfinite().all()
        return tokens.logprobs, ~tokens.mask

    # (-1 - 2) / 2; where only what is not trained is called clipped, nothing is.
    found = policy_loss(wild, wild, wild, mask, torch.tensor([0, 3]), kind=seen)
    assert found.loss.item() == -1.5 and found.clip_fraction.item() == 0


def test_every_recipe_has_its_loss():
    assert {recipe.loss for recipe in RECIPES.values() if recipe.reinforces} <= set(LOSSES)


@pytest.mark.parametrize("kind", LOSSES)
def test_wild_values_stay_finite(kind):
    logprobs = torch.tensor([-math.inf, 0.0, -1.0, -600.0], requires_grad=True)
    old = torch.tensor([-math.inf, -500.0, -500.0, -1.0])
    mask, cu = torch.tensor([False, True, True, True]), torch.tensor([0, 4])
    for advantage in (1.0, -1.0):
        advantages = torch.tensor([math.nan, *[advantage] * 3])
        loss = policy_loss(logprobs, old, advantages, mask, cu, kind=kind).loss
        (gradient,) = torch.autograd.grad(loss, logprobs)
        assert loss.isfinite() and gradient.isfinite().all() and gradient[0] == 0


def value(new, old, target, clip):
    values = column(math.nan, new).requires_grad_()
    mask, cu = torch.tensor([False, True]), torch.tensor([0, 2])
    result = value_loss(values, column(math.nan, old), column(math.nan, target), mask, cu, clip=clip)
    result.loss.backward()
    assert values.grad[0] == 0
    return result.loss.item(), result.clip_fraction.item(), values.grad[1].item()


@pytest.mark.parametrize(
    ("new", "old", "target", "clip", "wanted"),
    [
        (1.0, 0.5, 2.0, None, (0.5, 0, -1.0)),  # (1 - 2)^2 / 2, gradient V - R
        (1.0, 0.5, 2.0, 0.2, (0.845, 1, 0.0)),  # held at .7: 1.3^2 / 2, no gradient: it moved far enough
        (0.6, 0.5, 2.0, 0.2, (0.98, 0, -1.4)),  # within the bound: 1.4^2 / 2
        (1.0, 3.0, 2.0, 0.2, (0.5, 0, -1.0)),  # held at 2.8: .64 < 1, so the free square counts
        (3.0, 0.0, 2.0, 0.2, (1.62, 1, 0.0)),  # past the target: held at .2: 1.8^2 / 2
    ],
)
def test_value_loss_by_hand(new, old, target, clip, wanted):
    assert value(new, old, target, clip) == pytest.approx(wanted)


def test_value_loss_is_divided_like_the_policys():
    values, zeros = column(9, 1, 3, 9, 2), column(0, 0, 0, 0, 0)
    mask, cu = torch.tensor([False, True, True, False, True]), torch.tensor([0, 3, 5])
    # Halved squares .5, 4.5 and 2.
    assert value_loss(values, values, zeros, mask, cu, clip=0.2).loss.item() == pytest.approx(7 / 3)
    found = value_loss(values, values, zeros, mask, cu, clip=None, aggregate="sequence_mean", denominator=4)
    assert found.loss.item() == pytest.approx((2.5 + 2) / 4)

"""Preference losses, against numbers worked by hand."""

import math

import torch

from yatt.algorithm.packed import sequence_sums
from yatt.algorithm.preference import bradley_terry, dpo, ipo, kto, pair_losses

LN2 = math.log(2)


def column(*values):
    return torch.tensor(values, dtype=torch.float64)


def close(found, *wanted):
    torch.testing.assert_close(found, column(*wanted), rtol=0, atol=1e-12)


def test_sequence_sums_by_hand():
    values, mask = column(9, 1, 2, 9, 4, math.nan), torch.tensor([0, 1, 1, 0, 1, 0]).bool()
    close(sequence_sums(values, mask, torch.tensor([0, 3, 5, 6])), 3, 4, 0)


def test_bradley_terry_by_hand():
    # sigmoid(ln 3) = 3 / 4; a margin of ln 3 leaves sigmoid(0) = 1 / 2; the other way round, sigmoid(-ln 3) = 1 / 4.
    three = math.log(3)
    found = bradley_terry(column(three, three, 0), column(0, 0, three), column(0, three, 0))
    close(found, math.log(4 / 3), LN2, math.log(4))


def test_dpo_by_hand():
    # beta .5, h = 2 ln 3: beta h = ln 3, sigmoid 3 / 4. h = 0: 1 / 2.
    h = 2 * math.log(3)
    close(dpo(column(h, 1), column(0, 1), beta=0.5), math.log(4 / 3), LN2)
    # cDPO with .1: .9 ln(4 / 3) + .1 ln 4, and ln 2 whatever the share.
    smoothed = dpo(column(h, 1), column(0, 1), beta=0.5, label_smoothing=0.1)
    close(smoothed, 0.9 * math.log(4 / 3) + 0.1 * math.log(4), LN2)


def test_dpo_gradient_is_that_of_the_paper():
    # d / d chosen = -beta sigmoid(-beta h), and the rejected one's is its negative (arXiv 2305.18290, section 4).
    chosen, rejected = column(0.3, -2.0).requires_grad_(), column(-0.4, 1.0).requires_grad_()
    dpo(chosen, rejected, beta=0.2).sum().backward()
    wanted = [-0.2 / (1 + math.exp(0.2 * 0.7)), -0.2 / (1 + math.exp(0.2 * -3))]
    close(chosen.grad, *wanted)
    close(rejected.grad, *(-w for w in wanted))


def test_cdpo_is_least_where_the_odds_are_those_of_the_noise():
    # With share e the minimum is at sigmoid(beta h) = 1 - e: for .2 and beta 1 at h = ln 4.
    h = column(math.log(4)).requires_grad_()
    dpo(h, column(0.0), beta=1.0, label_smoothing=0.2).sum().backward()
    close(h.grad, 0)


def test_ipo_by_hand():
    # beta .25: 1 / (2 beta) = 2. h = 3 - 1 = 2 -> 0; h = 0 -> 4; h = -1 -> 9.
    close(ipo(column(3, 0, -1), column(1, 0, 0), beta=0.25), 0, 4, 9)


def test_kto_by_hand():
    # beta 1, z = ln 2, h = ln 6. Desirable: sigmoid(ln 3) = 3 / 4, so 1 / 4. Undesirable: sigmoid(-ln 3) = 1 / 4, so
    # 3 / 4. Weights 2 and 1 / 3: 1 / 2 and 1 / 4. At h = z both are w / 2.
    ratios, labels = column(math.log(6), math.log(6), LN2, LN2), torch.tensor([True, False, True, False])
    found = kto(ratios, column(LN2)[0], labels, beta=1.0, desirable_weight=2.0, undesirable_weight=1 / 3)
    close(found, 1 / 2, 1 / 4, 1, 1 / 6)


def test_kto_pushes_labels_apart_and_not_through_the_reference_point():
    ratios, z = column(0.5, 0.5).requires_grad_(), column(0.2).requires_grad_()
    kto(ratios, z[0], torch.tensor([True, False]), beta=0.1).sum().backward()
    slope = 0.1 * torch.sigmoid(column(0.03)) * (1 - torch.sigmoid(column(0.03)))
    close(ratios.grad, -slope.item(), slope.item())
    assert z.grad is None


def test_pair_losses_by_name():
    ratios = column(1, -1), column(0, 2)  # h = 1, -3
    plain = [math.log(1 + math.exp(-0.1)), math.log(1 + math.exp(0.3))]
    reverse = [math.log(1 + math.exp(0.1)), math.log(1 + math.exp(-0.3))]
    close(pair_losses(*ratios, kind="dpo", beta=0.1), *plain)
    smoothed = [0.75 * one + 0.25 * other for one, other in zip(plain, reverse, strict=True)]
    close(pair_losses(*ratios, kind="dpo", beta=0.1, label_smoothing=0.25), *smoothed)
    close(pair_losses(*ratios, kind="ipo", beta=0.1), 16, 64)  # (1 - 5)^2 and (-3 - 5)^2


def test_far_pairs_stay_finite():
    for loss in (dpo, ipo):
        chosen = column(-1e4).requires_grad_()
        loss(chosen, column(1e4), beta=0.5).sum().backward()
        assert chosen.grad.isfinite().all()

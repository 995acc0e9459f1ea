"""Weights between sampler and trainer, against numbers worked by hand."""

import math

import pytest
import torch

from yatt.algorithm.correction import LEVELS, MODES, weights

# Trained ratios of the first sequence: 1/2 and 4; of the second: 3. Its other token's ratio is no number at all.
CU = torch.tensor([0, 3, 6])
MASK = torch.tensor([False, True, True, False, True, False])
RATIOS = torch.tensor([7.0, 0.5, 4.0, 7.0, 3.0, math.nan], dtype=torch.float64)
SAMPLED = torch.full((6,), -1.0, dtype=torch.float64)


@pytest.mark.parametrize(
    ("level", "mode", "wanted"),
    [
        # low .6, high 2.5
        ("token", "truncate", [0.6, 2.5, 2.5]),
        ("token", "mask", [0, 0, 0]),
        ("token", "icepop", [0, 0, 0]),
        ("token", "reject", [0, 0, 0]),
        # Products 1/2 * 4 = 2, and 3.
        ("sequence", "truncate", [2, 2, 2.5]),
        ("sequence", "mask", [2, 2, 0]),
        ("sequence", "icepop", [2, 2, 0]),
        ("sequence", "reject", [1, 1, 0]),
        # Geometric means sqrt(2), and 3.
        ("geometric", "truncate", [math.sqrt(2), math.sqrt(2), 2.5]),
        ("geometric", "mask", [math.sqrt(2), math.sqrt(2), 0]),
        ("geometric", "icepop", [math.sqrt(2), math.sqrt(2), 0]),
        ("geometric", "reject", [1, 1, 0]),
    ],
)
def test_weights_by_hand(level, mode, wanted):
    old = (SAMPLED + RATIOS.log()).requires_grad_()
    found = weights(old, SAMPLED, MASK, CU, level=level, mode=mode, low=0.6, high=2.5)
    assert not found.requires_grad
    torch.testing.assert_close(found[MASK], torch.tensor(wanted, dtype=torch.float64), rtol=0, atol=1e-12)
    assert torch.equal(found[~MASK], torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize(
    ("mode", "wanted"), [("truncate", [0.5, 3.5, 3]), ("mask", [0.5, 0, 3]), ("reject", [1, 0, 1])]
)
def test_without_a_lower_bound(mode, wanted):
    found = weights(SAMPLED + RATIOS.log(), SAMPLED, MASK, CU, level="token", mode=mode, low=0.0, high=3.5)
    torch.testing.assert_close(found[MASK], torch.tensor(wanted, dtype=torch.float64), rtol=0, atol=1e-12)


def test_off_is_one_everywhere():
    found = weights(SAMPLED + RATIOS.log(), SAMPLED, MASK, CU, level="none", mode="mask", low=0.9, high=1.1)
    assert torch.equal(found, torch.ones(6, dtype=torch.float64))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("mode", MODES)
def test_no_gap_is_no_correction(level, mode):
    found = weights(SAMPLED, SAMPLED, MASK, CU, level=level, mode=mode, low=0.5, high=2.0)
    assert torch.equal(found, torch.ones(6, dtype=torch.float64))


def test_far_logprobs_stay_finite():
    # 2000 tokens of ratio e: the product is held at e^20, where it would overflow.
    old, mask, cu = torch.zeros(2000), torch.ones(2000, dtype=torch.bool), torch.tensor([0, 2000])
    found = weights(old, old - 1, mask, cu, level="sequence", mode="truncate", low=0.0, high=1e30)
    assert found[0].item() == pytest.approx(math.exp(20))
    found = weights(old - 1, old, mask, cu, level="sequence", mode="truncate", low=0.0, high=2.0)
    assert 0 < found[0].item() < 1e-8

"""Losses of preference training: one number per pair, or per labelled response.

The log ratio of a response is log policy - log reference, summed over its trained tokens, as published, so that a long
response counts with all its tokens; `algorithm.average_logprobs` divides it by their number before it comes here.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def bradley_terry(chosen: Tensor, rejected: Tensor, margin: Tensor) -> Tensor:
    """-log sigmoid(r_chosen - r_rejected - margin) of each pair's rewards: [P], [P], [P] -> [P].

    Ouyang et al. 2022 (arXiv 2203.02155, eq. 1); the margin: Touvron et al. 2023 (2307.09288, eq. 2).
    """
    return -logsigmoid(chosen - rejected - margin)


def dpo(chosen_ratios: Tensor, rejected_ratios: Tensor, *, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """-(1 - e) log sigmoid(beta h) - e log sigmoid(-beta h), h the chosen log ratio less the rejected one: [P] -> [P].

    Rafailov et al. 2023 (arXiv 2305.18290, eq. 7). e, `label_smoothing`, is the chance that a preference is the wrong
    way round (cDPO: E. Mitchell, A note on DPO with noisy preferences, 2023).
    """
    logits = beta * (chosen_ratios - rejected_ratios)
    return -(1 - label_smoothing) * logsigmoid(logits) - label_smoothing * logsigmoid(-logits)


def ipo(chosen_ratios: Tensor, rejected_ratios: Tensor, *, beta: float) -> Tensor:
    """(h - 1 / (2 beta))^2, h as in `dpo`: [P] -> [P]. Azar et al. 2023 (arXiv 2310.12036, eq. 17, its tau is beta)."""
    return (chosen_ratios - rejected_ratios - 1 / (2 * beta)).square()


def kto(
    ratios: Tensor,
    reference_point: Tensor,
    desirable: Tensor,
    *,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:
    """w (1 - sigmoid(beta (h - z))) of a desirable response, w (1 - sigmoid(beta (z - h))) of another: [S] -> [S].

    h are its log ratios, `desirable` [S] bool, w the weight of its kind. `reference_point` z (scalar, no gradient) is
    the KL to the reference, estimated as max(0, mean log ratio of responses to other prompts); it is given as it is to
    count. Ethayarajh et al. 2024 (arXiv 2402.01306, eq. 8).
    """
    good, gain = desirable.bool(), beta * (ratios - reference_point.detach())
    weight = torch.where(good, torch.full_like(gain, desirable_weight), undesirable_weight)
    return weight * torch.sigmoid(torch.where(good, -gain, gain))


def pair_losses(
    chosen_ratios: Tensor, rejected_ratios: Tensor, *, kind: str, beta: float, label_smoothing: float = 0.0
) -> Tensor:
    """`dpo` or `ipo` of each pair, by name: [P], [P] -> [P]. Only `dpo` has `label_smoothing`."""
    smoothing = {"label_smoothing": label_smoothing} if kind == "dpo" else {}
    return PAIR_LOSSES[kind](chosen_ratios, rejected_ratios, beta=beta, **smoothing)


PAIR_LOSSES: dict[str, Callable[..., Tensor]] = {"dpo": dpo, "ipo": ipo}

"""Weights against the gap between the sampler, which drew the tokens, and the trainer, whose gradient they make.

An engine and a trainer give the same token of the same weights slightly different probabilities, so that what was drawn
is off-policy even before the first update (Yao et al., Your efficient RL framework secretly brings you off-policy RL
training, 2025). A weight multiplies its token's loss. A token of weight 0 still counts in the loss's denominator.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from yatt.algorithm.kl import MAX_LOG_RATIO
from yatt.algorithm.packed import sequence_ids, sequence_means, sequence_sums


def token(log_ratio: Tensor, mask: Tensor, cu_seqlens: Tensor) -> Tensor:
    """log pi_trainer - log pi_sampler of the token itself."""
    return log_ratio


def sequence(log_ratio: Tensor, mask: Tensor, cu_seqlens: Tensor) -> Tensor:
    """Its sum over the sequence's trained tokens: of the product of their ratios. Unbiased, of large variance (Liu et
    al., When speed kills stability, 2025)."""
    return sequence_sums(log_ratio, mask, cu_seqlens)[sequence_ids(cu_seqlens, len(mask))]


def geometric(log_ratio: Tensor, mask: Tensor, cu_seqlens: Tensor) -> Tensor:
    """Its mean over them: of their ratios' geometric mean, which does not grow with length (the same source)."""
    return sequence_means(log_ratio, mask, cu_seqlens)[sequence_ids(cu_seqlens, len(mask))]


def truncate(ratio: Tensor, low: float, high: float) -> Tensor:
    """min(max(ratio, low), high); with low 0, min(ratio, high): truncated importance sampling (TIS, Yao et al.)."""
    return ratio.clamp(low, high)


def mask(ratio: Tensor, low: float, high: float) -> Tensor:
    """The ratio where low <= ratio <= high, else 0: masked importance sampling (MIS, Liu et al.); per token and with
    both bounds, IcePop (Ling team, arXiv 2510.18855)."""
    return ratio * reject(ratio, low, high)


def reject(ratio: Tensor, low: float, high: float) -> Tensor:
    """1 where low <= ratio <= high, else 0: a rejection band, which leaves out and does not weigh (Liu et al.)."""
    return ((ratio >= low) & (ratio <= high)).to(ratio.dtype)


LEVELS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "token": token,
    "sequence": sequence,
    "geometric": geometric,
}
MODES: dict[str, Callable[[Tensor, float, float], Tensor]] = {
    "truncate": truncate,
    "mask": mask,
    "icepop": mask,
    "reject": reject,
}


def weights(
    old_logprobs: Tensor,
    rollout_logprobs: Tensor,
    loss_mask: Tensor,
    cu_seqlens: Tensor,
    *,
    level: str,
    mode: str,
    low: float,
    high: float,
) -> Tensor:
    """The weight of each token's loss [T]: what MODES[mode] makes of exp(LEVELS[level]), the logarithm held within
    +-20; 1 outside `loss_mask`, and no gradient anywhere. `level` "none" gives 1 everywhere.

    `old_logprobs` are the trainer's before the update, `rollout_logprobs` the sampler's, both [T] and packed.
    """
    if level == "none":
        return torch.ones_like(old_logprobs)
    trained = loss_mask.bool()
    log_ratio = (old_logprobs - rollout_logprobs).detach().double().masked_fill(~trained, 0.0)
    ratio = LEVELS[level](log_ratio, trained, cu_seqlens).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    return MODES[mode](ratio, low, high).masked_fill(~trained, 1.0).to(old_logprobs.dtype)

"""Token advantages: one number per trained token, from rewards along its sequence.

Columns are packed (see `packed.py`). Only trained tokens take part: those outside `loss_mask` are passed over, so that
a later trained token follows the earlier one directly; there, results are 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from yatt.algorithm.packed import discounted, followers, later, sequence_ids
from yatt.config.schema import AlgorithmConfig

# Deviations below this share of the mean, or what the type rounds to, are rounding: such values count as equal.
EQUAL = 1e-12


def token_rewards(
    rewards: Tensor,
    loss_mask: Tensor,
    cu_seqlens: Tensor,
    penalty: Tensor | None = None,
    turn_rewards: Tensor | None = None,
) -> Tensor:
    """Each sequence's reward [S] at its last trained token, less `penalty` [T] at every trained one: [T].

    Of a reward, `turn_rewards` [T] are the parts that came for a turn, at the turn's last token: there they are, and
    what is left of the reward at the last one.

    With coefficient * KL as the penalty this is the reward of Ouyang et al. 2022 (arXiv 2203.02155, eq. 2).
    """
    mask = loss_mask.bool()
    ids, last = sequence_ids(cu_seqlens, len(mask))[mask], followers(mask, cu_seqlens) == 0
    values = torch.where(last, rewards[ids], 0.0)
    if turn_rewards is not None:
        early = turn_rewards[mask].to(values)
        values = values + early - torch.where(last, torch.zeros_like(rewards).index_add(0, ids, early)[ids], 0.0)
    return _spread(values if penalty is None else values - penalty[mask], mask, rewards)


def gae(
    token_rewards: Tensor, values: Tensor, loss_mask: Tensor, cu_seqlens: Tensor, *, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """A_t = sum_k (gamma lam)^k d_(t + k), d_t = r_t + gamma V_(t + 1) - V_t; after the last trained token V is 0.

    Rewards and values [T] give advantages [T], and the critic's targets A + V [T]. Schulman et al. 2015
    (arXiv 1506.02438, eq. 16).
    """
    mask = loss_mask.bool()
    after, value = followers(mask, cu_seqlens), values[mask].double()
    delta = token_rewards[mask].double() + gamma * later(value, after) - value
    advantages = discounted(delta, after, gamma * lam)
    return _spread(advantages, mask, values), _spread(advantages + value, mask, values)


def reinforce_plus_plus(
    token_rewards: Tensor,
    loss_mask: Tensor,
    cu_seqlens: Tensor,
    *,
    gamma: float,
) -> Tensor:
    """A_t = sum_k gamma^k r_(t + k), the discounted reward to go [T]; `whiten` follows, over all of a step's tokens.

    Hu et al. 2025 (arXiv 2501.03262).
    """
    mask = loss_mask.bool()
    after, rewards = followers(mask, cu_seqlens), token_rewards[mask].double()
    return _spread(discounted(rewards, after, gamma), mask, token_rewards)


def distillation(teacher_logprobs: Tensor, logprobs: Tensor) -> Tensor:
    """A_t = log teacher - log policy of the token that the policy drew [T]: on average minus the reverse KL there.

    Each token is its own outcome: nothing later counts (a discount of 0). Agarwal et al. 2023 (GKD, arXiv 2306.13649,
    with all data on-policy and reverse KL); K. Lu, On-Policy Distillation, Thinking Machines Lab 2025.
    """
    return teacher_logprobs - logprobs


def _itself(sums: Tensor) -> Tensor:
    return sums


def whiten(x: Tensor, mask: Tensor, *, total: Callable[[Tensor], Tensor] = _itself) -> Tensor:
    """(x - mean) / sample deviation (n - 1) over the values under `mask`, 0 elsewhere; shapes as they are.

    `total` adds a small tensor up over replicas (waiting for them all): then mean and deviation are everyone's. It is
    called twice, whatever the values. All-equal values give 0, and so does a single one.
    """
    mask = mask.bool()
    kept = x.double().masked_fill(~mask, 0.0)
    added, count = total(torch.stack([kept.sum(), mask.sum().double()])).unbind()
    mean = added / count.clamp(min=1)
    deviation = (kept - mean).masked_fill(~mask, 0.0)
    variance = total(deviation.square().sum()[None])[0] / (count - 1).clamp(min=1)
    rounding = mean * max(EQUAL, torch.finfo(x.dtype).eps)
    scale = torch.where(variance > rounding.square(), variance.rsqrt(), 0.0)
    return (deviation * scale).to(x.dtype)


def _spread(values: Tensor, mask: Tensor, like: Tensor) -> Tensor:
    """Values of trained tokens [n] at their places, 0 elsewhere [T], in the type of `like`."""
    return (
        torch.zeros(len(mask), dtype=torch.float64, device=mask.device).masked_scatter(mask, values.double()).to(like)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenOutcomes:
    """The input of token estimators, packed: rewards at tokens, the policy's logprobs before the update, a critic's
    values and a teacher's logprobs. Those that the recipe or its settings do not ask for are None."""

    token_rewards: Tensor
    loss_mask: Tensor
    cu_seqlens: Tensor
    old_logprobs: Tensor | None = None
    values: Tensor | None = None
    teacher_logprobs: Tensor | None = None


TokenEstimator = Callable[[TokenOutcomes, AlgorithmConfig], tuple[Tensor, Tensor | None]]
"""(the outcomes along S sequences, the settings) -> advantages [T], and the critic's targets [T] if it has one."""


def _gae(o: TokenOutcomes, config: AlgorithmConfig) -> tuple[Tensor, Tensor]:
    assert o.values is not None, "gae needs a critic"
    return gae(o.token_rewards, o.values, o.loss_mask, o.cu_seqlens, gamma=config.gamma, lam=config.gae_lambda)


def _reward_to_go(o: TokenOutcomes, config: AlgorithmConfig) -> tuple[Tensor, None]:
    return reinforce_plus_plus(o.token_rewards, o.loss_mask, o.cu_seqlens, gamma=config.gamma), None


def _distillation(o: TokenOutcomes, config: AlgorithmConfig) -> tuple[Tensor, None]:
    assert o.teacher_logprobs is not None and o.old_logprobs is not None, "distillation compares with a teacher"
    return distillation(o.teacher_logprobs, o.old_logprobs).masked_fill(~o.loss_mask.bool(), 0.0), None


# The names are TOKEN_ADVANTAGES. None is whitened: that takes all of a step's tokens. The rewards of the one with a
# baseline come less their group's mean.
TOKEN_ESTIMATORS: dict[str, TokenEstimator] = {
    "gae": _gae,
    "reinforce_plus_plus": _reward_to_go,
    "reinforce_plus_plus_baseline": _reward_to_go,
    "distillation": _distillation,
}

"""Losses over packed tokens, and the one place where token losses become a number.

Columns are `[T]`, sequences lie end to end, `cu_seqlens` `[S + 1]` holds their bounds and ends with T.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from yatt.algorithm.kl import MAX_LOG_RATIO
from yatt.errors import ConfigError
from yatt.types import Denominator


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyLoss:
    """`loss` (scalar, differentiable) and the share of this batch's trained tokens whose ratio is clipped."""

    loss: Tensor
    clip_fraction: Tensor


def _token_mean(sums: Tensor, counts: Tensor, max_tokens: int | None) -> tuple[Tensor, Tensor]:
    return sums.sum(), counts.sum()


def _sequence_mean(sums: Tensor, counts: Tensor, max_tokens: int | None) -> tuple[Tensor, Tensor]:
    return (sums / counts.clamp(min=1)).sum(), (counts > 0).sum()


def _sequence_sum(sums: Tensor, counts: Tensor, max_tokens: int | None) -> tuple[Tensor, Tensor]:
    return sums.sum(), (counts > 0).sum()


def _fixed_length(sums: Tensor, counts: Tensor, max_tokens: int | None) -> tuple[Tensor, Tensor]:
    if not max_tokens:
        raise ConfigError(f"max_tokens={max_tokens}: aggregate=fixed_length divides by it; pass the response limit")
    return sums.sum() / max_tokens, (counts > 0).sum()


AGGREGATES = {
    "token_mean": _token_mean,
    "sequence_mean": _sequence_mean,
    "sequence_sum": _sequence_sum,
    "fixed_length": _fixed_length,
}


def divisor(kind: str, denominator: Denominator) -> int:
    """Which of an update's global counts is `aggregate`'s denominator under this kind; 1 where there is none."""
    return max(1, denominator.tokens if kind == "token_mean" else denominator.sequences)


def aggregate(
    values: Tensor,
    loss_mask: Tensor,
    cu_seqlens: Tensor,
    kind: str,
    max_tokens: int | None = None,
    denominator: float | None = None,
) -> Tensor:
    """One number from token values [T] where `loss_mask` [T] is true: a sum, divided once.

    token_mean: all tokens / number of trained tokens. The others: per sequence the token mean (sequence_mean), the sum
    (sequence_sum) or the sum / max_tokens (fixed_length), / number of sequences. A sequence without trained tokens does
    not count. `denominator` replaces the batch's own number of tokens or sequences, so that the losses of the parts of
    a batch add up to the loss of the whole. A batch with no trained token gives 0, still differentiable.
    """
    mask = loss_mask.bool()
    lengths = cu_seqlens.diff()
    ids = torch.repeat_interleave(torch.arange(len(lengths), device=values.device), lengths, output_size=len(values))
    zeros = torch.zeros(len(lengths), dtype=torch.float64, device=values.device)
    # Sums in float64: they do not depend on how tokens are split over micro-batches, nor on the order of atomics.
    sums = zeros.index_add(0, ids, values.masked_fill(~mask, 0.0).double())
    counts = zeros.index_add(0, ids, mask.double())
    total, own = AGGREGATES[kind](sums, counts, max_tokens)
    return (total / (own.clamp(min=1) if denominator is None else denominator)).to(values.dtype)


# The losses have a setting of the same name.
_aggregate = aggregate


def ppo(
    log_ratio: Tensor, advantages: Tensor, clip_low: float, clip_high: float, dual_clip: float | None
) -> tuple[Tensor, Tensor]:
    """Token losses [T] of PPO's clipped surrogate, and where a bound holds (no gradient) [T].

    max(-A r, -A clip(r, 1 - low, 1 + high)) (arXiv 1707.06347; low != high: 2503.14476), and where A < 0 at most
    -A dual_clip (arXiv 1912.09729, eq. 5). The log ratio is capped at 20.
    """
    ratio = log_ratio.clamp(max=MAX_LOG_RATIO).exp()
    free = -advantages * ratio
    bound = -advantages * ratio.clamp(1 - clip_low, 1 + clip_high)
    values, clipped = torch.maximum(free, bound), bound > free
    if dual_clip is not None:
        ceiling = -advantages * dual_clip
        capped = (advantages < 0) & (values > ceiling)
        values, clipped = torch.where(capped, ceiling, values), clipped | capped
    return values, clipped


LOSSES: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {"ppo": ppo}


def policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    loss_mask: Tensor,
    cu_seqlens: Tensor,
    *,
    kind: str = "ppo",
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
    aggregate: str = "token_mean",
    max_tokens: int | None = None,
    denominator: float | None = None,
) -> PolicyLoss:
    """The policy's loss on packed tokens: columns [T], of which those under `loss_mask` count, to a scalar.

    `aggregate`, `max_tokens` and `denominator` are those of the function `aggregate`. `clip_fraction` is over this
    batch's own trained tokens: weigh it by their number when batches are put together.
    """
    mask = loss_mask.bool()
    # Outside the mask columns may hold anything, infinities included: cut it off before exp.
    log_ratio = (logprobs - old_logprobs).masked_fill(~mask, 0.0)
    values, clipped = LOSSES[kind](log_ratio, advantages, clip_low, clip_high, dual_clip)
    loss = _aggregate(values, mask, cu_seqlens, aggregate, max_tokens, denominator)
    return PolicyLoss(loss=loss, clip_fraction=(clipped & mask).sum() / mask.sum().clamp(min=1))


def sft_loss(
    logprobs: Tensor,
    loss_mask: Tensor,
    cu_seqlens: Tensor,
    *,
    aggregate: str = "token_mean",
    max_tokens: int | None = None,
    denominator: float | None = None,
) -> Tensor:
    """Negative log-likelihood of the tokens under `loss_mask`, as a scalar; settings as in `policy_loss`."""
    return _aggregate(-logprobs, loss_mask, cu_seqlens, aggregate, max_tokens, denominator)

"""Losses over packed tokens, and the one place where token losses become a number.

Columns are `[T]`, sequences lie end to end, `cu_seqlens` `[S + 1]` holds their bounds and ends with T.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from yatt.algorithm.kl import MAX_LOG_RATIO
from yatt.algorithm.packed import sequence_ids, sequence_means, sequence_sums
from yatt.errors import ConfigError
from yatt.types import Denominator


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """`loss` (scalar, differentiable) and the share of this batch's trained tokens where a bound holds."""

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
    """Which of an update's global counts is the denominator of `to_scalar` under this kind; 1 where there is none."""
    return max(1, denominator.tokens if kind == "token_mean" else denominator.sequences)


def to_scalar(
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
    sums = sequence_sums(values, loss_mask, cu_seqlens)
    counts = sequence_sums(loss_mask, loss_mask, cu_seqlens)
    total, own = AGGREGATES[kind](sums, counts, max_tokens)
    return (total / (own.clamp(min=1) if denominator is None else denominator)).to(values.dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class LossTokens:
    """The input of a token loss: packed columns [T]; those of numbers are 0 outside `mask`. `log_ratio` is logp - old
    logp; gradients flow through it and through `logprobs`."""

    logprobs: Tensor
    log_ratio: Tensor
    advantages: Tensor
    mask: Tensor
    cu_seqlens: Tensor

    @property
    def ratio(self) -> Tensor:
        """Policy / old policy of each token, its logarithm capped at 20."""
        return self.log_ratio.clamp(max=MAX_LOG_RATIO).exp()


@dataclass(frozen=True, slots=True, kw_only=True)
class LossSettings:
    """The settings of section `algorithm` that token losses look at."""

    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float | None = None
    tau_positive: float = 1.0
    tau_negative: float = 1.05


TokenLoss = Callable[[LossTokens, LossSettings], tuple[Tensor, Tensor]]
"""Columns and settings -> token losses [T], and where a bound holds, [T] bool, which is only reported."""


def ppo(tokens: LossTokens, settings: LossSettings) -> tuple[Tensor, Tensor]:
    """max(-A r, -A clip(r, 1 - low, 1 + high)), and where A < 0 at most -A dual_clip.

    Schulman et al. 2017 (arXiv 1707.06347, eq. 7); low != high: 2503.14476; dual clip: 1912.09729, eq. 5.
    """
    values, clipped = _clipped(tokens.ratio, tokens.advantages, settings)
    if settings.dual_clip is not None:
        ceiling = -tokens.advantages * settings.dual_clip
        capped = (tokens.advantages < 0) & (values > ceiling)
        values, clipped = torch.where(capped, ceiling, values), clipped | capped
    return values, clipped


def gspo(tokens: LossTokens, settings: LossSettings) -> tuple[Tensor, Tensor]:
    """max(-A s, -A clip(s, 1 - low, 1 + high)), where s is the geometric mean of its sequence's ratios.

    As in GSPO-token, s has the value of the sequence's ratio and, at each token, the gradient of that token's logp:
    with one advantage per sequence, loss and gradient are those of GSPO. Zheng et al. 2025 (arXiv 2507.18071, eq. 7
    and 14).
    """
    means = sequence_means(tokens.log_ratio.detach(), tokens.mask, tokens.cu_seqlens).to(tokens.log_ratio.dtype)
    mean = means[sequence_ids(tokens.cu_seqlens, len(tokens.mask))]
    log_ratio = mean + tokens.log_ratio - tokens.log_ratio.detach()
    return _clipped(log_ratio.clamp(max=MAX_LOG_RATIO).exp(), tokens.advantages, settings)


def cispo(tokens: LossTokens, settings: LossSettings) -> tuple[Tensor, Tensor]:
    """-A logp * clip(r, 1 - low, 1 + high), the clipped ratio without gradient: no token is left out.

    MiniMax 2025 (arXiv 2506.13585, eq. 4 and 5); its lower bound is no bound, `clip_low` 1.
    """
    ratio = tokens.ratio.detach()
    bounded = ratio.clamp(1 - settings.clip_low, 1 + settings.clip_high)
    return -tokens.advantages * bounded * tokens.logprobs, bounded != ratio


def sapo(tokens: LossTokens, settings: LossSettings) -> tuple[Tensor, Tensor]:
    """-A * 4 / tau * sigmoid(tau (r - 1)), tau `tau_positive` where A > 0 and `tau_negative` elsewhere; nothing clips.

    Its gradient is -A r 4 p (1 - p), p = sigmoid(tau (r - 1)), times that of logp. Gao et al. 2025 (arXiv 2511.20347).
    """
    positive = torch.full_like(tokens.advantages, settings.tau_positive)
    tau = torch.where(tokens.advantages > 0, positive, settings.tau_negative)
    gate = torch.sigmoid(tau * (tokens.ratio - 1)) * 4 / tau
    return -tokens.advantages * gate, torch.zeros_like(tokens.mask)


def policy_gradient(tokens: LossTokens, settings: LossSettings) -> tuple[Tensor, Tensor]:
    """-A logp, with no ratio and nothing to clip: the policy gradient. GPG, Chu et al. 2025 (arXiv 2504.02546)."""
    return -tokens.advantages * tokens.logprobs, torch.zeros_like(tokens.mask)


def _clipped(ratio: Tensor, advantages: Tensor, settings: LossSettings) -> tuple[Tensor, Tensor]:
    free = -advantages * ratio
    bound = -advantages * ratio.clamp(1 - settings.clip_low, 1 + settings.clip_high)
    return torch.maximum(free, bound), bound > free


# The names are those of `Recipe.loss`; "gpg" is the published name of the plain policy gradient.
LOSSES: dict[str, TokenLoss] = {
    "ppo": ppo,
    "gspo": gspo,
    "cispo": cispo,
    "sapo": sapo,
    "gpg": policy_gradient,
}


def policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    loss_mask: Tensor,
    cu_seqlens: Tensor,
    *,
    kind: str | TokenLoss = "ppo",
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
    tau_positive: float = 1.0,
    tau_negative: float = 1.05,
    weights: Tensor | None = None,
    aggregate: str = "token_mean",
    max_tokens: int | None = None,
    denominator: float | None = None,
) -> Loss:
    """The policy's loss on packed tokens: columns [T], of which those under `loss_mask` count, to a scalar.

    `kind` is a name of LOSSES or a function like theirs. `weights` [T] multiply token losses, without a gradient.
    `aggregate`, `max_tokens` and `denominator` are those of `to_scalar`. `clip_fraction` is over this
    batch's own trained tokens: weigh it by their number when batches are put together.
    """
    mask = loss_mask.bool()
    # Outside the mask columns may hold anything, infinities included: cut it off before exp.
    tokens = LossTokens(
        logprobs=logprobs.masked_fill(~mask, 0.0),
        log_ratio=(logprobs - old_logprobs).masked_fill(~mask, 0.0),
        advantages=advantages.masked_fill(~mask, 0.0),
        mask=mask,
        cu_seqlens=cu_seqlens,
    )
    settings = LossSettings(
        clip_low=clip_low,
        clip_high=clip_high,
        dual_clip=dual_clip,
        tau_positive=tau_positive,
        tau_negative=tau_negative,
    )
    values, clipped = (LOSSES[kind] if isinstance(kind, str) else kind)(tokens, settings)
    if weights is not None:
        values = values * weights.detach()
    return _reduced(values, clipped, mask, cu_seqlens, aggregate, max_tokens, denominator)


def value_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    loss_mask: Tensor,
    cu_seqlens: Tensor,
    *,
    clip: float | None,
    aggregate: str = "token_mean",
    max_tokens: int | None = None,
    denominator: float | None = None,
) -> Loss:
    """max((V - R)^2, (clip(V, V_old - clip, V_old + clip) - R)^2) / 2 of each token, to a scalar; without `clip`
    (V - R)^2 / 2.

    Columns [T] and the rest as in `policy_loss`; a token is clipped where the second square is the larger. The value
    clipping of the PPO of OpenAI's baselines (Engstrom et al. 2020, arXiv 2005.12729, section 3).
    """
    mask = loss_mask.bool()
    error = (values - returns).masked_fill(~mask, 0.0)
    square, clipped = error.square(), torch.zeros_like(mask)
    if clip is not None:
        change = (values - old_values).masked_fill(~mask, 0.0)
        bounded = (error - change + change.clamp(-clip, clip)).square()
        square, clipped = torch.maximum(square, bounded), bounded > square
    return _reduced(square / 2, clipped, mask, cu_seqlens, aggregate, max_tokens, denominator)


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
    return to_scalar(-logprobs, loss_mask, cu_seqlens, aggregate, max_tokens, denominator)


def _reduced(
    values: Tensor,
    clipped: Tensor,
    mask: Tensor,
    cu_seqlens: Tensor,
    kind: str,
    max_tokens: int | None,
    denominator: float | None,
) -> Loss:
    return Loss(
        loss=to_scalar(values, mask, cu_seqlens, kind, max_tokens, denominator),
        clip_fraction=(clipped & mask).sum() / mask.sum().clamp(min=1),
    )

"""Per-token estimators of KL(policy || reference) from tokens the policy sampled (J. Schulman, joschu.net, 2020)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# exp(20) is about 5e8: far beyond any useful difference, and far from overflow.
MAX_LOG_RATIO = 20.0


def k1(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """logp - ref: unbiased, of either sign; as a loss its expected gradient is 0."""
    return logprobs - ref_logprobs


def k2(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """(logp - ref)^2 / 2: biased as a value; as a loss its gradient is that of the KL, on average."""
    return (logprobs - ref_logprobs).square() / 2


def k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """exp(d) - d - 1 with d = ref - logp: unbiased and never negative; d is capped at 20."""
    difference = (ref_logprobs - logprobs).clamp(max=MAX_LOG_RATIO)
    return torch.expm1(difference) - difference


KINDS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"k1": k1, "k2": k2, "k3": k3}


def kl(logprobs: Tensor, ref_logprobs: Tensor, kind: str) -> Tensor:
    """The KL estimate of each token: [T], [T] -> [T]. `kind` is one of KINDS."""
    return KINDS[kind](logprobs, ref_logprobs)

"""Per-token estimators of KL(policy || reference) from tokens the policy sampled (J. Schulman, joschu.net, 2020).

Their values and their gradients are different matters. k1 and k3 are unbiased as values: take them off the reward. As a
loss, only k2 has the gradient of that KL on average; k1's is 0, and k3's is that of KL(reference || policy).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

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
    """exp(d) - d - 1 with d = ref - logp: unbiased and never negative; d is capped at 20. As a loss its gradient is
    that of KL(reference || policy), on average."""
    difference = (ref_logprobs - logprobs).clamp(max=MAX_LOG_RATIO)
    return torch.expm1(difference) - difference


KINDS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"k1": k1, "k2": k2, "k3": k3}


def kl(logprobs: Tensor, ref_logprobs: Tensor, kind: str) -> Tensor:
    """The KL estimate of each token: [T], [T] -> [T]. `kind` is one of KINDS."""
    return KINDS[kind](logprobs, ref_logprobs)


class AdaptiveCoefficient:
    """A weight of the KL that steers it towards `target`: after each step of n responses
    `value` *= 1 + clip(kl / target - 1, -0.2, 0.2) * n / horizon. Without a target it stays.

    Ziegler et al. 2019 (arXiv 1909.08593, section 2.2).
    """

    LIMIT = 0.2

    def __init__(self, coefficient: float, target: float | None, horizon: float) -> None:
        self.value = self._first = coefficient
        self._target = target
        self._horizon = horizon

    def update(self, kl: float, responses: int) -> None:
        """Take in a step's mean KL, of all ranks and in the target's unit, and how many responses it had."""
        if self._target is not None:
            error = min(max(kl / self._target - 1, -self.LIMIT), self.LIMIT)
            self.value *= 1 + error * responses / self._horizon

    def state(self) -> list[float]:
        """The value, and the one it began with."""
        return [self.value, self._first]

    def restore(self, state: Sequence[float] | float) -> None:
        """Go on from a value that was adapted from the same beginning; from any other, this one's beginning stands.
        Older checkpoints have the value alone."""
        value, first = (state, self._first) if isinstance(state, float) else state
        if self._target is not None and first == self._first:
            self.value = float(value)

"""Sums and recursions along packed sequences.

Columns are `[T]`, sequences lie end to end, `cu_seqlens` `[S + 1]` holds their bounds and ends with T. Everything is
worked out in float64: it does not depend on how tokens are split over micro-batches, nor on the order of atomics.
"""

from __future__ import annotations

import torch
from torch import Tensor


def sequence_ids(cu_seqlens: Tensor, tokens: int) -> Tensor:
    """The number of each token's sequence [T]; `tokens` is T, which is not read from a device then."""
    lengths = cu_seqlens.diff()
    return torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths, output_size=tokens)


def sequence_sums(values: Tensor, loss_mask: Tensor, cu_seqlens: Tensor) -> Tensor:
    """The sum of each sequence's values [T] under `loss_mask` [T]: float64 [S]; differentiable."""
    zeros = torch.zeros(len(cu_seqlens) - 1, dtype=torch.float64, device=values.device)
    return zeros.index_add(
        0, sequence_ids(cu_seqlens, len(values)), values.double().masked_fill(~loss_mask.bool(), 0.0)
    )


def sequence_means(values: Tensor, loss_mask: Tensor, cu_seqlens: Tensor) -> Tensor:
    """The mean of each sequence's values under `loss_mask`, as in `sequence_sums`; 0 where it covers none."""
    counts = sequence_sums(loss_mask, loss_mask, cu_seqlens)
    return sequence_sums(values, loss_mask, cu_seqlens) / counts.clamp(min=1)


def followers(loss_mask: Tensor, cu_seqlens: Tensor) -> Tensor:
    """How many trained tokens of its own sequence come after each trained one: [n], n of them in all."""
    ids = sequence_ids(cu_seqlens, len(loss_mask))[loss_mask]
    ends = torch.bincount(ids, minlength=len(cu_seqlens) - 1).cumsum(0)
    return ends[ids] - 1 - torch.arange(len(ids), device=ids.device)


def later(values: Tensor, after: Tensor, steps: int = 1) -> Tensor:
    """Of each trained token, the value [n] of the one `steps` trained tokens on; 0 beyond its sequence's last one.
    `after` [n] is `followers`."""
    return torch.where(after >= steps, values.roll(-steps), 0.0)


def discounted(values: Tensor, after: Tensor, factor: float) -> Tensor:
    """y_t = x_t + factor * y_(t + 1) along each sequence, of the trained tokens' values x [n]; `after` as in `later`.

    Sums over 1, 2, 4, ... tokens are put together in pairs: as many passes as the longest sequence has binary digits.
    """
    longest, steps = int(after.max()) + 1 if len(after) else 0, 1
    while steps < longest:
        values = values + factor * later(values, after, steps)
        steps, factor = 2 * steps, factor * factor
    return values

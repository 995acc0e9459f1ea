"""Which kernel of attention, and how packed sequences look to those that need no buckets."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

Kernel = Literal["buckets", "varlen", "flex"]
"""One call of SDPA per bucket of similar lengths; torch's flash attention for sequences of different lengths; torch's
flex attention, compiled."""


class Spans:
    """Sequences of these lengths, end to end: worked out when first asked for, once for all layers and passes."""

    def __init__(self, lengths: Sequence[int], device: torch.device) -> None:
        self.lengths, self.device = tuple(int(n) for n in lengths), device
        self.masks: dict[int | None, Any] = {}
        """Flex attention's, by window."""

    @functools.cached_property
    def bounds(self) -> Tensor:
        """Where each sequence begins, and where the last one ends: [S + 1]."""
        return torch.tensor([0, *np.cumsum(self.lengths)], dtype=torch.int32, device=self.device)

    @functools.cached_property
    def owners(self) -> Tensor:
        """Which sequence each token [T] is of."""
        owners = np.repeat(np.arange(len(self.lengths), dtype=np.int32), self.lengths)
        return torch.from_numpy(owners).to(self.device)


def choose(device: torch.device, dtype: torch.dtype, head_dim: int, soft_cap: float | None) -> Kernel:
    """The kernel for tensors like these: flash attention on a GPU; buckets in float32, for bounded scores, for other
    sizes of heads and on a CPU."""
    if device.type != "cuda" or dtype == torch.float32 or soft_cap is not None:
        return "buckets"
    return "varlen" if fits_varlen(device, head_dim) else "buckets"


@functools.cache
def fits_varlen(device: torch.device, head_dim: int) -> bool:
    """Whether torch's flash attention takes heads of this size on this GPU."""
    return head_dim % 8 == 0 and head_dim <= 256 and torch.cuda.get_device_capability(device) >= (8, 0)

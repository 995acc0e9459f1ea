"""Packed attention as transformers' models call it: under a name of its own in their attention interface."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface

from yatt.errors import BackendError
from yatt.training.attention import Packing, packed_attention
from yatt.training.kernels import Kernel

NAME = "yatt_packed"
"""Has no entry among transformers' masks: its models then make none."""


@dataclass(frozen=True, slots=True)
class Lay:
    """How a micro-batch's tokens lie, handed through the model to each attention. `kernel`: the device's when None."""

    packing: Packing
    kernel: Kernel | None


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    lay: Lay | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """query [1, heads, T, d], key [1, groups, T, d], value [1, groups, T, e], turned by their positions already ->
    [1, T, heads, e]. Raises BackendError for a model that asks for other attention than is packed here."""
    name = type(module).__name__
    if lay is None:
        raise BackendError(f"{name} is not told how sequences are packed; use train.backend=megatron")
    if attention_mask is not None or not getattr(module, "is_causal", True):
        raise BackendError(f"{name} masks tokens in a way of its own; use another model")
    output = packed_attention(
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        lay.packing,
        scale=scaling,
        window=sliding_window,
        soft_cap=softcap,
        sinks=s_aux,
        kernel=lay.kernel,
    )
    return output.view(1, query.shape[2], query.shape[1], -1), None


AttentionInterface.register(NAME, attend)

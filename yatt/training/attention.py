"""Attention over packed sequences. For any device: one SDPA call per bucket of similar lengths, no mask, no loop; on a
GPU also what `yatt.training.gpu_kernels` has.

Right padding needs no mask under causal attention: a real token never sees the padding after it, and what padding
computes is dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from yatt.training.kernels import Kernel, Spans, choose

# Sequences share a bucket while the longest is at most this much longer, or this many tokens longer.
BUCKET_RATIO = 1.25
BUCKET_TOKENS = 32


@dataclass(frozen=True, slots=True)
class Packing:
    """How a micro-batch's T tokens lie in its padded buckets, made once for every model.

    `index` [N]: the token at each padded place. `inverse` [T]: the padded place of each token. `shapes`: (sequences,
    length) of each bucket, N in all. `spans`: the same sequences for kernels without buckets.
    """

    index: Tensor
    inverse: Tensor
    shapes: tuple[tuple[int, int], ...]
    spans: Spans


def packing(lengths: Sequence[int], device: torch.device) -> Packing:
    """Lay out sequences of these lengths, end to end in T tokens, into buckets."""
    sizes = np.asarray(lengths)
    starts = np.concatenate([[0], np.cumsum(sizes)])
    index, inverse, shapes, offset = [], np.empty(starts[-1], dtype=np.int64), [], 0
    for members in _buckets(sizes):
        longest = int(sizes[members].max())
        steps = np.arange(longest)
        # Padding repeats the sequence's last token: any token would do.
        index.append(starts[members, None] + np.minimum(steps, sizes[members, None] - 1))
        places = offset + np.arange(len(members))[:, None] * longest + steps
        real = steps < sizes[members, None]
        inverse[index[-1][real]] = places[real]
        shapes.append((len(members), longest))
        offset += len(members) * longest
    flat = np.concatenate([block.reshape(-1) for block in index])
    return Packing(
        index=torch.from_numpy(flat).to(device),
        inverse=torch.from_numpy(inverse).to(device),
        shapes=tuple(shapes),
        spans=Spans(lengths, device),
    )


def _buckets(sizes: np.ndarray) -> list[np.ndarray]:
    """Sequence numbers by falling length, cut wherever a sequence is much shorter than its bucket's longest."""
    order = np.argsort(-sizes, kind="stable")
    buckets, start = [], 0
    for i, length in enumerate(sizes[order]):
        longest = sizes[order[start]]
        if longest > max(length * BUCKET_RATIO, length + BUCKET_TOKENS):
            buckets.append(order[start:i])
            start = i
    return [*buckets, order[start:]]


class _Pad(torch.autograd.Function):
    """[T, ...] -> [N, ...]. Padded places must get no gradient, which attention guarantees: so each token's gradient is
    that of its one real place, and the order of additions is no question."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
        ctx.inverse = inverse
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad.index_select(0, ctx.inverse), None, None


class _Unpad(torch.autograd.Function):
    """[N, ...] -> [T, ...]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, inverse: Tensor) -> Tensor:
        ctx.inverse, ctx.places = inverse, len(x)
        return x.index_select(0, inverse)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.new_zeros(ctx.places, *grad.shape[1:]).index_copy_(0, ctx.inverse, grad), None


_pad: Callable[[Tensor, Tensor, Tensor], Tensor] = _Pad.apply
_unpad: Callable[[Tensor, Tensor], Tensor] = _Unpad.apply


def packed_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    packing: Packing,
    *,
    scale: float | None = None,
    window: int | None = None,
    soft_cap: float | None = None,
    sinks: Tensor | None = None,
    kernel: Kernel | None = None,
) -> Tensor:
    """Causal grouped-query attention within each sequence.

    query and key [T, heads or groups, d], value [T, groups, e] -> [T, heads x e]. `scale` multiplies scores, d^-0.5 by
    default. With `window`, a token sees the last so many, itself included. With `soft_cap` c, a score is
    c tanh(score / c). `sinks` [heads] are scores that take their part of each softmax and bring no value: for buckets
    alone. `kernel` is by default the one for this device (`yatt.training.kernels.choose`)."""
    if sinks is not None or query.shape[-1] != value.shape[-1]:
        kernel = kernel or "buckets"
    kernel = kernel or choose(query.device, query.dtype, query.shape[-1], soft_cap)
    if kernel != "buckets":
        assert sinks is None
        from yatt.training.gpu_kernels import KERNELS  # noqa: PLC0415 (torch's compiler)

        return KERNELS[kernel](query, key, value, packing.spans, scale, window, soft_cap)
    with _without_cudnn(query.device):
        return _in_buckets(query, key, value, packing, scale, window, soft_cap, sinks)


def _without_cudnn(device: torch.device) -> AbstractContextManager[None]:
    """Buckets have other shapes in every micro-batch, and for each cuDNN would plan anew."""
    if device.type != "cuda":
        return nullcontext()
    return sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])


def _in_buckets(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    packing: Packing,
    scale: float | None,
    window: int | None,
    soft_cap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """`packed_attention`, a call for each bucket. With `soft_cap` or `sinks` all its scores are held at once."""
    by_hand = soft_cap is not None or sinks is not None
    query, key, value = (_pad(x, packing.index, packing.inverse) for x in (query, key, value))
    outputs, offset = [], 0
    for sequences, length in packing.shapes:
        size = sequences * length
        q, k, v = (
            x[offset : offset + size].view(sequences, length, *x.shape[1:]).transpose(1, 2) for x in (query, key, value)
        )
        seen = None if window is None or window >= length else _band(length, window, q.device)
        if not by_hand and _apart(q, k, masked=seen is not None):
            k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
        if by_hand:
            whole = _band(length, length, q.device) if seen is None else seen
            output = _from_scores(q, k, v, scale, soft_cap, sinks, whole)
        else:
            output = F.scaled_dot_product_attention(
                q, k, v, seen, is_causal=seen is None, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
            )
        outputs.append(output.transpose(1, 2).reshape(size, -1))
        offset += size
    return _unpad(outputs[0] if len(outputs) == 1 else torch.cat(outputs), packing.inverse)


def _apart(q: Tensor, k: Tensor, *, masked: bool) -> bool:
    """Whether each head must have keys of its own: on a GPU, where flash attention takes neither float32 nor masks, the
    one kernel left that holds no scores [L, L] wants that."""
    return q.is_cuda and q.shape[1] != k.shape[1] and (masked or q.dtype == torch.float32)


def _band(length: int, window: int, device: torch.device) -> Tensor:
    """Which tokens [length, length] each sees: itself and those before, `window` in all."""
    return torch.ones(length, length, dtype=torch.bool, device=device).tril().triu(1 - window)


def _from_scores(
    q: Tensor, k: Tensor, v: Tensor, scale: float | None, cap: float | None, sinks: Tensor | None, seen: Tensor
) -> Tensor:
    """q [S, heads, L, d], k [S, groups, L, d], v [S, groups, L, e] -> [S, heads, L, e]."""
    grouped = q.unflatten(1, (k.shape[1], -1))
    scores = grouped @ k[:, :, None].transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    scores = (scores if cap is None else cap * torch.tanh(scores / cap)).masked_fill(~seen, -torch.inf)
    if sinks is not None:
        column = sinks.view(k.shape[1], -1, 1, 1).expand(*scores.shape[:-1], 1).to(scores)
        scores = torch.cat([scores, column], dim=-1)
    shares = scores.softmax(-1, dtype=torch.float32)[..., : k.shape[2]].to(v.dtype)
    output: Tensor = (shares @ v[:, :, None]).flatten(1, 2)
    return output

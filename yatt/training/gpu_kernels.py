"""Kernels of attention that pass over what is masked, for a GPU. Importing them imports torch's compiler: seconds."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch._dynamo
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.nn.attention.varlen import varlen_attn

from yatt.training.kernels import Kernel, Spans

BLOCK = 128
"""Tokens of a side of flex attention's blocks."""


@functools.cache
def _says_grouped() -> bool:
    """Whether torch's function wants to be told that heads share keys; before torch 2.13 it takes that as it is."""
    return "enable_gqa" in inspect.signature(varlen_attn).parameters


def varlen(
    query: Tensor, key: Tensor, value: Tensor, spans: Spans, scale: float | None, window: int | None, soft_cap: None
) -> Tensor:
    """torch's flash attention: half precision, scores without bounds. Shapes as in `packed_attention`."""
    longest = max(spans.lengths)
    # A token sees itself and so many before it; -1 is all of them.
    before = -1 if window is None or window >= longest else window - 1
    more = {"enable_gqa": query.shape[1] != key.shape[1]} if _says_grouped() else {}
    bounds = spans.bounds
    output = varlen_attn(
        query, key, value, bounds, bounds, longest, longest, scale=scale, window_size=(before, 0), **more
    )
    assert isinstance(output, Tensor)
    return output.flatten(1)


def flex(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    spans: Spans,
    scale: float | None,
    window: int | None,
    soft_cap: float | None,
) -> Tensor:
    """torch's flex attention, compiled on a GPU. Shapes as in `packed_attention`."""
    mask = _mask(spans, None if window is None or window >= max(spans.lengths) else window)
    q, k, v = (x.transpose(0, 1)[None] for x in (query, key, value))
    attend = flex_attention
    if query.is_cuda:
        attend = _compiled()
        for tensor in (q, k, v):
            torch._dynamo.maybe_mark_dynamic(tensor, 2)
    own = query.shape[-1] ** -0.5 if scale is None else scale
    scores = _scores(own, soft_cap, query.shape[1], query.device)
    output = attend(q, k, v, score_mod=scores, block_mask=mask, scale=1.0, enable_gqa=query.shape[1] != key.shape[1])
    return output[0].transpose(0, 1).flatten(1)


KERNELS: dict[Kernel, Callable[..., Tensor]] = {"varlen": varlen, "flex": flex}


@functools.cache
def _compiled() -> Any:
    return torch.compile(flex_attention)


@functools.cache
def _scores(scale: float, cap: float | None, heads: int, device: torch.device) -> Callable[..., Tensor]:
    """What becomes of a product of query and key. Its numbers are tensors [heads]: of a float that differs between
    models torch's compiler makes a symbol, which flex attention cannot take."""
    factor = torch.full((heads,), scale if cap is None else scale / cap, device=device)
    if cap is None:
        return lambda score, batch, head, q, k: score * factor[head]
    bound = torch.full((heads,), cap, device=device)
    return lambda score, batch, head, q, k: bound[head] * torch.tanh(score * factor[head])


def _mask(spans: Spans, window: int | None) -> BlockMask:
    mask: BlockMask | None = spans.masks.get(window)
    if mask is None:
        mask = spans.masks[window] = blocks(spans.lengths, window, spans.owners)
        for tensor in (spans.owners, *(part for part in mask.as_tuple() if isinstance(part, Tensor))):
            for side in range(2 if tensor.ndim > 1 else 0, tensor.ndim):
                torch._dynamo.maybe_mark_dynamic(tensor, side)  # every micro-batch has another number of tokens
    return mask


def blocks(lengths: Sequence[int], window: int | None, owners: Tensor) -> BlockMask:
    """The mask by blocks, from the lengths alone: a block of queries sees an unbroken row of blocks of keys, up to its
    own. Those before its own that every query sees whole need no mask within."""
    total = sum(lengths)
    starts = np.repeat(np.cumsum([0, *lengths[:-1]]), lengths)
    if window is not None:
        starts = np.maximum(starts, np.arange(total) - window + 1)
    # What a query sees begins later for each one after it.
    count = -(-total // BLOCK)
    first = starts[::BLOCK] // BLOCK
    last_start = starts[np.minimum(np.arange(1, count + 1) * BLOCK, total) - 1]
    own = np.arange(count)
    whole = np.minimum(np.maximum(first, -(-last_start // BLOCK)), own)
    column = np.arange(count)
    seen = (column >= first[:, None]) & (column <= own[:, None])
    full = (column >= whole[:, None]) & (column < own[:, None])
    partial = _listed(seen & ~full, owners.device), _listed(full, owners.device)

    def visible(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (owners[q] == owners[k]) & (q >= k)

    def in_window(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return visible(batch, head, q, k) & (q - k < window)

    (some, some_at), (all_, all_at) = partial
    return BlockMask.from_kv_blocks(
        some, some_at, all_, all_at, BLOCK, visible if window is None else in_window, (total, total)
    )


def _listed(mask: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor]:
    """[rows, columns] of truth -> how many each row has [1, 1, rows], and which ones, these first."""
    order = np.argsort(~mask, axis=1, kind="stable").astype(np.int32)
    counts = mask.sum(axis=1).astype(np.int32)
    return torch.from_numpy(counts).to(device)[None, None], torch.from_numpy(order).to(device)[None, None]

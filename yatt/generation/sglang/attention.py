"""Decoding of many requests in one call of attention, on a CPU. SGLang's own backend there calls it once for each
request and layer, which is half of what a small model's step takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend
from torch.nn.functional import scaled_dot_product_attention

GATHERED = 1 << 17
"""Most tokens of keys that are gathered for one call: what is copied stays in the megabytes."""

_one_by_one: Callable[..., torch.Tensor] = TorchNativeAttnBackend._run_sdpa_forward_decode


def decode(
    self: Any,
    query: torch.Tensor,
    output: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    req_to_token: torch.Tensor,
    req_pool_indices: torch.Tensor,
    seq_lens: torch.Tensor,
    encoder_lens: torch.Tensor | None = None,
    scaling: float | None = None,
    enable_gqa: bool = False,
    causal: bool = False,
    is_cross_attn: bool = False,
    sliding_window_size: int | None = None,
) -> torch.Tensor:
    """As the method it replaces: queries [B, H, D] over each request's cached keys and values, into `output`."""
    windowed = sliding_window_size is not None and sliding_window_size > -1
    if encoder_lens is not None or windowed:
        options = (encoder_lens, scaling, enable_gqa, causal, is_cross_attn, sliding_window_size)
        return _one_by_one(self, query, output, k_cache, v_cache, req_to_token, req_pool_indices, seq_lens, *options)
    rows = max(1, GATHERED // int(seq_lens.max()))
    for part in torch.arange(len(seq_lens), device=query.device).split(rows):
        lengths = seq_lens[part]
        longest = int(lengths.max())
        padding = torch.arange(longest, device=query.device) >= lengths[:, None]
        places = req_to_token[req_pool_indices[part], :longest].masked_fill(padding, 0)
        keys, values = (cache[places].transpose(1, 2).to(query.dtype) for cache in (k_cache, v_cache))
        attended = scaled_dot_product_attention(
            query[part].unsqueeze(2),
            keys,
            values,
            attn_mask=~padding[:, None, None, :],
            scale=scaling,
            enable_gqa=enable_gqa,
        )
        output[part] = attended.squeeze(2)
    return output


TorchNativeAttnBackend._run_sdpa_forward_decode = decode

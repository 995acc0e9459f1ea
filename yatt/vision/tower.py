"""The vision tower of transformers as it is, made quick for many images of different sizes.

Its weights, their names and its numbers are unchanged. Two operations are done in another way: all images, or windows,
of one size are one call of attention, and the embedding of patches is a product of matrices."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModel, PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

ATTENTION = "yatt_flash_by_length"
"""Transformers hands all images over at once where an attention's name has "flash" in it."""


class Features(NamedTuple):
    """What a tower makes of images: a row for each of their tokens [M, H], one image after another; and what goes into
    the language model behind each of its first layers, in as many rows."""

    tokens: Tensor
    deepstack: tuple[Tensor, ...]


def open_tower(vision: Any, dtype: torch.dtype, *, recompute: bool) -> PreTrainedModel:
    """The tower of a `vision_config` as transformers reads it, on the CPU, weights not yet set. With `recompute`, each
    layer's input alone is kept for the backward pass."""
    with no_init_weights():
        tower: PreTrainedModel = AutoModel.from_config(vision, dtype=dtype)
    tower.config._attn_implementation = ATTENTION
    embedding: Any = tower.patch_embed
    # Its kernel is its stride.
    embedding.forward = lambda patches: F.linear(
        patches.to(embedding.proj.weight.dtype), embedding.proj.weight.flatten(1), embedding.proj.bias
    )
    if recompute:
        tower.gradient_checkpointing_enable({"use_reentrant": False})
    return tower


def look(tower: PreTrainedModel, patches: Tensor, sizes: Tensor) -> Features:
    """patches [N, D], normalised, of K images one after another; sizes [K, 3] are their times, rows and columns."""
    seen = tower(patches, grid_thw=sizes, return_dict=True)
    return Features(seen.pooler_output, tuple(getattr(seen, "deepstack_features", None) or ()))


def by_length(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None = None,
    *,
    scaling: float,
    cu_seq_lens_q: Tensor,
    **unused: object,
) -> tuple[Tensor, None]:
    """Attention within each piece of a sequence: query, key and value [1, heads, T, d] -> [1, T, heads, d]; pieces
    begin at `cu_seq_lens_q` [S + 1]. One call for all pieces of a length."""
    lengths = cu_seq_lens_q.diff()
    pieces = torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)
    size_of = lengths[pieces]
    # Tokens in the order of their piece's length, which is the order they have where there is only one length.
    order = torch.argsort(size_of, stable=True)
    sizes, tokens = torch.unique(size_of, return_counts=True)
    outputs, start = [], 0
    sorted_parts = [x[0].index_select(1, order) for x in (query, key, value)]
    for size, count in zip(sizes.tolist(), tokens.tolist(), strict=True):
        some = (x[:, start : start + count].unflatten(1, (-1, size)).transpose(0, 1) for x in sorted_parts)
        output = F.scaled_dot_product_attention(*some, scale=scaling)  # [pieces, heads, size, d]
        outputs.append(output.transpose(1, 2).flatten(0, 1))
        start += count
    back = torch.argsort(order)
    return torch.cat(outputs).index_select(0, back)[None], None


ALL_ATTENTION_FUNCTIONS.register(ATTENTION, by_length)

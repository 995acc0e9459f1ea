"""Megatron's core attention: rotary embedding, then attention over packed sequences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.module import MegatronModule
from torch import Tensor
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from yatt.errors import ConfigError
from yatt.training.attention import Packing, packed_attention

# Types whose frequencies do not depend on the batch.
ROPE_TYPES = ("default", "linear", "llama3", "yarn")


@dataclass
class Turned(PackedSeqParams):
    """What Megatron hands to each layer: how a micro-batch's T tokens lie, and the rotary angles of one model, made
    once for all its layers: `cos`, `sin` [T, 1, d / 2]."""

    packing: Packing | None = None
    cos: Tensor | None = None
    sin: Tensor | None = None


class Rotary:
    """Rotary frequencies of a Hugging Face config."""

    def __init__(self, hf: Any, device: torch.device, dtype: torch.dtype) -> None:
        self.dtype = dtype
        kind = hf.rope_parameters["rope_type"]
        if kind not in ROPE_TYPES:
            raise ConfigError(f"model.path: rope_type={kind!r} cannot be trained; use one of {', '.join(ROPE_TYPES)}")
        if kind == "default":
            size = getattr(hf, "head_dim", None) or hf.hidden_size // hf.num_attention_heads
            powers = torch.arange(0, size, 2, dtype=torch.float32) / size
            self.frequencies, self.scale = 1.0 / (hf.rope_parameters["rope_theta"] ** powers), 1.0
        else:
            self.frequencies, self.scale = ROPE_INIT_FUNCTIONS[kind](hf, torch.device("cpu"))
        self.frequencies = self.frequencies.to(device)

    def __call__(self, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        angles = position_ids[:, None, None].float() * self.frequencies
        return (angles.cos() * self.scale).to(self.dtype), (angles.sin() * self.scale).to(self.dtype)

    def turned(self, packing: Packing, position_ids: Tensor) -> Turned:
        """This layout with this model's angles at positions [T]."""
        cos, sin = self(position_ids)
        return Turned(qkv_format="thd", packing=packing, cos=cos, sin=sin)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class PackedAttention(MegatronModule):
    """Rotary embedding, then causal grouped-query attention within each sequence."""

    def __init__(self, config: Any, layer_number: int, *unused: object, **options: object) -> None:
        super().__init__(config)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, mask: None, *, packed_seq_params: Turned, **unused: object
    ) -> Tensor:
        """query [T, heads, d], key and value [T, groups, d] -> [T, heads x d]."""
        turned = packed_seq_params
        assert turned.packing is not None and turned.cos is not None and turned.sin is not None
        query, key = _rotate(query, turned.cos, turned.sin), _rotate(key, turned.cos, turned.sin)
        return packed_attention(query, key, value, turned.packing)

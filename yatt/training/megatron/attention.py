"""Megatron's core attention: rotary embedding, then attention over packed sequences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.module import MegatronModule
from torch import Tensor
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from yatt.errors import ConfigError
from yatt.models.family import Attention, Family, head_size
from yatt.models.table import FAMILIES
from yatt.training.attention import Packing, packed_attention
from yatt.training.kernels import Kernel
from yatt.training.operations import rotary_tables, rotate

Angles = tuple[Tensor, Tensor]
"""cos and sin [T, 1, dimensions that are turned], laid out for `rotate`."""


@dataclass
class Turned(PackedSeqParams):
    """What Megatron hands to each layer: how a micro-batch's T tokens lie, and the rotary angles of one model, made
    once for all its layers, by their kind where a family has several. `kernel` of attention: the device's when None."""

    packing: Packing | None = None
    kernel: Kernel | None = None
    angles: dict[str, Angles] = field(default_factory=dict)


class Rotary:
    """Rotary frequencies of a Hugging Face config."""

    def __init__(self, hf: Any, device: torch.device, dtype: torch.dtype) -> None:
        family = FAMILIES[hf.model_type]
        self.dtype, self.interleaved = dtype, family.interleaved
        self.tables = {
            kind: (frequencies.to(device), scale)
            for kind in family.rope_layers or ("",)
            for frequencies, scale in [_frequencies(hf, family, kind)]
        }

    def __call__(self, position_ids: Tensor) -> dict[str, Angles]:
        angles_of = {}
        for kind, (frequencies, scale) in self.tables.items():
            angles = position_ids[:, None, None].float() * frequencies
            cos, sin = ((turn * scale).to(self.dtype) for turn in (angles.cos(), angles.sin()))
            angles_of[kind] = rotary_tables(cos, sin, self.interleaved)
        return angles_of

    def turned(self, packing: Packing, position_ids: Tensor, kernel: Kernel | None) -> Turned:
        """This layout with this model's angles at positions [T]."""
        return Turned(qkv_format="thd", packing=packing, kernel=kernel, angles=self(position_ids))


def _frequencies(hf: Any, family: Family, kind: str) -> tuple[Tensor, float]:
    """Angle per position of each pair of dimensions, and what cos and sin are multiplied by."""
    rope = hf.rope_parameters[kind] if kind else hf.rope_parameters
    method = rope["rope_type"]
    if method not in family.rope_types:
        able = ", ".join(family.rope_types)
        raise ConfigError(f"model.path: rope_type={method!r} cannot be trained; use one of {able}")
    if method != "default":
        frequencies, scale = ROPE_INIT_FUNCTIONS[method](
            hf, torch.device("cpu"), **({"layer_type": kind} if kind else {})
        )
        return frequencies, scale
    size = head_size(hf.to_dict(), family)
    if family.partial_rotary:
        size = int(size * rope.get("partial_rotary_factor", 1.0))
    powers = torch.arange(0, size, 2, dtype=torch.float32) / size
    return 1.0 / (rope["rope_theta"] ** powers), 1.0


class PackedAttention(MegatronModule):
    """Rotary embedding, then causal grouped-query attention within each sequence. `kinds`: of all layers."""

    def __init__(
        self,
        config: Any,
        layer_number: int,
        *unused: object,
        kinds: Sequence[Attention],
        interleaved: bool,
        **options: object,
    ) -> None:
        super().__init__(config)
        self.kind, self.interleaved = kinds[layer_number - 1], interleaved

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, mask: None, *, packed_seq_params: Turned, **unused: object
    ) -> Tensor:
        """query [T, heads, d], key and value [T, groups, d] -> [T, heads x d]."""
        turned, kind = packed_seq_params, self.kind
        assert turned.packing is not None
        angles = turned.angles[kind.angles]
        query, key = (rotate(x, *angles, self.interleaved) for x in (query, key))
        return packed_attention(
            query,
            key,
            value,
            turned.packing,
            kernel=turned.kernel,
            scale=kind.scale,
            window=kind.window,
            soft_cap=kind.soft_cap,
        )

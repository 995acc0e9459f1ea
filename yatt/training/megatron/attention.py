"""Megatron's core attention: rotary embedding, then attention over packed sequences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.module import MegatronModule
from torch import Tensor
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from yatt.errors import ConfigError
from yatt.models.family import Attention, Family, head_size
from yatt.models.table import LANGUAGES
from yatt.training.attention import Packing, packed_attention
from yatt.training.batch import MicroBatch
from yatt.training.images import PackedImages
from yatt.training.kernels import Kernel
from yatt.training.operations import rotary_tables, rotate

Angles = tuple[Tensor, Tensor]
"""cos and sin [T, 1, dimensions that are turned], laid out for `rotate`."""


@dataclass
class Turned(PackedSeqParams):
    """What Megatron hands to each layer: how a micro-batch's T tokens lie, and the rotary angles of one model, made
    once for all its layers, by their kind where a family has several. `kernel` of attention: the device's when None.

    `images` are the micro-batch's; `deepstack` [P (/ tp), 1, H] is what the first stage's first layers add to what they
    return, 0 outside of images."""

    packing: Packing | None = None
    kernel: Kernel | None = None
    angles: dict[str, Angles] = field(default_factory=dict)
    images: PackedImages | None = None
    deepstack: tuple[Tensor, ...] = ()


class Rotary:
    """Rotary frequencies of a Hugging Face config."""

    def __init__(self, hf: Any, device: torch.device, dtype: torch.dtype) -> None:
        family = LANGUAGES[hf.model_type]
        self.dtype, self.interleaved = dtype, family.interleaved
        self.axes = None if family.sections == "none" else _axes(hf.rope_parameters, family).to(device)
        self.tables = {
            kind: (frequencies.to(device), scale)
            for kind in family.rope_layers or ("",)
            for frequencies, scale in [_frequencies(hf, family, kind)]
        }

    def __call__(self, position_ids: Tensor) -> dict[str, Angles]:
        """Of positions [T], or [3, T] where they have three axes: each pair of dimensions turns with one of them."""
        columns = position_ids[:, None] if self.axes is None else position_ids[self.axes].T
        angles_of = {}
        for kind, (frequencies, scale) in self.tables.items():
            angles = columns[:, None].float() * frequencies
            cos, sin = ((turn * scale).to(self.dtype) for turn in (angles.cos(), angles.sin()))
            angles_of[kind] = rotary_tables(cos, sin, self.interleaved)
        return angles_of

    def turned(self, micro: MicroBatch, kernel: Kernel | None) -> Turned:
        """How a micro-batch lies, with this model's angles."""
        sight, position_ids = micro.sight, micro.position_ids[0]
        if self.axes is not None:
            position_ids = position_ids.expand(3, -1) if sight is None else sight.positions
        images = None if sight is None or self.axes is None else sight.images
        return Turned(qkv_format="thd", packing=micro.packing, kernel=kernel, angles=self(position_ids), images=images)


def _axes(rope: Mapping[str, Any], family: Family) -> Tensor:
    """The axis of the positions (time, row, column) that each pair of dimensions turns with."""
    sections = rope["mrope_section"]
    if family.sections == "apart":
        return torch.repeat_interleave(torch.arange(3), torch.tensor(sections))
    axes = torch.zeros(sum(sections), dtype=torch.long)
    for axis in (1, 2):
        axes[axis : 3 * sections[axis] : 3] = axis
    return axes


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

"""Phi-3 and Phi-4: a Llama with matrices below each other in one tensor, whose rotary embedding may be partial.

LongRoPE is refused: transformers chooses its angles by the length of the sequence, an engine by the longest it serves.
"""

from __future__ import annotations

from yatt.models.family import PLAIN, Family
from yatt.models.fields import LLAMA_OF_ENGINES, NONE, window

PHI3 = Family(
    name="Phi3",
    model_type="phi3",
    parts=PLAIN | {"qkv": ("self_attn.qkv_proj.weight",), "gate_up": ("mlp.gate_up_proj.weight",)},
    values=LLAMA_OF_ENGINES | {"layer_types": NONE, "resid_pdrop": (0.0,), "embd_pdrop": (0.0,)},
    obeys=("sliding_window",),
    rope_types=("default",),
    partial_rotary=True,
    windows="every",
    checks=window,
)

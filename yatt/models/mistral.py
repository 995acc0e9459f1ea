"""Mistral: a Llama whose layers may all see the last tokens only."""

from __future__ import annotations

from yatt.models.family import Family
from yatt.models.fields import LLAMA_OF_ENGINES, NONE, window

MISTRAL = Family(
    name="Mistral",
    model_type="mistral",
    defaults={"num_key_value_heads": 8},
    values=LLAMA_OF_ENGINES | {"layer_types": NONE, "llama_4_scaling": NONE, "ada_rms_norm_t_cond": (False, None)},
    obeys=("sliding_window",),
    windows="every",
    checks=window,
)

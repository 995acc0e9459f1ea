"""Qwen3, dense: a Llama with norms on each head of q and k."""

from __future__ import annotations

from yatt.models.family import PLAIN, QK_NORMS, Family
from yatt.models.fields import no_windows

QWEN3 = Family(
    name="Qwen3",
    model_type="qwen3",
    parts=PLAIN | QK_NORMS,
    defaults={"num_key_value_heads": 32, "head_dim": 128},
    values={"use_sliding_window": (False,), "attention_bias": (False,)},
    checks=no_windows,
)

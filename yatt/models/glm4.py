"""GLM-4, dense: norms before and after attention and MLP, biases on q, k and v by choice, half of each head turned by
neighbours."""

from __future__ import annotations

from yatt.models.family import PLAIN, QKV_BIAS, Family
from yatt.models.fields import no_windows

GLM4 = Family(
    name="Glm4",
    model_type="glm4",
    parts=PLAIN
    | {
        "qkv_bias": QKV_BIAS,
        "attention_norm": ("post_self_attn_layernorm.weight",),
        "gate_up": ("mlp.gate_up_proj.weight",),
        "mlp_norm": ("post_mlp_layernorm.weight",),
    },
    optional={"qkv_bias": "attention_bias"},
    defaults={"num_key_value_heads": 2, "head_dim": 128, "attention_bias": True, "partial_rotary_factor": 0.5},
    rope_types=("default",),
    partial_rotary=True,
    interleaved=True,
    checks=no_windows,
)

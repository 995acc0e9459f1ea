"""OLMo-2: a Llama with norms after attention and MLP, and not before, and norms over all heads of q and of k."""

from __future__ import annotations

from yatt.models.family import PLAIN, QK_NORMS, Family
from yatt.models.fields import no_windows

OLMO2 = Family(
    name="Olmo2",
    model_type="olmo2",
    parts={part: names for part, names in PLAIN.items() if part not in ("input_norm", "mlp_input_norm")}
    | QK_NORMS
    | {
        "attention_norm": ("post_attention_layernorm.weight",),
        "mlp_norm": ("post_feedforward_layernorm.weight",),
    },
    values={"attention_bias": (False,)},
    whole_qk_norm=True,
    checks=no_windows,
)

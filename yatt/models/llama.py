"""Llama 1 to 3, and what is built alike."""

from __future__ import annotations

from collections.abc import Iterator

from yatt.models.family import Config, Family
from yatt.models.fields import NONE, no_windows


def _checks(config: Config) -> Iterator[str]:
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    if hidden % heads:
        yield f"num_attention_heads={heads} does not divide hidden_size={hidden}, as transformers demands of a Llama"
    yield from no_windows(config)


LLAMA = Family(
    name="Llama",
    model_type="llama",
    values={
        "attention_bias": (False,),
        "mlp_bias": (False,),
        # Engines alone read these.
        **dict.fromkeys(("bias", "qkv_bias"), (False, None)),
        "logit_scale": (1.0, 1),
        "sliding_window": NONE,
        "target_layer_count": (),
    },
    checks=_checks,
)

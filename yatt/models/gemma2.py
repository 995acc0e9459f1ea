"""Gemma-2: norms of 1 + weight before and after attention and MLP, scaled embeddings, bounded scores and logits, and
layers that see the last tokens only.

Scores are bounded as in engines and in transformers' eager attention; its SDPA passes over the bound.
"""

from __future__ import annotations

from collections.abc import Iterator

from yatt.models.family import PLAIN, Config, Family
from yatt.models.fields import bounds, windows

SANDWICH = PLAIN | {
    "attention_norm": ("post_attention_layernorm.weight",),
    "mlp_input_norm": ("pre_feedforward_layernorm.weight",),
    "mlp_norm": ("post_feedforward_layernorm.weight",),
}


def checks(config: Config) -> Iterator[str]:
    """Of every Gemma."""
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    if hidden % heads:
        yield f"num_attention_heads={heads} does not divide hidden_size={hidden}, as transformers demands of a Gemma"
    yield from windows(config)
    yield from bounds(config, "query_pre_attn_scalar", "final_logit_softcapping")


def _checks(config: Config) -> Iterator[str]:
    yield from checks(config)
    yield from bounds(config, "attn_logit_softcapping")


GEMMA2 = Family(
    name="Gemma2",
    model_type="gemma2",
    parts=SANDWICH,
    defaults={"num_key_value_heads": 4, "head_dim": 256, "tie_word_embeddings": True, "final_logit_softcapping": 30.0},
    values={
        "attention_bias": (False,),
        "tie_word_embeddings": (True,),  # engines have no other head
        "use_bidirectional_attention": (False, None),
    },
    obeys=(
        *("query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping"),
        *("layer_types", "sliding_window"),
    ),
    activation_field="hidden_activation",
    activation="gelu_pytorch_tanh",
    unit_offset=True,
    scaled_embedding=True,
    windows="by layer_types",
    checks=_checks,
)

"""Gemma-3, text: a Gemma-2 with norms on each head of q and k, no bound on scores, and angles by kind of layer."""

from __future__ import annotations

from collections.abc import Iterator

from yatt.models import gemma2
from yatt.models.family import QK_NORMS, Config, Family
from yatt.models.fields import bounds


def _checks(config: Config) -> Iterator[str]:
    yield from gemma2.checks(config)
    yield from bounds(config, "rope_local_base_freq", "sliding_window_pattern")


GEMMA3 = Family(
    name="Gemma3",
    model_type="gemma3_text",
    classifier="Gemma3TextForSequenceClassification",
    parts=gemma2.SANDWICH | QK_NORMS,
    defaults={"num_key_value_heads": 4, "head_dim": 256, "tie_word_embeddings": True},
    values={"attention_bias": (False,), "use_bidirectional_attention": (False, None)},
    obeys=("query_pre_attn_scalar", "final_logit_softcapping", "layer_types", "sliding_window"),
    activation_field="hidden_activation",
    activation="gelu_pytorch_tanh",
    rope_types=("default", "linear"),
    rope_layers=("full_attention", "sliding_attention"),
    unit_offset=True,
    scaled_embedding=True,
    windows="by layer_types",
    checks=_checks,
)

"""Qwen2 and Qwen2.5, dense: a Llama with biases on q, k and v."""

from __future__ import annotations

from collections.abc import Iterator

from yatt.models.family import PLAIN, QKV_BIAS, Config, Family, head_size
from yatt.models.fields import no_windows


def _checks(config: Config) -> Iterator[str]:
    heads, size, hidden = config["num_attention_heads"], head_size(config, QWEN2), config["hidden_size"]
    if size * heads != hidden:
        yield f"head_dim={size} is not hidden_size={hidden} / num_attention_heads={heads}, which engines take instead"
    yield from no_windows(config)


QWEN2 = Family(
    name="Qwen2",
    model_type="qwen2",
    parts=PLAIN | {"qkv_bias": QKV_BIAS},
    defaults={"num_key_value_heads": 32},
    values={"use_sliding_window": (False,), "qk_norm": (False, None)},
    checks=_checks,
)

"""What config.json may say of the families that are trained, Llama, Qwen2 and Qwen3: what the trainer computes, what it
refuses, and the tensors that follow.

Every field that transformers or an engine reads in its code for these families is in one of the tables here, or
changes nothing of the forward pass (`tests/test_folders.py` lists those). What only one of them obeys is refused: the
two would not be the same model.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

FAMILIES = {"Llama": "llama", "Qwen2": "qwen2", "Qwen3": "qwen3"}
"""How an architecture's name begins, and the model_type that goes with it."""
SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "vocab_size",
    "max_position_embeddings",
)
IMPLEMENTED = (
    "model_type",
    *(name for name in SIZES if name != "max_position_embeddings"),
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "rms_norm_eps",
    "rope_parameters",
    "tie_word_embeddings",
)
"""Fields that the forward pass depends on, by their names in transformers: what makes two models the same."""
DEFAULTS: dict[str, dict[str, int]] = {
    "qwen2": {"num_key_value_heads": 32},
    "qwen3": {"num_key_value_heads": 32, "head_dim": 128},
}
"""What transformers takes where a field is left out, and it is not as many as attention heads have."""

# Field -> the values that are trained, the first of which is offered. Any other is refused; None stands for null.
NONE: tuple[Any, ...] = (None,)
EVERY: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "is_causal": (True,),
    "attention_dropout": (0.0,),
    "is_encoder_decoder": (False,),
    # Other weights than those in the folder's files, or weights that are codes.
    **dict.fromkeys(("quantization_config", "compression_config", "transformers_weights", "speculators_config"), NONE),
    # Another config than this one: transformers and engines look below these names, or into other files.
    **dict.fromkeys(("text_config", "llm_config", "thinker_config", "text_encoder", "decoder", "generator"), NONE),
    **dict.fromkeys(("per_layer_config", "configuration_files", "block_configs"), NONE),
    # Other attention: the window or chunk a token sees, or caches that layers share.
    **dict.fromkeys(("attention_chunk_size", "dual_chunk_attention_config", "rswa_window", "canvas_length"), NONE),
    "num_kv_shared_layers": (0, None),
    # Other rotary angles: engines read them, transformers does not.
    **dict.fromkeys(("rotary_pct", "rotary_emb_fraction", "partial_rotary_factor"), (1.0, 1, None)),
    **dict.fromkeys(("rotary_emb_base", "mrope_section", "xdrope_section"), NONE),
    "head_dtype": (None, "model"),
    "hidden_size_per_head": NONE,
    # Layers beyond the last one, and fields of other families: whoever wrote them meant another forward pass.
    **dict.fromkeys(("num_nextn_predict_layers", "mtp_num_hidden_layers"), (0, None)),
    **dict.fromkeys(("embedding_multiplier", "residual_multiplier", "logits_scaling", "scale_emb"), (1.0, 1, None)),
    **dict.fromkeys(("attention_multiplier", "attn_logit_softcapping", "final_logit_softcapping", "clip_qkv"), NONE),
}
OWN: dict[str, dict[str, tuple[Any, ...]]] = {
    "llama": {
        "attention_bias": (False,),
        "mlp_bias": (False,),
        # Engines alone read these.
        **dict.fromkeys(("bias", "qkv_bias"), (False, None)),
        "logit_scale": (1.0, 1),
        "sliding_window": NONE,
        "target_layer_count": (),
    },
    "qwen2": {"use_sliding_window": (False,), "qk_norm": (False, None)},
    "qwen3": {"use_sliding_window": (False,), "attention_bias": (False,)},
}
"""Fields of one family; the others do not look at them."""
FULL = ("full_attention", "attention")
"""Names of a layer that sees all tokens before."""
ROPE: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": (
        *("factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow"),
        *("mscale", "mscale_all_dim", "truncate"),
    ),
}
"""Rotary embeddings whose angles depend on the position alone, and the parameters of each."""
ROPE_NEEDS = {"linear": ("factor",), "llama3": ROPE["llama3"][:3], "yarn": ("factor",)}
ROPE_COMMON = ("rope_type", "type", "rope_theta", "partial_rotary_factor")


def family_of(architecture: str) -> str | None:
    """The model_type of an architecture that is trained; None for others."""
    return FAMILIES.get(architecture.partition("For")[0])


def kv_heads(config: Mapping[str, Any], family: str | None) -> int:
    default = DEFAULTS.get(family or "", {}).get("num_key_value_heads")
    groups: int = config.get("num_key_value_heads", default) or config["num_attention_heads"]
    return groups


def head_size(config: Mapping[str, Any], family: str | None) -> int:
    default = DEFAULTS.get(family or "", {}).get("head_dim")
    size: int = config.get("head_dim", default) or config["hidden_size"] // config["num_attention_heads"]
    return size


def config_mistakes(config: Mapping[str, Any], architecture: str) -> Iterator[str]:
    """One line for each field of a config.json that asks for what is not trained here."""
    family = family_of(architecture)
    assert family is not None
    if config.get("model_type") != family:
        yield f"{_shown('model_type', config.get('model_type'))} is not {architecture}'s; set it to {family}"
    for name, allowed in (EVERY | OWN[family]).items():
        if name in config and config[name] not in allowed:
            able = [value for value in allowed if value is not None]
            remedy = f"only {_shown(name, able[0])} can" if able else "remove it"
            yield f"{_shown(name, config[name])} cannot be trained; {remedy}"
    yield from _code(config)
    yield from _layers(config)
    yield from _shape(config, family)
    yield from _rope(config)


def _code(config: Mapping[str, Any]) -> Iterator[str]:
    own = config.get("auto_map") or {}
    own = own if isinstance(own, dict) else {"AutoModel": own}
    models = [name for name in own if name not in ("AutoTokenizer", "AutoProcessor")]
    if models:
        yield f"auto_map has code of its own for {', '.join(models)}, which is not run here; use a model without"


def _layers(config: Mapping[str, Any]) -> Iterator[str]:
    kinds, layers = config.get("layer_types"), config["num_hidden_layers"]
    if kinds is None:
        return
    other = [kind for kind in kinds if kind not in FULL] if isinstance(kinds, list) else [kinds]
    if other:
        yield f"layer_types has {json.dumps(other[0])}, which cannot be trained; only full_attention can"
    elif len(kinds) != layers:
        yield f"layer_types has {len(kinds)} layers, and num_hidden_layers={layers}; write one for each"


def _shape(config: Mapping[str, Any], family: str) -> Iterator[str]:
    heads, groups, size = config["num_attention_heads"], kv_heads(config, family), head_size(config, family)
    hidden = config["hidden_size"]
    for name, value in (("num_key_value_heads", groups), ("head_dim", size)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            yield f"{_shown(name, value)} is no whole number above 0"
            return
    if heads % groups:
        yield f"num_key_value_heads={groups} does not divide num_attention_heads={heads}"
    if size % 2:
        yield f"head_dim={size} is odd; a rotary embedding turns pairs"
    if family == "llama" and hidden % heads:
        yield f"num_attention_heads={heads} does not divide hidden_size={hidden}, as transformers demands of a Llama"
    if family == "qwen2" and size * heads != hidden:
        yield f"head_dim={size} is not hidden_size={hidden} / num_attention_heads={heads}, which engines take instead"
    tied, eps = config.get("tie_word_embeddings", False), config.get("rms_norm_eps", 1e-6)
    if not isinstance(tied, bool):
        yield f"{_shown('tie_word_embeddings', tied)} is neither true nor false"
    if not _number(eps):
        yield f"{_shown('rms_norm_eps', eps)} is no number above 0"


def _rope(config: Mapping[str, Any]) -> Iterator[str]:
    """What the parameters of the rotary embedding may be; transformers takes rope_scaling, the older name, first."""
    at = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
    rope = config.get(at) or {}
    if not isinstance(rope, dict):
        yield f"{_shown(at, rope)} is no object"
        return
    theta = rope.get("rope_theta", config.get("rope_theta", 10000.0))
    if not _number(theta):
        yield f"{_shown('rope_theta', theta)} is no number above 0"
    kind = rope.get("rope_type", rope.get("type", "default"))
    if rope.get("type", kind) != kind:
        yield f"{at} has {_shown('rope_type', kind)} and {_shown('type', rope['type'])}; keep one of them"
    elif kind not in ROPE:
        yield f"{at} has {_shown('rope_type', kind)}, which cannot be trained; use one of {', '.join(ROPE)}"
    else:
        yield from _angles(rope, kind, at, config)


def _angles(rope: Mapping[str, Any], kind: str, at: str, config: Mapping[str, Any]) -> Iterator[str]:
    for name in rope:
        if name not in (*ROPE_COMMON, *ROPE[kind]):
            yield f"{at} has {_shown(name, rope[name])}, which is not of rope_type={kind}; remove it"
    if rope.get("partial_rotary_factor", 1) != 1:
        partial = _shown("partial_rotary_factor", rope["partial_rotary_factor"])
        yield f"{at} has {partial}, which cannot be trained; only partial_rotary_factor=1.0 can"
    wrong = [name for name in ROPE_NEEDS.get(kind, ()) if not _number(rope.get(name))]
    optional = [name for name in ROPE[kind] if name in rope and name not in (*wrong, "truncate")]
    wrong += [name for name in optional if not _number(rope[name]) and (rope[name] is not None or "beta" in name)]
    for name in wrong:
        yield f"{at} has {_shown(name, rope.get(name))}; rope_type={kind} needs a number above 0"
    if wrong:
        return
    if kind == "linear" and not isinstance(rope["factor"], float):
        yield f"{at} has factor={rope['factor']}, which an engine reads as a decimal only; write {rope['factor']}.0"
    if kind == "llama3" and rope["high_freq_factor"] <= rope["low_freq_factor"]:
        low = _shown("low_freq_factor", rope["low_freq_factor"])
        yield f"{at} has {_shown('high_freq_factor', rope['high_freq_factor'])}, which is not above {low}"
    most = config["max_position_embeddings"]
    first = config.get("original_max_position_embeddings", rope.get("original_max_position_embeddings", most))
    if kind in ("llama3", "yarn") and not _number(first):
        yield f"{_shown('original_max_position_embeddings', first)} is no number above 0"
    elif kind == "yarn" and most > first * rope["factor"]:
        yield (
            f"max_position_embeddings={most} is over {at}'s original_max_position_embeddings={first} x "
            f"factor={rope['factor']}, beyond which an engine has no angles; lower it"
        )


def tensors(config: Mapping[str, Any], architecture: str) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor that the model of this config.json has. A head that is tied is not among them."""
    family = family_of(architecture)
    heads, groups, size = config["num_attention_heads"], kv_heads(config, family), head_size(config, family)
    hidden, inner, vocabulary = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    rows = {"q": heads * size, "k": groups * size, "v": groups * size}
    layer: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
        **{f"self_attn.{x}_proj.weight": (count, hidden) for x, count in rows.items()},
        "self_attn.o_proj.weight": (hidden, heads * size),
        "mlp.gate_proj.weight": (inner, hidden),
        "mlp.up_proj.weight": (inner, hidden),
        "mlp.down_proj.weight": (hidden, inner),
    }
    if family == "qwen2":
        layer |= {f"self_attn.{x}_proj.bias": (count,) for x, count in rows.items()}
    if family == "qwen3":
        layer |= {f"self_attn.{x}_norm.weight": (size,) for x in "qk"}
    found = {"model.embed_tokens.weight": (vocabulary, hidden), "model.norm.weight": (hidden,)}
    for i in range(config["num_hidden_layers"]):
        found |= {f"model.layers.{i}.{name}": shape for name, shape in layer.items()}
    if architecture.endswith("ForSequenceClassification"):
        found["score.weight"] = (1, hidden)
    elif not config.get("tie_word_embeddings"):
        found["lm_head.weight"] = (vocabulary, hidden)
    return found


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def _shown(name: str, value: Any) -> str:
    """As in JSON, cut where it is long."""
    text = json.dumps(value)
    return f"{name}={text if len(text) <= 60 else text[:57] + '...'}"

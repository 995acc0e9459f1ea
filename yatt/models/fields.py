"""The fields of config.json common to all families: values that are trained, and values that are refused.

Every field that transformers or an engine reads in its code for a family is in one of the tables here or in the
family's file, or changes nothing of the forward pass (`tests/test_folders.py` lists those). What only one of them obeys
is refused: the two would not be the same model.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from yatt.models.family import Config, Family, head_size, kv_heads
from yatt.models.rotary import rope_mistakes
from yatt.models.values import number, shown

SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "vocab_size",
    "max_position_embeddings",
)
COMMON = (
    "model_type",
    *(name for name in SIZES if name != "max_position_embeddings"),
    "num_key_value_heads",
    "head_dim",
    "rms_norm_eps",
    "rope_parameters",
    "tie_word_embeddings",
)
"""Fields that every forward pass depends on, by their names in transformers."""

# Field -> the values that are trained, the first of which is offered. Any other is refused; None stands for null.
NONE: tuple[Any, ...] = (None,)
EVERY: dict[str, tuple[Any, ...]] = {
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
LLAMA_OF_ENGINES: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("attention_bias", "mlp_bias", "bias", "qkv_bias"), (False, None)),
    "logit_scale": (1.0, 1),
    "target_layer_count": (),
}
"""Fields that engines read wherever they build a family on its Llama, and transformers does not."""
FULL = ("full_attention", "attention")
"""Names of a layer that sees all tokens before."""
SLIDING = "sliding_attention"


def obeyed(family: Family) -> tuple[str, ...]:
    """Fields that the language model's forward pass depends on: with the tower's, what makes two models the same."""
    return (*COMMON, family.activation_field, *family.optional.values(), *family.obeys)


def allowed(family: Family) -> dict[str, tuple[Any, ...]]:
    """Field -> the values that are trained, of those that are only read to be refused."""
    values = EVERY | {family.activation_field: (family.activation,)} | dict(family.values)
    own = {*family.obeys, *family.optional.values(), *(("partial_rotary_factor",) if family.partial_rotary else ())}
    return {name: some for name, some in values.items() if name not in own}


def config_mistakes(config: Config, family: Family, architecture: str) -> Iterator[str]:
    """One line for each field of a config.json that asks for what is not trained here. The language model's fields are
    at the top (`vision.language`)."""
    if config.get("model_type") != family.model_type:
        yield f"{shown('model_type', config.get('model_type'))} is not {architecture}'s; set it to {family.model_type}"
    for name, some in allowed(family).items():
        if name in config and config[name] not in some:
            able = [value for value in some if value is not None]
            remedy = f"only {shown(name, able[0])} can" if able else "remove it"
            yield f"{shown(name, config[name])} cannot be trained; {remedy}"
    for name in family.optional.values():
        if not isinstance(family.value(config, name), bool | None):
            yield f"{shown(name, config[name])} is neither true nor false"
    yield from _code(config)
    yield from _shape(config, family)
    yield from family.checks(config)
    yield from rope_mistakes(config, family)


def _code(config: Config) -> Iterator[str]:
    own = config.get("auto_map") or {}
    own = own if isinstance(own, dict) else {"AutoModel": own}
    models = [name for name in own if name not in ("AutoTokenizer", "AutoProcessor")]
    if models:
        yield f"auto_map has code of its own for {', '.join(models)}, which is not run here; use a model without"


def no_windows(config: Config) -> Iterator[str]:
    """A family's check: all of its layers see all tokens before."""
    kinds = config.get("layer_types")
    other = [kind for kind in kinds if kind not in FULL] if isinstance(kinds, list) else [kinds] * (kinds is not None)
    if other:
        yield f"layer_types has {json.dumps(other[0])}, which cannot be trained; only full_attention can"
    else:
        yield from one_for_each(config)


def one_for_each(config: Config) -> Iterator[str]:
    kinds, layers = config.get("layer_types"), config["num_hidden_layers"]
    if kinds is not None and len(kinds) != layers:
        yield f"layer_types has {len(kinds)} layers, and num_hidden_layers={layers}; write one for each"


def windows(config: Config) -> Iterator[str]:
    """A family's check: layers that layer_types calls sliding see the last sliding_window tokens."""
    kinds = config.get("layer_types")
    known = [FULL[0], SLIDING]
    other = [kind for kind in kinds if kind not in known] if isinstance(kinds, list) else [kinds] * (kinds is not None)
    if other:
        yield f"layer_types has {json.dumps(other[0])}, which cannot be trained; only {' and '.join(known)} can"
    else:
        yield from one_for_each(config)
    if config.get("sliding_window", 1) is None:
        yield "sliding_window=null is no whole number above 0"
    yield from window(config)


def window(config: Config) -> Iterator[str]:
    """A family's check: all layers see the last sliding_window tokens, or all before."""
    size = config.get("sliding_window")
    if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
        yield f"{shown('sliding_window', size)} is no whole number above 0"


def bounds(config: Config, *names: str) -> Iterator[str]:
    """A family's check: these fields are numbers above 0, or null where they are soft caps."""
    for name in names:
        if name in config and not number(config[name]) and not (config[name] is None and "softcapping" in name):
            yield f"{shown(name, config[name])} is no number above 0"


def _shape(config: Config, family: Family) -> Iterator[str]:
    heads, groups, size = config["num_attention_heads"], kv_heads(config, family), head_size(config, family)
    for name, value in (("num_key_value_heads", groups), ("head_dim", size)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            yield f"{shown(name, value)} is no whole number above 0"
            return
    if heads % groups:
        yield f"num_key_value_heads={groups} does not divide num_attention_heads={heads}"
    if size % 2:
        yield f"head_dim={size} is odd; a rotary embedding turns pairs"
    tied, eps = config.get("tie_word_embeddings", False), config.get("rms_norm_eps", 1e-6)
    if not isinstance(tied, bool):
        yield f"{shown('tie_word_embeddings', tied)} is neither true nor false"
    if not number(eps):
        yield f"{shown('rms_norm_eps', eps)} is no number above 0"

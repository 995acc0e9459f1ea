"""Any causal language model that the installed transformers has: which they are, and what its config.json says of its
sizes. Read from transformers' files, without importing it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from yatt.models.fields import EVERY, FULL, SLIDING
from yatt.models.values import shown

Config = Mapping[str, Any]
Shapes = Mapping[str, tuple[int, ...]]

OTHER_NAMES = {
    "hidden_size": ("n_embd", "d_model", "n_embed"),
    "num_hidden_layers": ("n_layer", "n_layers", "num_layers"),
    "num_attention_heads": ("n_head", "n_heads", "num_heads"),
    "max_position_embeddings": ("n_positions", "n_ctx", "max_seq_len", "max_sequence_length"),
    "intermediate_size": ("n_inner", "ffn_dim", "ffn_hidden_size", "d_ff", "moe_intermediate_size"),
}
"""Sizes under a Llama's names -> what older families call them."""
EXPERTS = ("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts")
CHOSEN = ("num_experts_per_tok", "moe_topk", "top_k_experts", "moe_k")
EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight")
LANGUAGE = ("ForCausalLM", "LMHeadModel")
"""How the names of architectures end that predict tokens and nothing else."""
REFUSED = (
    *("is_encoder_decoder", "quantization_config", "compression_config", "transformers_weights", "speculators_config"),
    *("text_config", "llm_config", "thinker_config", "text_encoder", "decoder", "generator", "per_layer_config"),
    *("block_configs", "attention_chunk_size", "dual_chunk_attention_config", "is_causal"),
)
"""Fields whose values are limited for every model, as in `fields.EVERY`."""
ROPES = ("default", "linear", "llama3", "yarn")
"""Rotary embeddings of a token that depend on no other token of its batch."""
_TABLE = r"^{name} = OrderedDict\(\s*\[(.*?)^    \]"
_LAYER = re.compile(r"\.\d+\.")


class Sizes(NamedTuple):
    """Weights of all layers, and those that one token passes through."""

    all: int
    active: int


def causal_architectures() -> dict[str, str]:
    """model_type -> architecture, of every causal language model that the installed transformers has."""
    every = _table("MODEL_FOR_CAUSAL_LM_MAPPING_NAMES")
    return {kind: name for kind, name in every.items() if name.endswith(LANGUAGE)}


def scoring_architectures() -> dict[str, str]:
    """model_type -> architecture of its sequence classifier."""
    return _table("MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES")


def can_score(architecture: str) -> bool:
    """Whether transformers has a sequence classifier of this architecture's family, or it is one."""
    scoring = scoring_architectures()
    kinds = [kind for kind, name in causal_architectures().items() if name == architecture]
    return architecture in scoring.values() or any(kind in scoring for kind in kinds)


@cache
def _table(name: str) -> dict[str, str]:
    text = (_transformers() / "models/auto/modeling_auto.py").read_text(encoding="utf-8")
    rows = re.search(_TABLE.format(name=name), text, re.MULTILINE | re.DOTALL)
    return dict(re.findall(r'\(\s*"([^"]+)",\s*"([^"]+)",?\s*\)', rows.group(1))) if rows else {}


def _transformers() -> Path:
    spec = find_spec("transformers")
    assert spec is not None and spec.submodule_search_locations
    return Path(next(iter(spec.submodule_search_locations)))


@cache
def code_of(architecture: str) -> str:
    """The code of an architecture's model in transformers; empty where there is none."""
    line = re.compile(rf"^class {re.escape(architecture)}\(", re.MULTILINE)
    kinds = [kind for kind, name in causal_architectures().items() if name == architecture]
    folders = [kind.replace("-", "_").removesuffix(end) for kind in kinds for end in ("", "_text")]
    models = _transformers() / "models"
    likely = [models / folder / f"modeling_{folder}.py" for folder in folders]
    for file in (*likely, *sorted(models.glob("*/modeling_*.py"))):
        if file.is_file() and line.search(text := file.read_text(encoding="utf-8")):
            return text
    return ""


def model_mistakes(config: Config, architecture: str) -> Iterator[str]:
    """One line for each reason why sequences that lie end to end would not be trained as this config.json says."""
    kind = config.get("model_type")
    causal = causal_architectures().get(str(kind), "")
    if architecture not in (causal, scoring_architectures().get(str(kind))):
        yield f"{shown('model_type', kind)} is not {architecture}'s in the installed transformers; mend config.json"
        return
    for name in REFUSED:
        some = EVERY[name]
        if name in config and config[name] not in some and config[name] is not None:
            able = [value for value in some if value is not None]
            remedy = f"only {shown(name, able[0])} can" if able else "remove it"
            yield f"{shown(name, config[name])} cannot be trained; {remedy}"
    own = config.get("auto_map") or {}
    if models := [name for name in own if name not in ("AutoTokenizer", "AutoProcessor")]:
        yield f"auto_map has code of its own for {', '.join(models)}, which is not run here; use a model without"
    yield from _layers(config)
    yield from _rope(config)
    yield from _code(causal, architecture, decodes=config.get("is_decoder") is True)


def _layers(config: Config) -> Iterator[str]:
    kinds = config.get("layer_types") or ()
    other = [kind for kind in kinds if kind not in (*FULL, SLIDING)]
    if other:
        yield (
            f"layer_types has {shown('', other[0])[1:]}, whose state would pass from one packed sequence to the next; "
            f"only {FULL[0]} and {SLIDING} can"
        )


def _rope(config: Config) -> Iterator[str]:
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    each = [one for one in rope.values() if isinstance(one, Mapping)] or [rope]
    for one in each:
        kind = one.get("rope_type", one.get("type", "default"))
        if kind not in ROPES:
            yield f"rope_type={kind} turns by what else is in the batch; only {', '.join(ROPES)} can"


def _code(causal: str, architecture: str, *, decodes: bool) -> Iterator[str]:
    """By how transformers writes its models: they call attention through its interface, and hand on what it needs."""
    code = code_of(causal)
    masked = "create_sliding_window_causal_mask" in code and "sliding_window=" not in code
    if "_supports_attention_backend = True" not in code or masked or "create_chunked_causal_mask" in code:
        yield f"transformers' {architecture} has attention of its own, which takes no packed sequences; use another"
    elif "self.is_decoder = config.is_decoder" in code and not decodes:
        yield f"transformers' {architecture} sees later tokens too unless config.json has is_decoder=true; use another"
    elif "_is_stateful = True" in code:
        yield f"transformers' {architecture} keeps a state, which would pass from one packed sequence to the next"


def completed(config: Config) -> dict[str, Any]:
    """The fields of a config.json with sizes under a Llama's names, as far as they are there."""
    sizes = dict(config)
    for name, others in OTHER_NAMES.items():
        if sizes.get(name) is None:
            sizes[name] = next((config[other] for other in others if config.get(other) is not None), None)
    if sizes["intermediate_size"] is None and isinstance(sizes["hidden_size"], int):
        sizes["intermediate_size"] = 4 * sizes["hidden_size"]
    return sizes


def head_dims(config: Config) -> int:
    """Dimensions of a head of keys."""
    if config.get("qk_nope_head_dim"):
        return int(config["qk_nope_head_dim"]) + int(config.get("qk_rope_head_dim") or 0)
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def embedding_rows(shapes: Shapes) -> int | None:
    """Rows of the embedding in a folder's files."""
    return next((shape[0] for name, shape in shapes.items() if name.endswith(EMBEDDINGS)), None)


def layer_sizes(config: Config, shapes: Shapes) -> Sizes | None:
    """Weights of the matrices of all layers, from the shapes of a folder's tensors, and of those that a token meets:
    of experts, so many as it is sent to. Without shapes they are worked out for experts alone: None elsewhere."""
    count, chosen = (next((config[n] for n in names if config.get(n)), 0) for names in (EXPERTS, CHOSEN))
    share = chosen / count if count else 1.0
    if shapes:
        inner = {n: math.prod(s) for n, s in shapes.items() if _LAYER.search(n) and len(s) > 1}
        experts = sum(size for name, size in inner.items() if ".experts." in name)
        total = sum(inner.values())
        return Sizes(total, round(total - experts * (1 - share)))
    if not count:
        return None
    hidden, layers = config["hidden_size"], config["num_hidden_layers"]
    inside = config.get("moe_intermediate_size") or config["intermediate_size"]
    heads = config["num_attention_heads"] + (config.get("num_key_value_heads") or config["num_attention_heads"])
    shared = config.get("shared_expert_intermediate_size") or inside * (config.get("n_shared_experts") or 0)
    dense = config.get("first_k_dense_replace") or 0
    rest = layers * 2 * hidden * head_dims(config) * heads + dense * 3 * hidden * config["intermediate_size"]
    rest += (layers - dense) * 3 * hidden * shared
    experts = (layers - dense) * 3 * hidden * inside * count
    return Sizes(rest + experts, round(rest + experts * share))

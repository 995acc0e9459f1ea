"""The description of a family: how its folder is read, its weights are cut and its model is built."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from yatt.models.vision import PLAIN_PREFIXES, Prefixes, Tower, named

Config = Mapping[str, Any]
"""A config.json, or the same fields as transformers completes them."""
Names = tuple[str, ...]
Shape = tuple[int, ...]
Cut = Literal["whole", "rows", "heads", "columns", "gate_up", "qkv"]
"""How a tensor is cut over tensor parallelism: not at all, by rows of the vocabulary, by rows of attention heads, by
columns, by rows of two stacked matrices, by attention group."""

EMBEDDING, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
SCORE = "score.weight"
"""Hugging Face's name of the head [1, H] of a sequence classifier of one label."""

CUTS: dict[str, Cut] = {
    "input_norm": "whole",
    "qkv": "qkv",
    "qkv_bias": "qkv",
    "q_norm": "whole",
    "k_norm": "whole",
    "output": "columns",
    "attention_norm": "whole",
    "mlp_input_norm": "whole",
    "gate_up": "gate_up",
    "down": "columns",
    "mlp_norm": "whole",
}
"""Parts of a layer, in the order of the forward pass. A layer has those that its family names: the two input norms
before attention and MLP, the other two after them, before the residual is added."""

QKV: Names = ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight")
QKV_BIAS: Names = ("self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias")
QK_NORMS: dict[str, Names] = {"q_norm": ("self_attn.q_norm.weight",), "k_norm": ("self_attn.k_norm.weight",)}
PLAIN: dict[str, Names] = {
    "input_norm": ("input_layernorm.weight",),
    "qkv": QKV,
    "output": ("self_attn.o_proj.weight",),
    "mlp_input_norm": ("post_attention_layernorm.weight",),
    "gate_up": ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
    "down": ("mlp.down_proj.weight",),
}
"""A layer of a Llama: part -> the names of its tensors. Where there are fewer names than matrices, one tensor has the
matrices below each other."""


class Attention(NamedTuple):
    """How one layer attends. `window`: the last tokens that one sees, itself included; None for all. `soft_cap`: the
    bound c of c tanh(score / c). `scale` of the scores. `angles`: which of the model's rotary embeddings."""

    window: int | None
    soft_cap: float | None
    scale: float
    angles: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One family. What is left out is as in a Llama."""

    name: str
    """How the names of its architectures begin."""
    model_type: str
    language_type: str = ""
    """The model_type of its language model, where that has a config of its own."""
    tower: Tower | None = None
    """What it sees with."""
    parts: Mapping[str, Names] = field(default_factory=lambda: PLAIN)
    """Part of a layer -> its names in a Hugging Face folder."""
    optional: Mapping[str, str] = field(default_factory=dict)
    """Part -> the field of config.json that says whether it is there."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Values that transformers takes where a field is left out, where a Llama has another."""
    values: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """Fields of this family -> the values that are trained, the first of which is offered; see `fields.EVERY`."""
    obeys: Names = ()
    """Fields beside `fields.COMMON` that the forward pass depends on."""
    checks: Callable[[Config], Iterator[str]] = lambda config: iter(())
    """One line for each reason, not found in `values`, why the family would not be trained as config.json says."""
    classifier: str = ""
    """The architecture that scores, where it is not NAMEForSequenceClassification."""
    activation_field: str = "hidden_act"
    activation: Literal["silu", "gelu_pytorch_tanh"] = "silu"
    rope_types: Names = ("default", "linear", "llama3", "yarn")
    rope_layers: Names = ()
    """Kinds of layers that have rotary parameters of their own, under their names in rope_parameters."""
    partial_rotary: bool = False
    """Whether a rotary embedding may turn the first dimensions of a head alone."""
    interleaved: bool = False
    """Whether it turns neighbours, and not a head's first half with its second."""
    whole_qk_norm: bool = False
    """Whether the norms of q and k go over all heads, and not over each."""
    sections: Literal["none", "apart", "interleaved"] = "none"
    """Whether positions have three axes (time, row, column), and which pairs of dimensions each of them turns: one
    section of them after another, or every third."""
    unit_offset: bool = False
    """Whether norms multiply by 1 + weight."""
    scaled_embedding: bool = False
    """Whether embeddings are multiplied by sqrt(hidden_size)."""
    windows: Literal["none", "every", "by layer_types"] = "none"
    """Which layers see the last sliding_window tokens only."""

    @property
    def causal(self) -> str:
        """The architecture that predicts tokens."""
        return f"{self.name}{'ForCausalLM' if self.tower is None else 'ForConditionalGeneration'}"

    @property
    def scoring(self) -> str:
        """The architecture that scores; empty where transformers has none."""
        return self.classifier or (f"{self.name}ForSequenceClassification" if self.tower is None else "")

    def value(self, config: Config, name: str) -> Any:
        """A field as transformers reads it."""
        return config.get(name, self.defaults.get(name))

    def layer(self, config: Config) -> dict[str, Names]:
        """The parts of this model's layers."""
        absent = [part for part, switch in self.optional.items() if not self.value(config, switch)]
        return {part: self.parts[part] for part in CUTS if part in self.parts and part not in absent}

    def attention(self, config: Config) -> list[Attention]:
        """How each layer attends, from a config that transformers completed."""
        cap = config.get("attn_logit_softcapping") if "attn_logit_softcapping" in self.obeys else None
        scalar = config["query_pre_attn_scalar"] if "query_pre_attn_scalar" in self.obeys else head_size(config, self)
        kinds = []
        for i in range(config["num_hidden_layers"]):
            kind = config["layer_types"][i] if self.windows == "by layer_types" else "full_attention"
            slides = self.windows == "every" or kind == "sliding_attention"
            window = config.get("sliding_window") if slides else None
            kinds.append(Attention(window, cap, scalar**-0.5, kind if self.rope_layers else ""))
        return kinds

    def soft_cap(self, config: Config) -> float | None:
        """The bound of the logits; None for none."""
        name = "final_logit_softcapping"
        return self.value(config, name) if name in self.obeys else None

    def embedding_scale(self, config: Config) -> float:
        """The factor of embeddings."""
        return math.sqrt(config["hidden_size"]) if self.scaled_embedding else 1.0


def kv_heads(config: Config, family: Family | None) -> int:
    default = family.defaults.get("num_key_value_heads") if family else None
    groups: int = config.get("num_key_value_heads", default) or config["num_attention_heads"]
    return groups


def head_size(config: Config, family: Family | None) -> int:
    default = family.defaults.get("head_dim") if family else None
    size: int = config.get("head_dim", default) or config["hidden_size"] // config["num_attention_heads"]
    return size


def tied(config: Config, family: Family | None) -> bool:
    default = family.defaults.get("tie_word_embeddings", False) if family else False
    return bool(config.get("tie_word_embeddings", default))


def layer_shapes(config: Config, family: Family) -> dict[str, list[Shape]]:
    """Part of a layer -> the shape of each of its matrices or vectors."""
    heads, groups, size = config["num_attention_heads"], kv_heads(config, family), head_size(config, family)
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    q, k = heads * size, groups * size
    norm: list[Shape] = [(hidden,)]
    return {
        "input_norm": norm,
        "qkv": [(q, hidden), (k, hidden), (k, hidden)],
        "qkv_bias": [(q,), (k,), (k,)],
        "q_norm": [(q if family.whole_qk_norm else size,)],
        "k_norm": [(k if family.whole_qk_norm else size,)],
        "output": [(hidden, q)],
        "attention_norm": norm,
        "mlp_input_norm": norm,
        "gate_up": [(inner, hidden), (inner, hidden)],
        "down": [(hidden, inner)],
        "mlp_norm": norm,
    }


def tensors(config: Config, family: Family, architecture: str, prefixes: Prefixes = PLAIN_PREFIXES) -> dict[str, Shape]:
    """Name -> shape of every tensor that the model of this config.json has (its language model's fields at the top). A
    head that is tied is not among them. `prefixes` are its folder's."""
    shapes = layer_shapes(config, family)
    layer: dict[str, Shape] = {}
    for part, names in family.layer(config).items():
        given = shapes[part]
        if len(names) < len(given):  # below each other in one tensor
            given = [(sum(shape[0] for shape in given), *given[0][1:])]
        layer |= dict(zip(names, given, strict=True))
    hidden, vocabulary = config["hidden_size"], config["vocab_size"]
    every: dict[str, Shape] = {EMBEDDING: (vocabulary, hidden), NORM: (hidden,)}
    for i in range(config["num_hidden_layers"]):
        every |= {f"model.layers.{i}.{name}": shape for name, shape in layer.items()}
    if architecture == family.scoring:
        every[SCORE] = (1, hidden)
    elif not tied(config, family):
        every[HEAD] = (vocabulary, hidden)
    if family.tower is not None:
        every |= {f"visual.{name}": shape for name, shape in family.tower.tensors(config["vision_config"]).items()}
    return {named(name, prefixes): shape for name, shape in every.items()}

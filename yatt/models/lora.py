"""Low-rank adapters (arXiv 2106.09685): which linear layers of a family may have them, and how large they are.

A layer W [out, in] with an adapter is W + alpha / rank * B A, with B [out, rank] and A [rank, in]. Layers have the
names that transformers and peft give them: one tensor of a Hugging Face folder, one adapter."""

from __future__ import annotations

from collections.abc import Collection

from yatt.models.facts import ModelFacts
from yatt.models.family import Config, Family, layer_shapes

LINEAR = ("qkv", "output", "gate_up", "down")
"""Parts of a layer that are matrices."""
ALL = "all-linear"
"""Stands for every linear layer but the head over the vocabulary."""


def linear_layers(config: Config, family: Family) -> dict[str, tuple[int, int]]:
    """Name, such as q_proj, -> [out, in] of each linear layer that a layer of this model has."""
    shapes, found = layer_shapes(config, family), dict[str, tuple[int, int]]()
    for part in LINEAR:
        names, given = family.parts[part], shapes[part]
        if len(names) < len(given):  # below each other in one tensor
            given = [(sum(shape[0] for shape in given), given[0][1])]
        found |= {short(name): (shape[0], shape[1]) for name, shape in zip(names, given, strict=True)}
    return found


def layers_of(model: ModelFacts, family: Family) -> dict[str, tuple[int, int]]:
    """As `linear_layers`, from a model's sizes."""
    config = {
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.kv_heads,
        "head_dim": model.head_dim,
        "hidden_size": model.hidden_size,
        "intermediate_size": model.intermediate_size,
    }
    return linear_layers(config, family)


def short(name: str) -> str:
    """self_attn.q_proj.weight -> q_proj."""
    return name.removesuffix(".weight").rpartition(".")[2]


def chosen(targets: str | Collection[str], names: Collection[str]) -> list[str]:
    """Those of a model's linear layers that `train.lora.targets` names, in the model's order."""
    return [name for name in names if targets == ALL or name in targets]


def adapter_parameters(model: ModelFacts, family: Family, targets: str | Collection[str], rank: int) -> int:
    """Numbers in all adapters of a model."""
    layers = layers_of(model, family)
    return model.layers * sum(rank * sum(layers[name]) for name in chosen(targets, layers))

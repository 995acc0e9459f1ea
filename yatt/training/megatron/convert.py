"""Weights between a Hugging Face folder and the shards of a GPTModel, exact both ways under any TP and PP."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer.transformer_layer import get_transformer_layer_offset
from safetensors import safe_open
from torch import Tensor

from yatt.config.weight_files import weight_files
from yatt.errors import ConfigError
from yatt.models.family import CUTS, EMBEDDING, HEAD, NORM, SCORE, Cut, Names, Shape, layer_shapes
from yatt.models.table import LANGUAGES
from yatt.models.vision import PLAIN_PREFIXES, named, prefixes_of
from yatt.training.layout import Layout
from yatt.training.megatron.model import shard_rows
from yatt.training.model import Head

OUTER: dict[str, tuple[str, Cut]] = {
    "embedding.word_embeddings.weight": (EMBEDDING, "rows"),
    "output_layer.weight": (HEAD, "rows"),
    "decoder.final_layernorm.weight": (NORM, "whole"),
}
PARTS = {
    "input_layernorm.weight": "input_norm",
    "self_attention.linear_qkv.weight": "qkv",
    "self_attention.linear_qkv.bias": "qkv_bias",
    "self_attention.q_layernorm.weight": "q_norm",
    "self_attention.k_layernorm.weight": "k_norm",
    "self_attention.linear_proj.weight": "output",
    "post_attention_layernorm.weight": "attention_norm",
    "pre_mlp_layernorm.weight": "mlp_input_norm",
    "mlp.linear_fc1.weight": "gate_up",
    "mlp.linear_fc2.weight": "down",
    "post_mlp_layernorm.weight": "mlp_norm",
}
"""Parameter of a Megatron layer -> the part of a family's layer that it is."""


Merged = Callable[[str, Tensor], Tensor]
"""(Megatron's name of a weight, this rank's shard) -> the shard that is exported."""


class Entry(NamedTuple):
    """One parameter of the whole model: its Megatron name, the pipeline stage that has it, its shard's shape."""

    name: str
    stage: int
    shape: tuple[int, ...]
    dtype: torch.dtype


class Converter:
    """Knows every parameter of the model on all stages. Construction is collective over the pipeline. `names` are those
    in the folder, whose spelling is kept."""

    def __init__(
        self, hf: Any, model: GPTModel, layout: Layout, head: Head = "tokens", *, names: Collection[str] = ()
    ) -> None:
        self.hf, self.model, self.layout, self.head = hf, model, layout, head
        config = hf.to_dict()
        self.family = LANGUAGES[hf.model_type]
        self._prefixes = prefixes_of(names, self.family.tower)
        self._layer, self._shapes = self.family.layer(config), layer_shapes(config, self.family)
        offset = get_transformer_layer_offset(model.config)
        self._own = {  # by name in the whole model, that in this rank's part
            re.sub(r"(?<=^decoder\.layers\.)\d+", lambda match: str(int(match.group()) + offset), name): name
            for name, _ in model.named_parameters()
        }
        self.parameters = {name: model.get_parameter(own) for name, own in self._own.items()}
        entries = [Entry(n, layout.pp.rank(), tuple(p.shape), p.dtype) for n, p in self.parameters.items()]
        stages: list[list[Entry]] = [entries] * layout.pp.size()
        if layout.pp.size() > 1:
            dist.all_gather_object(stages, entries, group=layout.pp)
        tied = self.tied = hf.tie_word_embeddings and head == "tokens"
        # The last stage's copy of a tied embedding is the first stage's.
        self.entries = [e for stage in stages for e in stage if not (tied and e.name == "output_layer.weight")]

    def names(self, name: str) -> tuple[Names, Cut, list[Shape]]:
        """The Hugging Face names that make up this parameter, how it is cut, and the shapes of its matrices, where it
        has several."""
        names, cut, shapes = self.plain(name)
        return tuple(named(one, self._prefixes) for one in names), cut, shapes

    def owner(self, name: str) -> torch.nn.Module:
        """The module of this rank's part that has the parameter."""
        module: torch.nn.Module = self.model.get_submodule(self._own[name].rpartition(".")[0])
        return module

    def in_transformers(self, name: str) -> str:
        """What transformers calls a tensor that `yatt.models.family` calls so, in a model that it has loaded."""
        return named(name, PLAIN_PREFIXES if self.family.tower is None else self.family.tower.prefixes[0])

    def plain(self, name: str) -> tuple[Names, Cut, list[Shape]]:
        """As `names`, in the spelling of `yatt.models.family`."""
        if name.startswith("visual."):
            return (name,), "whole", []
        if name == "output_layer.weight" and self.head == "value":
            return (SCORE,), "whole", []
        if name == "output_layer.weight" and self.tied:
            name = "embedding.word_embeddings.weight"
        if name in OUTER:
            own, cut = OUTER[name]
            return (own,), cut, []
        _, _, layer, rest = name.split(".", 3)
        part = PARTS[rest]
        cut = "heads" if self.family.whole_qk_norm and part in ("q_norm", "k_norm") else CUTS[part]
        return tuple(f"model.layers.{layer}.{own}" for own in self._layer[part]), cut, self._shapes[part]

    def shard(self, tensors: list[Tensor], cut: Cut) -> Tensor:
        """Full Hugging Face tensors -> this rank's shard."""
        n, r = self.layout.tp.size(), self.layout.tp.rank()
        if cut == "whole":
            return tensors[0]
        if cut == "heads":
            return tensors[0].chunk(n)[r]
        if cut == "columns":
            return tensors[0].chunk(n, dim=1)[r]
        if cut == "rows":
            padding = n * shard_rows(self.hf, self.layout) - len(tensors[0])
            return F.pad(tensors[0], (0, 0, 0, max(0, padding))).chunk(n)[r]
        if cut == "gate_up":
            return torch.cat([t.chunk(n)[r] for t in tensors])
        groups = self.hf.num_key_value_heads
        stacked = torch.cat([t.reshape(groups, -1, *t.shape[1:]) for t in tensors], dim=1)
        return stacked.reshape(-1, *tensors[0].shape[1:]).chunk(n)[r]

    def merge(self, shards: list[Tensor], cut: Cut) -> list[Tensor]:
        """The shards of all TP ranks -> full Hugging Face tensors."""
        if cut == "whole":
            return [shards[0]]
        if cut == "heads":
            return [torch.cat(shards)]
        if cut == "columns":
            return [torch.cat(shards, dim=1)]
        if cut == "rows":
            return [torch.cat(shards)[: self.hf.vocab_size]]
        if cut == "gate_up":
            return [torch.cat(halves) for halves in zip(*(s.chunk(2) for s in shards), strict=True)]
        groups, size = self.hf.num_key_value_heads, self.model.config.kv_channels
        stacked = torch.cat(shards)
        stacked = stacked.reshape(groups, -1, *stacked.shape[1:])
        split = stacked.split([stacked.shape[1] - 2 * size, size, size], dim=1)
        return [t.reshape(-1, *t.shape[2:]) for t in split]

    @torch.no_grad()
    def load(self, read: Reader) -> None:
        """Set this rank's weights from a folder. A value head that is not there keeps its zeros."""
        for name, parameter in self.parameters.items():
            names, cut, shapes = self.names(name)
            if names == (SCORE,) and SCORE not in read.where:
                continue
            tensors = [read(n) for n in names]
            if len(tensors) < len(shapes):
                tensors = list(tensors[0].split([shape[0] for shape in shapes]))
            shard = self.shard(tensors, cut)
            if shard.shape != parameter.shape:
                raise ConfigError(
                    f"{names[0]} has {tuple(shard.shape)} per rank, its config says {tuple(parameter.shape)}"
                )
            parameter.copy_(shard)

    @torch.no_grad()
    def export(self, merged: Merged = lambda name, shard: shard) -> Iterator[tuple[str, Tensor]]:
        """Every weight under its Hugging Face name, in full, on the model's device; one parameter in memory at a time.
        `merged` makes of this rank's shard what goes out.

        Collective over the model-parallel ranks: each must exhaust it."""
        tp, pp = self.layout.tp, self.layout.pp
        for entry in self.entries:
            names, cut, shapes = self.names(entry.name)
            tensor = self.parameters.get(entry.name) if entry.stage == pp.rank() else None
            if tensor is None:
                tensor = torch.empty(entry.shape, dtype=entry.dtype, device=self.layout.device)
            else:
                tensor = merged(entry.name, tensor)
            tensor = tensor.detach().contiguous()
            if pp.size() > 1:
                dist.broadcast(tensor, dist.get_global_rank(pp, entry.stage), group=pp)
            shards = [tensor]
            if cut != "whole" and tp.size() > 1:
                shards = [torch.empty_like(tensor) for _ in range(tp.size())]
                dist.all_gather(shards, tensor, group=tp)
            tensors = self.merge(shards, cut)
            if len(names) < len(shapes):
                tensors = [torch.cat(tensors)]
            yield from zip(names, tensors, strict=True)


class Reader:
    """Reads full tensors by name from the weight files of a folder. `setting` is the field to blame in errors."""

    def __init__(self, folder: str, setting: str) -> None:
        files = weight_files(Path(folder), setting)
        self._at = f"{setting}={folder}"
        handles = [safe_open(file, "pt") for file in files]
        self.where = {name: handle for handle in handles for name in handle.keys()}  # noqa: SIM118

    def __call__(self, name: str) -> Tensor:
        """Raises ConfigError where there is none of that name."""
        if name not in self.where:
            raise ConfigError(f"{self._at}: weight {name} is missing from its safetensors file(s)")
        tensor: Tensor = self.where[name].get_tensor(name)
        return tensor

"""Low-rank adapters beside the parallel linear layers of a GPTModel: peft's, one for each matrix of the folder, under
any TP, SP and PP.

A layer of Megatron's may hold several matrices (q, k and v; gate and up). Each has an A and a B of its own. Where TP
cuts rows, B is cut like them and A is whole on every rank; where it cuts columns, A is cut and B whole."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
import xxhash
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from megatron.core.tensor_parallel import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
    set_tensor_model_parallel_attributes,
)
from torch import Tensor

from yatt.config.schema import LoraConfig
from yatt.models.family import SCORE, Cut
from yatt.models.lora import LINEAR, chosen, short
from yatt.training.layout import Layout
from yatt.training.megatron.convert import PARTS, Converter
from yatt.training.megatron.optimizer_state import Places

OUTPUT = "output_layer.weight"


class Adapter(torch.nn.Module):
    """What adapters add to the output of one parallel linear layer.

    `matrices` are transformers' names of them in their order, `given` the names of those that have an adapter,
    `rows` this rank's rows of each matrix. Where one tensor of the folder holds all matrices, there is one name, and B
    has Megatron's order of rows."""

    def __init__(
        self, linear: Any, matrices: Sequence[str], given: Sequence[str], rows: Sequence[int], *, cut: Cut, groups: int
    ) -> None:
        super().__init__()
        self.matrices, self.given, self.rows, self.cut, self.groups = matrices, given, rows, cut, groups
        self.by_columns, self.sharded = cut == "columns", bool(linear.sequence_parallel)
        self.a, self.b = torch.nn.ParameterDict(), torch.nn.ParameterDict()

    def put(self, module: str, a: Tensor, b: Tensor) -> None:
        """Take this rank's shards."""
        for held, values, cut in ((self.a, a, self.by_columns), (self.b, b, not self.by_columns)):
            parameter = torch.nn.Parameter(values.contiguous())
            if cut:
                set_tensor_model_parallel_attributes(
                    parameter, is_parallel=True, dim=1 if self.by_columns else 0, stride=1
                )
            else:  # each rank's gradient is of its own tokens
                setattr(parameter, "sequence_parallel", self.sharded)  # noqa: B010
            held[key(module)] = parameter

    def shards(self, module: str) -> tuple[Tensor, Tensor]:
        """A and B of one matrix, as far as this rank has them."""
        return self.a[key(module)], self.b[key(module)]

    def forward(self, x: Tensor) -> Tensor:
        """x [T, 1, in], of this rank's columns where TP cuts them -> [T, 1, out], of its rows where it cuts those."""
        low = F.linear(x, torch.cat([self.shards(module)[0] for module in self.given]))
        if self.by_columns:
            reduce = (
                reduce_scatter_to_sequence_parallel_region if self.sharded else reduce_from_tensor_model_parallel_region
            )
            low = reduce(low)
        else:
            # Each rank's rows have a part of the gradient.
            low = (
                gather_from_sequence_parallel_region(low) if self.sharded else copy_to_tensor_model_parallel_region(low)
            )
        parts = low.chunk(len(self.given), dim=-1)
        return self._together(
            [F.linear(part, self.shards(module)[1]) for part, module in zip(parts, self.given, strict=True)]
        )

    def delta(self) -> Tensor:
        """B A of this rank's shard of the weight, float32."""
        products = [(b.float() @ a.float()).t() for a, b in map(self.shards, self.given)]
        return self._together(products).t()

    def _together(self, parts: Sequence[Tensor]) -> Tensor:
        """Of each adapter [..., rows of its matrix] -> [..., rows of the layer] in Megatron's order, zeros for matrices
        without one."""
        if len(self.matrices) == 1:
            return parts[0]
        found, like = dict(zip(self.given, parts, strict=True)), parts[0]
        every = [
            found.get(module, like.new_zeros(()).expand(*like.shape[:-1], rows))
            for module, rows in zip(self.matrices, self.rows, strict=True)
        ]
        if self.cut == "gate_up":
            return torch.cat(every, dim=-1)
        grouped = [part.unflatten(-1, (self.groups, -1)) for part in every]
        return torch.cat(grouped, dim=-1).flatten(-2)


class Adapters:
    """All adapters of a model's part on this rank, by the Megatron name of the weight beside which they stand."""

    def __init__(self, settings: LoraConfig, converter: Converter, seed: int) -> None:
        """Put them beside the layers of the converter's model. Drawn as peft draws them: A uniform up to
        1 / sqrt(in), B zero. What is drawn for a matrix follows from `seed` and its name alone."""
        self._settings, self._converter, self._seed = settings, converter, seed
        self.scale = settings.alpha / settings.rank
        self.on = True
        # One number per token is read from what no adapter stands beside: the head learns whole.
        self._head = converter.parameters.get(OUTPUT) if converter.head == "value" else None
        if self._head is not None:
            self._head.requires_grad_(True)
        self._by_name = {
            name: adapter
            for name in converter.parameters
            if name.startswith("decoder.layers.") and (adapter := self._beside(name)) is not None
        }

    @property
    def layout(self) -> Layout:
        return self._converter.layout

    def _beside(self, name: str) -> Adapter | None:
        """The adapter of a weight; None where it is to have none."""
        if PARTS.get(name.split(".", 3)[3]) not in LINEAR:
            return None
        names, cut, shapes = self._converter.plain(name)
        modules = [self._converter.in_transformers(one).removesuffix(".weight") for one in names]
        given = [module for module in modules if chosen(self._settings.targets, [short(module)])]
        if not given:
            return None
        parameter, tp = self._converter.parameters[name], self.layout.tp.size()
        linear = self._converter.owner(name)
        cut_by = 1 if cut == "columns" else tp
        adapter = Adapter(
            linear,
            modules,
            given,
            [shape[0] // cut_by for shape in shapes],
            cut=cut,
            groups=self._converter.hf.num_key_value_heads // tp,
        )
        rank, into = self._settings.rank, shapes[0][1]
        for module in given:
            out = sum(shape[0] for shape in shapes) if len(modules) < len(shapes) else shapes[modules.index(module)][0]
            a, b = drawn(module, rank, into, self._seed), torch.zeros(out, rank)
            if cut == "columns":
                a = a.chunk(tp, dim=1)[self.layout.tp.rank()]
            else:
                b = b[: out // tp]
            adapter.put(module, a.to(parameter), b.to(parameter))
        linear.adapter = adapter
        linear.register_forward_hook(self._add)
        return adapter

    def _add(self, linear: Any, given: tuple[Tensor, ...], output: tuple[Tensor, Any]) -> tuple[Tensor, Any] | None:
        if not self.on:
            return None
        return output[0] + self.scale * linear.adapter(given[0]), output[1]

    @contextmanager
    def off(self) -> Iterator[None]:
        """The model as it was before it learnt, meanwhile."""
        self.on = False
        try:
            yield
        finally:
            self.on = True

    @torch.no_grad()
    def merged(self, name: str, weight: Tensor) -> Tensor:
        """This rank's shard of a weight, with what its adapters add."""
        adapter = self._by_name.get(name)
        return weight if adapter is None else (weight.float() + self.scale * adapter.delta()).to(weight.dtype)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """All that has learnt, whole, under peft's names. Of a model that is not cut."""
        for name, adapter in self._by_name.items():
            _, cut, shapes = self._converter.plain(name)
            for module in adapter.given:
                a, b = (part.detach() for part in adapter.shards(module))
                if len(adapter.matrices) < len(shapes):  # from Megatron's order of rows
                    b = torch.cat(self._converter.merge([b], cut))
                yield from ((f"{module}.lora_A.weight", a), (f"{module}.lora_B.weight", b))
        if self._head is not None:
            yield SCORE, self._head.detach()

    def places(self) -> Places:
        """Where their weights have their places in a checkpoint."""
        tp, found = self.layout.tp, dict[Tensor, list[tuple[ShardedTensor, int]]]()
        for name, adapter in self._by_name.items():
            stacked = len(adapter.matrices) < len(self._converter.plain(name)[2])
            for module in adapter.given:
                a, b = adapter.shards(module)
                cut: tuple[int, int, int] = (1 if adapter.by_columns else 0, tp.rank(), tp.size())
                found[a] = [(self.place(f"{module}.lora_A", a, *([cut] if adapter.by_columns else [])), 0)]
                key = f"{module}.lora_B"
                if adapter.by_columns or not (stacked and adapter.cut == "gate_up"):
                    found[b] = [(self.place(key, b, *([] if adapter.by_columns else [cut])), 0)]
                    continue
                gate, up = b.chunk(2)  # in the folder all rows of the gate come first
                places = [(0, tp.rank(), 2 * tp.size()), (0, tp.size() + tp.rank(), 2 * tp.size())]
                found[b] = [(self.place(key, gate, places[0]), 0), (self.place(key, up, places[1]), gate.numel())]
        if self._head is not None:
            found[self._head] = [(self.place(SCORE, self._head), 0)]
        return found

    def place(self, key: str, shard: Tensor, *cut: tuple[int, int, int]) -> ShardedTensor:
        """Of a tensor that is cut so, (axis, this rank's part, parts), or whole on every rank."""
        copies = 0 if cut else self.layout.tp.rank()
        return ShardedTensor.from_rank_offsets(key, shard, *cut, replica_id=(0, copies, self.layout.dp.rank()))


def key(module: str) -> str:
    """A name that a parameter may have."""
    return short(module)


def drawn(module: str, rank: int, into: int, seed: int) -> Tensor:
    """A [rank, in] at the start: kaiming's uniform of a = sqrt(5), as peft and torch's linear layers have it."""
    generator = torch.Generator().manual_seed(xxhash.xxh3_64_intdigest(module.encode(), seed=seed) >> 1)
    bound = 1 / math.sqrt(into)
    return torch.empty(rank, into).uniform_(-bound, bound, generator=generator)

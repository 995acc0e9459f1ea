"""The optimizer's state on its way into a checkpoint: each rank writes its own shard from where it lies.

Megatron cuts the state over the replicas by ranges of elements, which begin and end anywhere in a weight. In the
checkpoint a state has the shape of its weight, so that any layout can read it: a range is written as a few boxes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedStateDict, ShardedTensor, ShardedTensorFactory
from megatron.core.dist_checkpointing.strategies.torch import MCoreSavePlanner
from megatron.core.dist_checkpointing.utils import extract_sharded_tensors_and_factories
from torch import Tensor
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType

Shape = tuple[int, ...]


@dataclass(slots=True)
class Pieces:
    """A tensor of the checkpoint, of this shape in all, and the boxes of it that this rank writes, by their offsets."""

    shape: Shape
    boxes: dict[Shape, Tensor] = field(default_factory=dict)

    # torch asks for it under this name.
    def __create_write_items__(self, name: str, own: object) -> list[WriteItem]:
        return [
            WriteItem(
                index=MetadataIndex(name, torch.Size(offset)),
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(
                    chunk=ChunkStorageMetadata(offsets=torch.Size(offset), sizes=box.shape),
                    properties=TensorProperties.create_from_tensor(box),
                    size=torch.Size(self.shape),
                ),
            )
            for offset, box in self.boxes.items()
        ]


class Planner(MCoreSavePlanner):
    """Plans the writing of pieces too."""

    def __init__(self) -> None:
        super().__init__(dedup_replicated_tensors=False, flatten_state_dict=False)

    def lookup_object(self, index: MetadataIndex) -> Any:
        """The tensor of an item that is to be written."""
        state = self.state_dict[index.fqn]
        if not isinstance(state, Pieces):
            return super().lookup_object(index)
        assert index.offset is not None
        return state.boxes[tuple(index.offset)]


def state_pieces(optimizer: Any, weights: ShardedStateDict) -> dict[str, Pieces]:
    """What this rank's distributed optimizer holds (main weights and both moments), by name in the checkpoint.

    `weights` say where in the checkpoint each of the model's weights has its place. Nothing is copied, nor sent."""
    of_weight = {shard.data: shard for shard in nested_values(extract_sharded_tensors_and_factories(weights)[0])}
    pieces: dict[str, Pieces] = {}
    for weight, start, stop in _ranges(optimizer):
        states = optimizer._get_main_param_and_optimizer_states(weight)
        for shard, first in _shards(of_weight[weight], weight):
            begin, end = max(start, first), min(stop, first + shard.data.numel())
            # Weights that other ranks of the pipeline or tensor parallelism hold as well are written by one of them.
            if begin >= end or any(shard.replica_id[:-1]):
                continue
            for name in ("param", "exp_avg", "exp_avg_sq"):
                values = states[name].detach()[begin - start : end - start]
                entry = pieces.setdefault(f"optimizer.state.{name}.{shard.key}", Pieces(shard.global_shape))
                entry.boxes.update(_placed(values, begin - first, shard))
    return pieces


def _ranges(optimizer: Any) -> Iterator[tuple[Tensor, int, int]]:
    """The model's weights that this rank has a shard of the state of, with its first element and the one behind its
    last."""
    for of_types in optimizer.gbuf_ranges:
        for buckets in of_types.values():
            for bucket in buckets:
                for weight, ranges in bucket["param_map"].items():
                    yield weight, ranges["param"].start, ranges["param"].end


def _shards(shard: ShardedTensor | ShardedTensorFactory, weight: Tensor) -> Iterator[tuple[ShardedTensor, int]]:
    """A weight's parts that have places of their own in the checkpoint (gate and up projection), each with its first
    element in the weight."""
    if isinstance(shard, ShardedTensor):
        yield shard, 0
        return
    for part in nested_values(shard.build()):
        if part.data.untyped_storage().data_ptr() != weight.untyped_storage().data_ptr():
            raise NotImplementedError(f"{part.key}: the checkpoint's layout is no view of the weight")
        yield part, part.data.storage_offset() - weight.storage_offset()


def _placed(values: Tensor, start: int, shard: ShardedTensor) -> Iterator[tuple[Shape, Tensor]]:
    """Elements of a shard from `start` on [n], as boxes with their offsets in the whole tensor."""
    ahead = shard.prepend_axis_num
    base, done = shard.global_offset, 0
    for offset, sizes in boxes(shard.local_shape, start, start + len(values)):
        count = math.prod(sizes)
        place = (*base[:ahead], *(b + o for b, o in zip(base[ahead:], offset, strict=True)))
        yield place, values[done : done + count].view((1,) * ahead + sizes)
        done += count


def boxes(shape: Sequence[int], start: int, stop: int) -> Iterator[tuple[Shape, Shape]]:
    """Cut elements `start` to `stop` of a tensor, in row-major order, into boxes: offset and sizes of each."""
    if len(shape) == 1:
        yield (start,), (stop - start,)
        return
    row = math.prod(shape[1:])
    while start < stop:
        first, inside = divmod(start, row)
        rows = 0 if inside else (stop - start) // row
        if rows:
            end = start + rows * row
            yield (first, *(0 for _ in shape[1:])), (rows, *shape[1:])
        else:
            end = min(stop, (first + 1) * row)
            for offset, sizes in boxes(shape[1:], inside, inside + end - start):
                yield (first, *offset), (1, *sizes)
        start = end

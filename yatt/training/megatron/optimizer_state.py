"""What a rank writes into a checkpoint and reads from it, as boxes of whole tensors: the model's weights, and its shard
of the optimizer's state, from where they lie.

Megatron cuts the state over the replicas by ranges of elements, which begin and end anywhere in a weight. In the
checkpoint a state has the shape of its weight, so that any layout can read it: a range is written as a few boxes. Of a
weight, each replica writes the range whose state it has."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import (
    ShardedStateDict,
    ShardedTensor,
    ShardedTensorFactory,
    is_main_replica,
)
from megatron.core.dist_checkpointing.utils import extract_sharded_tensors_and_factories
from torch import Tensor

from yatt.training.shard_files import Box, Shape

Places: TypeAlias = Mapping[Tensor, Sequence[tuple[ShardedTensor, int]]]
"""For each of the model's weights, its parts that have places of their own in the checkpoint (gate and up projection),
each with its first element in the weight."""
MODEL = "model"


def places_of(weights: ShardedStateDict) -> Places:
    """Where the weights have their places, by Megatron's description of the model."""
    shards = nested_values(extract_sharded_tensors_and_factories(weights)[0])
    return {shard.data: list(_shards(shard, shard.data)) for shard in shards}


def boxes_to_save(optimizer: Any, places: Places) -> Iterator[Box]:
    """This rank's part of the weights, main weights and moments. Nothing is copied, nor sent."""
    for weight, start, stop in _ranges(optimizer):
        held = {MODEL: weight.detach().view(-1)[start:stop], **_states(optimizer, weight)}
        for shard, first in places[weight]:
            # Weights that other ranks of the pipeline or tensor parallelism hold as well are written by one of them.
            if not any(shard.replica_id[:-1]):
                yield from _cut(held, start, stop, shard, first)
    for weight, parts in places.items():
        if not weight.requires_grad:  # the optimizer knows nothing of it
            yield from (_whole(shard) for shard, _ in parts if is_main_replica(shard.replica_id))


def weights_to_load(places: Places) -> Iterator[Box]:
    """The weights that this rank holds."""
    for parts in places.values():
        yield from (_whole(shard) for shard, _ in parts)


def states_to_load(optimizer: Any, places: Places) -> Iterator[Box]:
    """The main weights and moments that this rank holds."""
    for weight, start, stop in _ranges(optimizer):
        for shard, first in places[weight]:
            yield from _cut(_states(optimizer, weight), start, stop, shard, first)


def _states(optimizer: Any, weight: Tensor) -> dict[str, Tensor]:
    """A weight's states on this rank, by name in the checkpoint. A float32 model's main weights are its own."""
    states = optimizer._get_main_param_and_optimizer_states(weight)
    names = ["exp_avg", "exp_avg_sq"]
    if states["param"].untyped_storage().data_ptr() != weight.untyped_storage().data_ptr():
        names.append("param")
    return {f"optimizer.{name}": states[name].detach() for name in names}


def _ranges(optimizer: Any) -> Iterator[tuple[Tensor, int, int]]:
    """The model's weights that this rank has a shard of the state of, with its first element and the one behind its
    last."""
    for of_types in optimizer.gbuf_ranges:
        for buckets in of_types.values():
            for bucket in buckets:
                for weight, ranges in bucket["param_map"].items():
                    yield weight, ranges["param"].start, ranges["param"].end


def _shards(shard: ShardedTensor | ShardedTensorFactory, weight: Tensor) -> Iterator[tuple[ShardedTensor, int]]:
    if isinstance(shard, ShardedTensor):
        yield shard, 0
        return
    for part in nested_values(shard.build()):
        if part.data.untyped_storage().data_ptr() != weight.untyped_storage().data_ptr():
            raise NotImplementedError(f"{part.key}: the checkpoint's layout is no view of the weight")
        yield part, part.data.storage_offset() - weight.storage_offset()


def _whole(shard: ShardedTensor) -> Box:
    values = shard.data.detach().view((1,) * shard.prepend_axis_num + shard.local_shape)
    return _box(MODEL, shard, shard.global_offset, values)


def _box(name: str, shard: ShardedTensor, offset: Shape, values: Tensor) -> Box:
    return Box(f"{name}.{shard.key}", shard.global_shape, offset, values, padded=shard.allow_shape_mismatch)


def _cut(held: Mapping[str, Tensor], start: int, stop: int, shard: ShardedTensor, first: int) -> Iterator[Box]:
    """Elements `start` to `stop` of a weight, and of its states, as boxes; what of them is in the shard, whose first
    element is the weight's `first`."""
    begin, end = max(start, first), min(stop, first + shard.data.numel())
    if begin < end:
        for name, values in held.items():
            for offset, box in _placed(values[begin - start : end - start], begin - first, shard):
                yield _box(name, shard, offset, box)


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

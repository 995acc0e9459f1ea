"""Checkpoints of a trainer: model, optimizer, schedule and RNG, readable under another layout than the writer's."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.optimizer import ChainedOptimizer

from yatt.training.checkpoint import fill, generator
from yatt.training.identity import verify
from yatt.training.layout import Layout
from yatt.training.megatron.optimizer import count_updates, counted_updates
from yatt.training.megatron.optimizer_state import Places, boxes_to_save, places_of, states_to_load, weights_to_load
from yatt.training.saving import Saving


def save(
    path: str,
    places: Places,
    optimizer: ChainedOptimizer,
    state: dict[str, Any],
    described: dict[str, Any],
    layout: Layout,
) -> Saving:
    """Begin to write a checkpoint into the folder `path`: the weights that have `places`, their optimizer, and `state`,
    which is the same on all ranks, in plain values. Nothing is sent, copied or waited for: see `Saving`."""
    (part,) = optimizer.chained_optimizers
    boxes = list(boxes_to_save(part, places))
    if layout.rank == 0:
        boxes.append(generator())
    state = {**state, "optimizer_updates": counted_updates(part)}
    return Saving(path, boxes, rank=layout.rank, ranks=torch.distributed.get_world_size(), model=described, state=state)


def load(path: str, places: Places, optimizer: ChainedOptimizer, described: dict[str, Any]) -> dict[str, Any]:
    """Take over a checkpoint, written under any layout; returns the `state` that `save` was given.

    Raises CheckpointError, before anything is changed, for one that is missing, broken or of another model."""
    state = verify(path, described)
    (part,) = optimizer.chained_optimizers
    drawn = generator()
    fill(path, [*weights_to_load(places), *states_to_load(part, places), drawn])
    count_updates(part, state["optimizer_updates"])
    torch.set_rng_state(drawn.values)
    return state


def load_model(path: str, places: Places, described: dict[str, Any]) -> None:
    """Take over the weights alone. Raises as `load` does."""
    verify(path, described)
    fill(path, weights_to_load(places))


def places_of_model(model: GPTModel, layout: Layout) -> Places:
    """Those of all its weights."""
    return places_of(model.sharded_state_dict(metadata={"singleton_local_shards": False, "dp_cp_group": layout.dp}))

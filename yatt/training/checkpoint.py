"""What every backend's checkpoints have beside weights and states: the generator of random numbers, and errors."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from yatt.checksums import Damaged
from yatt.training.identity import broken
from yatt.training.shard_files import Box, Shards

RNG = "rng"


def generator() -> Box:
    """The state of this process's generator on the CPU, which rank 0 writes: an update draws nothing from any."""
    values: Tensor = torch.get_rng_state()
    return Box(RNG, tuple(values.shape), (0,), values)


def fill(path: str, boxes: Iterable[Box]) -> None:
    """Read the values of boxes from a checkpoint. Raises CheckpointError, before anything changes, for one that is
    broken."""
    try:
        with torch.no_grad():
            Shards(Path(path)).fill(boxes)
    except Damaged as error:
        raise broken(path, error) from None

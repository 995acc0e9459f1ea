"""The learning rate as a function of the number of updates done."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from yatt.config.schema import OptimizerConfig


def _constant(done: float) -> float:
    return 1.0


def _linear(done: float) -> float:
    return 1.0 - done


def _cosine(done: float) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * done))


SHAPES = {"constant": _constant, "linear": _linear, "cosine": _cosine}


def learning_rate(settings: OptimizerConfig, update: int, updates: int) -> float:
    """The rate of update number `update` (from 0) of `updates` in the whole run.

    Warm-up climbs linearly to the full rate, which its last update has; then the shape falls from it to the minimum,
    which the update after the last would have."""
    top, low, warmup = settings.learning_rate, settings.min_learning_rate, settings.warmup_steps
    if update < warmup:
        return top * (update + 1) / warmup
    done = min(1.0, (update - warmup) / max(1, updates - warmup))
    return low + (top - low) * SHAPES[settings.schedule](done)


class Progress:
    """How many updates of a run are done, of `planned`, `per_step` of them in a step."""

    def __init__(self, settings: OptimizerConfig, *, planned: int, per_step: int) -> None:
        self._settings, self._planned, self._per_step = settings, planned, per_step
        self.updates = 0

    @property
    def rate(self) -> float:
        """The learning rate of the next update."""
        return learning_rate(self._settings, self.updates, self._planned)

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        return {"updates": self.updates, "per_step": self._per_step}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint. Where a step has another number of updates now, those done are counted as if it had
        had it all along: the schedule goes on where it stood, and ends with the run."""
        self.updates = round(state["updates"] * self._per_step / state.get("per_step", self._per_step))

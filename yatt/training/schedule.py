"""The learning rate as a function of the number of updates done."""

from __future__ import annotations

import math

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

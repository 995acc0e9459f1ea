"""How long an engine takes for a decode step, a token, and the reading of a prompt, fitted to what it did."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from yatt.placement.fit import nonnegative
from yatt.placement.forecast import Speed

FORGET = 0.98
"""Weight of what was known of an engine's speed when another look comes in."""
TERMS = 4

Array = npt.NDArray[np.float64]


class EngineWork(NamedTuple):
    """What one engine did between two looks: decode steps, tokens sampled, prompt tokens read, tokens in its KV cache
    added up over the steps; and the seconds it took."""

    steps: int
    tokens: int
    read: int
    cached: int
    seconds: float


class SpeedFit:
    """Seconds of an engine by least squares over the looks, old ones fading: so many for a decode step, for a token
    sampled, for a prompt token read, and for a token of the KV cache in a decode step, all at least 0."""

    def __init__(self) -> None:
        self._products: Array = np.zeros((TERMS, TERMS))
        self._sums: Array = np.zeros(TERMS)
        self.looks = 0

    def see(self, work: Sequence[EngineWork]) -> None:
        """Learn from one look at some engines."""
        table = np.array(work, dtype=np.float64)  # [engines, TERMS + 1]
        did, seconds = table[:, :TERMS], table[:, TERMS]
        self._products = FORGET * self._products + did.T @ did
        self._sums = FORGET * self._sums + did.T @ seconds
        self.looks += 1

    def costs(self) -> Array:
        """[TERMS] seconds; see `nonnegative`."""
        return nonnegative(self._products, self._sums)

    def speed(self, capacity: int, engines: int) -> Speed:
        """Of an engine that runs `capacity` requests at once, with so many `engines` in a block."""
        step, token, read, cached = self.costs().tolist()
        return Speed(
            step=max(step, 1e-9),
            per_request=token,
            prefill=read,
            per_kv_token=cached,
            capacity=capacity,
            engines=engines,
        )

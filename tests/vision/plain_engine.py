"""An engine that only notes what it is given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from yatt.generation.engine import Image, Sampled, Step
from yatt.types import SamplingParams


class PlainEngine:
    """Draws token 1 in each step for each request it has. The rest of `Engine` is not asked of it."""

    def __init__(self, **settings: Any) -> None:
        self.given: list[Sequence[Image]] = []
        self._left: dict[str, int] = {}

    def add(self, id: str, tokens: Any, params: SamplingParams, seed: int, stops: Any, images: Sequence[Image]) -> None:
        self.given.append(images)
        self._left[id] = params.max_tokens

    def step(self) -> Step:
        assert self._left, "there is something to step"
        self._left = {id: left - 1 for id, left in self._left.items()}
        drawn = [Sampled(id, [1], [0.0], None if left else "length") for id, left in self._left.items()]
        self._left = {id: left for id, left in self._left.items() if left}
        return Step(drawn, [])

    def abort(self, ids: Sequence[str]) -> None:
        for id in ids:
            del self._left[id]

    def close(self) -> None:
        assert not self._left

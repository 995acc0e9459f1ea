"""Names stretches of time, for the metrics and the timeline."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial

from yatt.protocols import Clock
from yatt.reports import PhaseSpan

MOST = 256
"""Spans held until they are taken; beyond it the oldest are forgotten."""


class Recorder:
    """Collects the spans of one process."""

    def __init__(self, actor: str, clock: Clock, *, role: str = "", slots: tuple[int, ...] = ()) -> None:
        self.clock = clock
        self._span = partial(PhaseSpan, actor=actor, role=role, slots=slots)
        self._spans: deque[PhaseSpan] = deque(maxlen=MOST)
        self._open: list[tuple[str, float]] = []

    @asynccontextmanager
    async def phase(self, name: str, **counts: int) -> AsyncIterator[None]:
        start = self.clock.now()
        self._open.append((name, start))
        try:
            yield
        finally:
            self._open.remove((name, start))
            self.add(name, start, counts)

    def doing(self) -> list[str]:
        """The phases that it is in, in words."""
        return [f"{name} ({self.clock.now() - start:.0f} s)" for name, start in self._open]

    def add(self, name: str, start: float, counts: Mapping[str, int]) -> None:
        """A span from `start` to now."""
        self._spans.append(self._span(name=name, start=start, stop=self.clock.now(), counts=counts))

    def take(self) -> tuple[PhaseSpan, ...]:
        """The spans since the last call, by the time they ended."""
        spans = tuple(self._spans)
        self._spans.clear()
        return spans

"""Names stretches of time, for the metrics and the timeline."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from yatt.protocols import Clock
from yatt.types import PhaseSpan


class Recorder:
    """Collects the phases of one controller."""

    def __init__(self, actor: str, clock: Clock) -> None:
        self._actor = actor
        self._clock = clock
        self._spans: list[PhaseSpan] = []

    @asynccontextmanager
    async def phase(self, name: str) -> AsyncIterator[None]:
        start = self._clock.now()
        try:
            yield
        finally:
            self._spans.append(PhaseSpan(name=name, actor=self._actor, start=start, stop=self._clock.now()))

    def take(self) -> tuple[PhaseSpan, ...]:
        """The spans since the last call."""
        spans, self._spans = tuple(self._spans), []
        return spans

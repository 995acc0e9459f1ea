"""Looks at busy engines: which are gone, and which are slow."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Collection, Mapping
from typing import NamedTuple

from yatt.controller.fleet import Fleet, PlacedGenerator
from yatt.controller.load_balancer import SLOW
from yatt.errors import ProcessDied
from yatt.types import Pulse

PULSE_DEADLINE = 120.0
"""Seconds after which an engine that does not say how it is doing is given up for dead."""


class Pace(NamedTuple):
    """Tokens between two looks: of an engine, and for each of its running requests."""

    total: float
    each: float


class HealthCheck:
    """Compares what engines have sampled since the last look with what others have."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._before: dict[int, Pulse] = {}  # of the last look, of engines that have been awake since
        self._usual: Pace | None = None  # medians of the last look at several busy engines

    def begin(self) -> None:
        """Work has come after a time without any: what was usual before says nothing of it."""
        self._usual = None

    async def look(self, busy: Collection[int]) -> dict[int, bool]:
        """Ask these engines how they are doing; whether each that answered is slow. The fleet loses those that died
        or did not answer in time. Raises ProcessDied where none is left."""
        before, self._before = self._before, {}
        pulses = await self._fleet.each(_pulse, among=busy)
        seen_twice = {engine: (before[engine], pulse) for engine, pulse in pulses.items() if engine in before}
        slow, self._usual = slow_engines(seen_twice, self._usual)
        self._before = {engine: pulse for engine, pulse in pulses.items() if self._fleet.open[engine]}
        return {engine: engine in slow for engine in pulses}

    def forget(self) -> None:
        """Others are awake than at the last look: begin to compare anew."""
        self._before.clear()


async def _pulse(number: int, generator: PlacedGenerator) -> Pulse:
    try:
        async with asyncio.timeout(PULSE_DEADLINE):
            return await generator.pulse()
    except TimeoutError:
        raise ProcessDied(f"generator {number} gave no sign of life for {PULSE_DEADLINE:g} s") from None


def slow_engines(pulses: Mapping[int, tuple[Pulse, Pulse]], usual: Pace | None) -> tuple[list[int], Pace | None]:
    """Engines whose tokens since the last look are few against the median of all busy ones, in all and per request;
    and those medians. A single busy engine is compared with the medians before, `usual`. An engine that has read more
    than it has sampled is not compared: reading is no slowness.

    Few in all alone may be an engine with a few requests left, few per request one with a large batch.
    """
    paces: dict[int, Pace] = {}
    for engine, (before, after) in pulses.items():
        tokens = after.tokens - before.tokens
        if before.running and after.running and after.read - before.read <= tokens:
            paces[engine] = Pace(tokens, tokens / max(before.running, after.running))
    if len(paces) > 1:
        usual = Pace(
            total=statistics.median_high(pace.total for pace in paces.values()),
            each=statistics.median_high(pace.each for pace in paces.values()),
        )
    if usual is None:
        return [], None
    slow = [n for n, pace in paces.items() if SLOW * pace.total < usual.total and SLOW * pace.each < usual.each]
    return slow, usual

"""Conversations in the simulation: seconds by hand, caches, and what waiting for tools costs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from benchmarks.conversations import TOOL, figures, played
from tests.simulation.test_engine import PLAIN, SIZE, ends
from tests.simulation.worlds import JUDGED, costs, settings
from yatt.placement.forecast import Forecast, Load, Speed, row
from yatt.placement.plan import POLICY
from yatt.simulation.costs import EngineCosts, Lengths
from yatt.simulation.engine import HEARD, PROMPT, SimulatedGenerator
from yatt.simulation.faults import draw_faults
from yatt.simulation.loop import run
from yatt.simulation.simulate import simulate
from yatt.types import Request, SampleKey, SamplingParams

READING = replace(PLAIN, prefill=0.1)


def turn(number: int, *parts: tuple[int, int]) -> Request:
    """A turn whose tokens are so many of each id."""
    tokens = np.concatenate([np.full(count, id, dtype=np.int32) for id, count in parts])
    return Request(key=SampleKey(0, 0, number), tokens=tokens, params=SamplingParams(max_tokens=100), seed=0)


def engine(cost: EngineCosts, length: int = 4, *, talks: bool = True) -> SimulatedGenerator:
    return SimulatedGenerator(
        cost, name="g", slots=(0,), node="n", length=lambda key: length, log=lambda *event: None, talks=talks
    )


@pytest.mark.parametrize(("talks", "second"), [(True, 4 + 1 + 4 + (3 + 0) * 0.1), (False, 4 + 1 + 4 + 17 * 0.1)])
def test_a_turn_reads_what_its_engine_does_not_have(talks: bool, second: float) -> None:
    """10 prompt tokens are read in 1 s and 4 sampled in 4 s. The next turn has 3 more from a tool."""

    async def main() -> list[float]:
        generator = engine(READING, talks=talks)
        first = await ends(generator, [turn(0, (PROMPT, SIZE))])
        longer = turn(1, (PROMPT, SIZE), (0, 4), (HEARD, 3))
        later = await ends(generator, [longer])
        return [*first.values(), *later.values()]

    assert run(main()) == pytest.approx([5.0, second])


def test_a_turn_that_moved_goes_on_after_its_own_tokens_and_not_after_those_of_earlier_turns() -> None:
    async def main() -> float:
        generator = engine(PLAIN)
        (end,) = (await ends(generator, [turn(1, (PROMPT, SIZE), (0, 4), (HEARD, 3), (0, 1))])).values()
        return end

    assert run(main()) == 3.0


def test_kept_tokens_give_way_and_new_weights_forget_them() -> None:
    """A turn leaves 44 tokens: a cache of 120 keeps two of them, and the oldest goes."""

    async def main() -> list[int]:
        generator = engine(replace(READING, kv_tokens=120))
        reads: list[int] = []
        for uid in (1, 2, 3):
            one = replace(turn(0, (PROMPT, 40)), key=SampleKey(uid, 0), params=SamplingParams(max_tokens=9))
            await ends(generator, [one])
        for uid in (3, 2, 1):
            before = (await generator.pulse()).read
            longer = turn(1, (PROMPT, 40), (0, 4), (HEARD, 1))
            await ends(generator, [replace(longer, key=SampleKey(uid, 0, 1), params=SamplingParams(max_tokens=9))])
            reads.append((await generator.pulse()).read - before)
        return reads

    assert run(main()) == [1, 1, 45]


def talking(**workload: Any) -> Any:
    talks = costs(turns=3, outside=Lengths(median=2, p99=8), outside_tokens=5, **workload)
    return replace(talks, engine=replace(talks.engine, kv_tokens=1000))


def test_every_conversation_has_its_turns_and_waits_between_them() -> None:
    report = simulate(settings(), talking(), devices=4, controllers=2, steps=2, seed=1)
    for step in report.steps:
        counts = step.counts
        assert counts.conversations == counts.responses and counts.turns == 3 * counts.conversations
        assert counts.outside_seconds / (2 * counts.conversations) == pytest.approx(2.3, rel=0.4)  # e^(sigma^2 / 2)
        assert counts.cache_hits > counts.conversations and not counts.forks
    assert simulate(settings(), talking(), devices=4, controllers=2, steps=2, seed=1) == report


@pytest.mark.parametrize("mode", ["colocated", "dynamic"])
@pytest.mark.parametrize("seed", range(3))
def test_slots_change_hands_around_conversations_and_none_waits_for_ever(mode: str, seed: int) -> None:
    """Judges take their turn though other controllers still talk, and give the slots back to them."""
    given = talking()
    judged = replace(JUDGED, workload=given.workload, engine=given.engine)
    judge = replace(JUDGED.judges["judge"], engine=replace(JUDGED.judges["judge"].engine, kv_tokens=1000))
    config = settings(batch=6, mode=mode, judge={})
    report = simulate(config, replace(judged, judges={"judge": judge}), devices=4, controllers=3, steps=2, seed=seed)
    assert report.last == 2 and all(step.counts.turns == 3 * step.counts.conversations for step in report.steps)


@pytest.mark.parametrize("seed", range(6))
def test_conversations_go_on_through_deaths(seed: int) -> None:
    config = settings(batch=4)
    broken = draw_faults(seed, until=60.0)
    report = simulate(config, talking(), devices=4, controllers=2, steps=3, seed=seed, faults=broken)
    assert report.last == 3 and all(s.counts.turns == 3 * s.counts.conversations for s in report.steps)


def test_the_forecast_waits_outside_with_the_longest_conversation() -> None:
    """100 tokens at a second each, and 0.5 s outside for each of them: 150 s on any number of blocks."""
    speed = Speed(step=1.0, per_request=0.0, per_kv_token=0.0, capacity=100, engines=1)
    load = Load(requests=0, coming=8, tokens=100, length=100, longest=100, prefix=10, speed=speed)
    for blocks in (1, 4):
        for outside, seconds in ((0.0, 100.0), (0.5, 150.0)):
            loads = {POLICY: replace(load, outside=outside)}
            forecast = Forecast(loads=loads, blocks=blocks)
            assert forecast.seconds(row({POLICY: blocks}, loads))[0] == pytest.approx(seconds)


@pytest.mark.slow
def test_tools_of_a_second_leave_devices_hardly_more_idle() -> None:
    """64 devices, conversations of four turns and a thousand tokens."""
    without, tools = (figures(played("colocated", 1000.0, 64, tool, prompts=1, steps=2)) for tool in (None, TOOL))
    assert tools["rollout_s"] > without["rollout_s"] and tools["idle"] - without["idle"] <= 0.05

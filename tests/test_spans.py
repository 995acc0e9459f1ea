"""What processes tell of themselves: spans of engines and ranks, and histograms of lengths; without Ray."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.doubles import ScriptedGenerator, Ticks
from tests.generator_contract import requests
from tests.test_remote import CONFIG, Adder, Handle, share
from yatt.cluster import generator as generator_module
from yatt.cluster import rank as rank_module
from yatt.cluster.backends import Backends
from yatt.cluster.crew import ClusterCrew
from yatt.cluster.generator import GeneratorActor, Sampling
from yatt.cluster.process import SlotProcess
from yatt.cluster.rank import RankActor
from yatt.cluster.wire import pack_requests, pack_share
from yatt.controller.recorder import MOST, Recorder
from yatt.errors import BackendError
from yatt.histogram import histogram, quantile
from yatt.reports import PhaseSpan, RolloutCounts, add_counts
from yatt.types import Pulse


def told(spans: tuple[PhaseSpan, ...]) -> list[tuple[Any, ...]]:
    return [(s.name, s.actor, s.role, s.slots, dict(s.counts)) for s in spans]


def test_sampling_lasts_from_the_first_request_to_idle_and_is_cut_by_a_pause():
    recorder = Recorder("generator 0", Ticks(), role="policy", slots=(1,))  # each look at the clock moves it by 1
    sampling = Sampling(recorder)

    def done(steps, read=0):
        return Pulse(running=0, tokens=0, steps=steps, read=read)

    sampling.begin(3, done(7, 100))  # an engine comes up paused
    assert recorder.take() == ()
    sampling.pause(False, done(7, 100))  # 1
    sampling.begin(1, done(8, 120))
    sampling.end(2, 50, done(20, 130))
    sampling.pause(True, done(25, 130))  # 2
    sampling.pause(True, done(26, 130))
    sampling.pause(False, done(26, 130))  # 3
    sampling.end(1, 9, done(30, 130))
    sampling.end(1, 0, done(32, 170))  # 4
    found = recorder.take()
    assert [(s.start, s.stop) for s in found] == [(1.0, 2.0), (3.0, 4.0)]
    assert told(found) == [
        ("sample", "generator 0", "policy", (1,), {"requests": 2, "tokens": 50, "steps": 18, "read": 30}),
        ("sample", "generator 0", "policy", (1,), {"requests": 2, "tokens": 9, "steps": 6, "read": 40}),
    ]


async def test_a_recorder_that_nobody_asks_keeps_the_latest():
    recorder = Recorder("rank 0", Ticks())
    for k in range(MOST + 10):
        async with recorder.phase("update", samples=k):
            pass
    assert [s.counts["samples"] for s in recorder.take()] == list(range(10, MOST + 10))
    assert recorder.take() == ()


class Engine(ScriptedGenerator):
    async def start(self) -> None: ...


@pytest.fixture
def actors(monkeypatch):
    """An engine on slots 2 and 3 and a rank on slot 2."""
    for module in (generator_module, rank_module):
        monkeypatch.setattr(module, "settle", lambda process: None)
    monkeypatch.setattr(generator_module, "load", lambda backend: lambda **_: Engine(2))
    monkeypatch.setattr(rank_module, "load", lambda backend: Adder)
    process = {"device": "cpu", "directory": "", "log": ""}
    engine = SlotProcess(name="generator 0", role="policy", slots=(2, 3), **process)
    rank = SlotProcess(name="rank 0", role="trainer", slots=(2,), **process)
    generator = GeneratorActor(engine, CONFIG, "m", Backends(generator="b"))
    return generator, RankActor(rank, CONFIG, "b", rank=0, world_size=1)


async def test_an_engine_and_a_rank_tell_what_they_did_once(actors):
    engine, rank = actors
    await engine.start(asleep=False)
    await engine.call("wake")
    await engine.call("resume")
    await engine.submit("c", pack_requests([(0, requests(3))])[0])
    while engine._tasks["c"]:
        await asyncio.sleep(0)
    await engine.call("pause")
    await engine.call("sleep")
    await engine.call("pulse")
    place = ("generator 0", "policy", (2, 3))
    sampled = {"requests": 3, "tokens": 6, "steps": 0, "read": 0}  # this engine counts no steps
    assert told(await engine.take_spans()) == [
        ("start", *place, {}), ("wake", *place, {}), ("sample", *place, sampled), ("sleep", *place, {}),
    ]  # fmt: skip
    assert await engine.take_spans() == ()

    await rank.start("", 0, token=None, weights_dir="")
    await asyncio.gather(*(rank.update(pack_share(share(0, c, (0, 2), 1))[0]) for c in (0, 2)))
    assert told(await rank.take_spans()) == [
        ("start", "rank 0", "trainer", (2,), {}), ("update", "rank 0", "trainer", (2,), {"samples": 2, "tokens": 8}),
    ]  # fmt: skip


async def test_an_engine_that_fails_has_a_span_all_the_same(actors, monkeypatch):
    async def refuse(asked):
        raise BackendError("no")
        yield

    engine, _ = actors
    await engine.start(asleep=False)
    await engine.call("resume")
    monkeypatch.setattr(engine._generator, "generate", refuse)
    await engine.submit("c", pack_requests([(0, requests(3))])[0])
    while engine._tasks["c"]:
        await asyncio.sleep(0)
    assert told(await engine.take_spans())[1][0::4] == ("sample", {"requests": 3, "tokens": 0, "steps": 0, "read": 0})


class Mute:
    """An actor that does not answer, or is gone."""

    def __init__(self, error: Exception | None) -> None:
        self.error = error

    async def take_spans(self) -> tuple[PhaseSpan, ...]:
        if self.error:
            raise self.error
        await asyncio.Event().wait()
        return ()


async def test_the_crew_asks_everyone_and_waits_for_nobody_for_long(actors, monkeypatch, tmp_path):
    monkeypatch.setattr("yatt.cluster.crew.PATIENCE", 2.0)
    crew = ClusterCrew(CONFIG, tmp_path, lambda name, state: None)
    await actors[0].start(asleep=False)
    crew._ranks.actors = {
        name: Handle(actor)
        for name, actor in {"g": actors[0], "gone": Mute(RuntimeError("gone")), "stuck": Mute(None)}.items()
    }
    assert [s.name for s in await crew.take_spans()] == ["start"]
    assert crew.payload == 0


def test_bins_by_hand():
    # below 8 a bin each; 8 and 9 share one, 10 and 11, ...; 16 to 19; 1000 is 512 + 488, in bins of 128: 896
    assert histogram([0, 7, 8, 9, 10, 16, 19, 20, 1000]) == {0: 1, 7: 1, 8: 2, 10: 1, 16: 2, 20: 1, 896: 1}
    assert len(histogram(range(131_072))) == 64


def test_quantiles_are_within_a_bin_of_the_truth():
    lengths = [k * k % 3001 for k in range(4000)]
    for share_below in (0.1, 0.5, 0.9, 0.99):
        truth = sorted(lengths)[int(share_below * len(lengths))]
        assert quantile(histogram(lengths), share_below) == pytest.approx(truth, rel=0.05)
    assert quantile(histogram([5]), 0.5) == 5 and quantile({}, 0.5) == 0


def test_histograms_of_controllers_add_up():
    both = [RolloutCounts(response_lengths={4: 1, 16: 2}), RolloutCounts(response_lengths={16: 1, 896: 5})]
    assert add_counts(both).response_lengths == {4: 1, 16: 3, 896: 5}

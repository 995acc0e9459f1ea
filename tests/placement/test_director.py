"""What the director measures, which engines wake and sleep, and that responses survive the moves."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import numpy as np
import pytest
from doubles import RecordingTrainer, Ticks

from yatt.controller.director import Director
from yatt.controller.engine_stats import Asked, EngineStats
from yatt.controller.fleet import Fleet
from yatt.controller.peers import Hub, HubPeers
from yatt.controller.phases import Phases
from yatt.controller.recorder import Recorder
from yatt.controller.router import Router
from yatt.controller.speed_fit import SpeedFit
from yatt.controller.talks import Talks
from yatt.controller.weight_sync import WeightSync
from yatt.errors import BackendError
from yatt.placement.plan import Layout
from yatt.placement.policy import Choice, Mode
from yatt.types import Completion, Pulse, Request, SampleKey, SamplingParams, Span

SIZES = {"policy": 1, "judge": 1}


def engine_stats(**settings) -> EngineStats:
    return EngineStats(**({"per_response": 1, "max_tokens": 100, "capacity": 8, "engines": 1} | settings))


def test_costs_are_fitted_to_what_was_done():
    """10 steps of 2 requests, 10 of 6, 10 of 6 with 50 tokens read: 0.01 a step, 0.02 a token, 0.004 a token read; then
    10 of 6 that hold 3000 tokens over all steps, at 0.001 each."""
    fit = SpeedFit()
    fit.see([(10, 20, 0, 0, 10 * 0.01 + 20 * 0.02), (10, 60, 0, 0, 10 * 0.01 + 60 * 0.02)])
    fit.see([(10, 60, 50, 0, 10 * 0.01 + 60 * 0.02 + 50 * 0.004)])
    assert fit.costs().tolist() == pytest.approx([0.01, 0.02, 0.004, 0])
    fit.see([(10, 60, 0, 3000, 10 * 0.01 + 60 * 0.02 + 3000 * 0.001)])
    assert fit.costs().tolist() == pytest.approx([0.01, 0.02, 0.004, 0.001])


def test_what_cannot_be_told_apart_is_put_on_the_fewest_terms():
    fit = SpeedFit()
    for _ in range(3):
        fit.see([(10, 40, 0, 0, 0.5)])
    assert fit.costs().tolist() == pytest.approx([0.05, 0, 0, 0])


def test_no_cost_is_below_nothing():
    """More tokens in less time: a token cannot take less than none."""
    fit = SpeedFit()
    fit.see([(10, 20, 0, 0, 0.5), (10, 60, 0, 0, 0.4)])
    assert fit.costs().min() >= 0 and fit.costs()[0] == pytest.approx(0.045, rel=0.02)


def test_a_look_counts_what_was_done_since_the_one_before():
    stats = engine_stats()
    stats.see({0: Pulse(running=4, tokens=100, read=50, steps=10, seconds=9.0)}, Asked())
    stats.see({0: Pulse(running=4, tokens=140, read=50, steps=20, seconds=9.5)}, Asked())
    assert stats.speed.costs().tolist() == pytest.approx([0.05, 0, 0, 0])
    load = stats.load(3.0, 12.0, stats.speed)
    assert (load.coming, load.prefix, load.speed.step) == (3.0, 12.0, pytest.approx(0.05))
    assert load.length == 25  # a quarter of the limit, until responses have ended


def test_length_is_that_of_the_last_rollouts():
    """60 tokens in 3 responses, then 120 in 3: 0.3 * 20 + 0.7 * 40 = 34."""
    stats = engine_stats()
    stats.see({0: Pulse(running=3, tokens=0)}, Asked())
    stats.see({0: Pulse(running=0, tokens=60, ended=3, steps=30)}, Asked())
    stats.begin()
    assert stats.lengths.mean == 20
    stats.see({0: Pulse(running=0, tokens=180, ended=6, steps=60)}, Asked())
    stats.begin()
    assert stats.lengths.mean == pytest.approx(34)


def test_prompts_are_as_long_as_in_the_mean_over_the_last_rollouts():
    """Not as the last requests': judgements of the longest responses, which read most, come last."""
    stats = engine_stats()
    assert stats.load(1.0, 12.0, stats.speed).prefix == 12.0
    stats.see({}, Asked(4, 400.0))
    assert stats.load(1.0, 12.0, stats.speed).prefix == 100.0
    stats.begin()
    stats.see({}, Asked(8, 1600.0))  # 300 each
    assert stats.load(1.0, 12.0, stats.speed).prefix == 100.0
    stats.begin()
    assert stats.load(1.0, 12.0, stats.speed).prefix == pytest.approx(0.3 * 100 + 0.7 * 300)


def test_what_engines_have_not_read_yet_is_known():
    """10 requests of 100 tokens came, 3 have ended, 450 tokens are read: 4.5 requests' worth, so 5.5 are unread."""
    stats = engine_stats(capacity=20)
    stats.see({0: Pulse(running=0, read=7000, steps=5, tokens=5)}, Asked())
    stats.begin()
    stats.see({0: Pulse(running=10, read=7000, steps=5, tokens=5)}, Asked(10, 1000.0))
    assert stats.load(0.0, 0.0, stats.speed).unread == 10
    stats.see({0: Pulse(running=7, read=7450, steps=9, tokens=9, ended=3, seconds=1.0)}, Asked(10, 1000.0))
    assert stats.load(0.0, 0.0, stats.speed).unread == pytest.approx(5.5)
    stats.see(
        {0: Pulse(running=7, read=9000, steps=10, tokens=12, ended=3, seconds=1.1)}, Asked(10, 1000.0)
    )  # some were read twice
    assert stats.load(0.0, 0.0, stats.speed).unread == 0


def test_the_longest_response_has_less_to_go_the_longer_it_lasts():
    """100 tokens at the longest. What was there from the first has a token of each step; who comes later none of it."""
    stats = engine_stats(capacity=4, max_tokens=1000)
    stats.lengths.see_longest(100)
    stats.see({0: Pulse(running=3, steps=40, tokens=40), 1: Pulse(running=1, steps=7, tokens=7)}, Asked())
    stats.see({0: Pulse(running=2, steps=70, tokens=70, ended=1), 1: Pulse(running=1, steps=17, tokens=17)}, Asked())
    load = stats.load(0.0, 0.0, stats.speed)
    assert (load.longest, load.gone) == (70.0, 30)
    stats.see({0: Pulse(running=1, steps=180, tokens=180, ended=2), 1: Pulse(running=1, steps=30, tokens=30)}, Asked())
    load = stats.load(0.0, 0.0, stats.speed)
    assert (load.longest, load.gone) == (20.0, 80.0)  # longer than expected: a fifth is left
    stats.see(
        {0: Pulse(running=1, steps=190, tokens=190, ended=2), 1: Pulse(running=2, steps=40, tokens=40)}, Asked()
    )  # another one came
    assert stats.load(0.0, 0.0, stats.speed).longest == 100
    stats.see({0: Pulse(running=0, steps=200, tokens=200, ended=3), 1: Pulse(running=2, steps=60, tokens=60)}, Asked())
    assert stats.load(0.0, 0.0, stats.speed).longest == 80
    stats.begin()
    stats.see(
        {0: Pulse(running=9, steps=210, tokens=210, ended=3), 1: Pulse(running=4, steps=70, tokens=70, ended=2)},
        Asked(),
    )
    stats.see(
        {0: Pulse(running=8, steps=240, tokens=240, ended=4), 1: Pulse(running=0, steps=90, tokens=90, ended=6)},
        Asked(),
    )
    assert stats.load(0.0, 0.0, stats.speed).longest == 100  # some still wait behind four


def test_an_engine_that_was_started_anew_counts_from_its_next_look():
    stats = engine_stats()
    stats.see({0: Pulse(running=1, tokens=500, steps=100, ended=9)}, Asked())
    stats.see({0: Pulse(running=1, tokens=5, steps=5)}, Asked())
    stats.see({0: Pulse(running=1, tokens=15, steps=15, ended=1)}, Asked())
    assert (stats.progress.tokens, stats.progress.ended) == (10, 1)


class Engine:
    """Samples a token at each turn of the loop while it is awake and goes; every token is 1 + its place."""

    def __init__(self, role: str, slot: int, log: list[str]) -> None:
        self.name, self.slots, self.node, self.log = f"{role} {slot}", (slot,), "here", log
        self.awake = self.going = False
        self.open: dict[SampleKey, tuple[Request, list[int], asyncio.Queue[list[Completion]]]] = {}
        self.ended = self.tokens = self.looks = 0

    async def generate(self, requests):
        answers: asyncio.Queue[list[Completion]] = asyncio.Queue()
        for request in requests:
            self.open[request.key] = (request, [], answers)
        task = asyncio.create_task(self._sample())
        try:
            for _ in requests:
                yield await answers.get()
        finally:
            task.cancel()

    async def _sample(self) -> None:
        while self.open:
            await asyncio.sleep(0)
            for key, (request, tokens, _) in list(self.open.items()) if self.awake and self.going else ():
                tokens.append(len(request.tokens) + len(tokens))
                if len(tokens) == request.params.max_tokens:
                    self.ended += 1
                    self._answer(key, "length")

    def _answer(self, key, finish) -> None:
        _, tokens, answers = self.open.pop(key)
        self.tokens += len(tokens)
        spans = (Span(start=0, stop=len(tokens), version=0),) if tokens else ()
        column = np.array(tokens, dtype=np.int32)
        answers.put_nowait(
            [Completion(key=key, tokens=column, rollout_logprobs=column.astype(np.float32), spans=spans, finish=finish)]
        )

    async def abort(self, keys) -> None:
        for key in [key for key in keys if key in self.open]:
            self._answer(key, "aborted")

    async def sleep(self) -> int:
        self.log.append(f"{self.name} sleeps")
        self.awake = self.going = False
        return 1

    async def wake(self) -> None:
        self.log.append(f"{self.name} wakes")
        self.awake = True

    async def resume(self) -> None:
        assert self.awake
        self.going = True

    async def pulse(self) -> Pulse:
        self.looks += 1
        return Pulse(running=len(self.open), tokens=self.tokens, ended=self.ended, steps=self.looks, seconds=self.looks)


class Set:
    """Two controllers' phases over engines of both roles on every slot, and a mode that the test scripts."""

    def __init__(self, slots: int, looks: list[Choice | Exception | None]) -> None:
        self.log: list[str] = []
        self.engines = {role: [Engine(role, slot, self.log) for slot in range(slots)] for role in SIZES}
        layout = Layout(slots=tuple(range(slots)), sizes=SIZES)
        self.seen: list[dict] = []

        def look(split, loads, switch):
            self.seen.append(loads)
            choice = looks.pop(0) if looks else None
            if isinstance(choice, Exception):
                raise choice
            return choice

        first = Choice(split={"policy": slots, "judge": 0}, seconds=0.0, why="all to the policy")
        self.befores: list[dict | None] = []

        def start(blocks, loads, before, switch, missed):
            self.befores.append(before)
            return first

        mode = Mode(start=start, look=look)
        hub, self.routers, self.phases = Hub(2, 5), [], []
        for index in range(2):
            routers = {role: Router(Fleet(engines), clock=Still()) for role, engines in self.engines.items()}
            director = Director(
                mode=mode, layout=layout, routers=routers, stats={role: engine_stats() for role in SIZES}, clock=Still()
            )
            self.routers.append(routers)
            trainer, peers = RecordingTrainer(1), HubPeers(index, 2, hub, None if index else hub)
            self.phases.append(
                Phases(
                    routers=routers,
                    director=director,
                    trainer=trainer,
                    weight_sync=WeightSync(routers["policy"].fleet, trainer, peers, bound=1.0),
                    peers=peers,
                    recorder=Recorder("controller", Ticks()),
                    resident=False,
                )
            )


class Still:
    """Time stands; a wait is a few turns of the loop."""

    def now(self) -> float:
        return 0.0

    async def sleep(self, seconds: float) -> None:
        if seconds >= 10:  # the routers' watch
            await asyncio.Event().wait()
        for _ in range(10):
            await asyncio.sleep(0)


def requests(uid: int, n: int, tokens: int) -> list[Request]:
    params = SamplingParams(max_tokens=tokens)
    return [Request(key=SampleKey(uid, i), tokens=np.zeros(3, dtype=np.int32), params=params, seed=i) for i in range(n)]


async def responses(router: Router, uid: int, n: int = 4, tokens: int = 300) -> dict[SampleKey, list[int]]:
    return {c.key: c.tokens.tolist() async for ended in router.generate(requests(uid, n, tokens)) for c in ended}


def to(policy: int, judge: int) -> Choice:
    return Choice(split={"policy": policy, "judge": judge}, seconds=1.0, why=f"{policy} and {judge}")


async def test_no_token_is_lost_where_blocks_change_hands():
    """The same responses with moves in the middle as without: every token says its place."""
    answers = []
    for looks in ([], [None, to(2, 1), to(1, 2), None, to(0, 3), None, to(2, 1)]):
        world = Set(3, list(looks))
        await asyncio.gather(*(phases.enter("rollout", 16) for phases in world.phases))
        world.log.clear()
        drawn = await asyncio.gather(*(responses(r["policy"], uid) for uid, r in enumerate(world.routers)))
        for phases in world.phases:
            await phases.close()
        answers.append(drawn)
        assert len(world.log) == (2 * (1 + 1 + 1 + 2) if looks else 0)
    still, moved = answers
    assert moved == still
    assert still[0][SampleKey(0, 0)] == list(range(3, 303))


async def test_a_block_sleeps_before_another_wakes_on_it_and_the_judge_is_heard():
    world = Set(2, [None, to(1, 1)])
    await asyncio.gather(*(phases.enter("rollout", 8) for phases in world.phases))
    judged, drawn = await asyncio.gather(
        responses(world.routers[1]["judge"], 7, tokens=5), responses(world.routers[0]["policy"], 0)
    )
    assert len(judged) == len(drawn) == 4
    unsure = ["judge 0 sleeps", "judge 1 sleeps"]  # how engines come up is not known
    assert world.log == [*unsure, "policy 0 wakes", "policy 1 wakes", "policy 1 sleeps", "judge 1 wakes"]
    decisions = world.phases[0].decisions(0)
    assert [(d.text, d.slots) for d in decisions] == [
        ("all to the policy", {"policy": 2, "judge": 0}),
        ("1 and 1", {"policy": 1, "judge": 1}),
    ]
    assert world.phases[0].decisions(0) == () and world.phases[1].decisions(0) == ()
    await asyncio.gather(*(phases.enter("train") for phases in world.phases))
    assert sorted(world.log[6:]) == ["judge 1 sleeps", "policy 0 sleeps"]


@pytest.mark.parametrize("last", [to(1, 1), to(0, 2)])
async def test_a_rollout_is_held_against_how_the_last_one_began(last):
    """Not as it ended: that was chosen for its tail."""
    world = Set(2, [None, last])
    await asyncio.gather(*(phases.enter("rollout", 8) for phases in world.phases))
    async with asyncio.timeout(20):
        await asyncio.gather(*(responses(world.routers[0][role], 0, tokens=5) for role in SIZES))
    await asyncio.gather(*(phases.enter("train") for phases in world.phases))
    await asyncio.gather(*(phases.enter("rollout", 8) for phases in world.phases))
    assert world.befores == [None, {"policy": 2, "judge": 0}]
    for phases in world.phases:
        await phases.close()


async def test_what_a_forecast_missed_is_known_at_the_next_start():
    """8 responses of 10 tokens on 2 engines: 10 steps of 0.01 + 4 * 0.02 s; the judgements after them take as long, and
    2 % are added for putting their turn off: 1.83 s. Where it took half as long again, half of that is believed."""
    now, seen = [0.0], []
    clock = SimpleNamespace(now=lambda: now[0])

    def start(blocks, loads, before, switch, missed):
        seen.append(missed)
        return to(2, 0) if len(seen) < 4 else to(1, 1)

    async def pulse():
        return Pulse(running=0, tokens=0)

    def router():
        engines = [SimpleNamespace(slots=(slot,), pulse=pulse) for slot in range(2)]
        return SimpleNamespace(fleet=Fleet(engines), asked=Asked(), take_longest=lambda: 0, talks=Talks())

    stats = {role: engine_stats(max_tokens=10) for role in SIZES}
    director = Director(
        mode=Mode(start=start, look=lambda split, loads, switch: None),
        layout=Layout(slots=(0, 1), sizes=SIZES),
        routers={role: router() for role in SIZES},
        stats=stats,
        clock=clock,
    )

    async def rollout(seconds):
        await director.start(8)
        now[0] += seconds
        director.stop()

    await rollout(5.0)  # nothing was known of it
    for one in stats.values():
        one.lengths.mean = 10.0
        one.speed.see([(10, 20, 0, 0, 10 * 0.01 + 20 * 0.02), (10, 60, 0, 0, 10 * 0.01 + 60 * 0.02)])
    for seconds in (2.72, 9.0, 0.9):
        await rollout(seconds)
    await rollout(0.0)
    assert seen[:2] == [(1.0, 1.0), (1.0, 1.0)]
    assert seen[2] == (1.0, pytest.approx((1 + 1.5) / 2, rel=0.02))
    assert seen[3] == (1.0, pytest.approx((seen[2][1] + 2.0) / 2))  # at most twice
    assert seen[4] == (pytest.approx((1 + 0.5) / 2, rel=0.02), seen[3][1])  # of divided blocks; at least a half


async def test_the_longest_response_of_each_role_is_known():
    """Of a judge from this controller's router, of the policy from everyone's; 0.8 of the longest before is kept."""
    routers = {role: Router(Fleet([Engine(role, 0, [])]), clock=Still()) for role in SIZES}
    stats = {role: engine_stats() for role in SIZES}
    mode = Mode(start=lambda *_: to(1, 0), look=lambda split, loads, switch: None)
    layout = Layout(slots=(0,), sizes=SIZES)
    director = Director(mode=mode, layout=layout, routers=routers, stats=stats, clock=Still())
    for engine in (router.fleet.generators[0] for router in routers.values()):
        engine.awake = engine.going = True
    await responses(routers["judge"], 0, tokens=50)
    await responses(routers["judge"], 1, tokens=30)
    await responses(routers["policy"], 0, tokens=70)
    director.learn(90)
    await director.start(8)
    assert [one.lengths.longest for one in stats.values()] == [90, 50]
    await responses(routers["judge"], 2, tokens=10)
    director.learn(20)
    await director.start(8)
    assert [one.lengths.longest for one in stats.values()] == [pytest.approx(72), pytest.approx(40)]


async def test_what_is_coming_is_what_has_not_been_asked_yet():
    """16 responses are expected, 4 are at the engines: 12 are coming to the policy, 16 judgements to the judge."""
    world = Set(2, [None, to(1, 1)])
    await asyncio.gather(*(phases.enter("rollout", 16) for phases in world.phases))
    await responses(world.routers[0]["policy"], 0)
    first = world.seen[0]
    assert (first["policy"].requests, first["policy"].coming) == (4, 12)
    assert (first["judge"].requests, first["judge"].coming) == (0, 16)
    for phases in world.phases:
        await phases.close()


async def test_who_waits_for_a_response_hears_why_nothing_moves_any_more():
    world = Set(2, [None, BackendError("the judge does not wake")])
    await asyncio.gather(*(phases.enter("rollout", 8) for phases in world.phases))
    with pytest.raises(BackendError, match="the judge does not wake"):
        await responses(world.routers[0]["judge"], 0)
    for phases in world.phases:
        await phases.close()


async def test_a_block_whose_engine_died_goes_to_a_role_that_lives_there():
    """The judge's only block loses its engine: the judge takes another."""
    world = Set(2, [to(1, 1), None, None])
    await asyncio.gather(*(phases.enter("rollout", 8) for phases in world.phases))
    director = world.phases[0]._director
    await director.look()
    assert director.holders == ("policy", "judge")
    world.routers[0]["judge"].fleet.up[1] = False
    assert await director.look() == ("judge", "policy")
    for phases in world.phases:
        await phases.close()

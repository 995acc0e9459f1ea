"""The simulated generator: its closed form against a loop over tokens, and batching, aborts, pauses by hand."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from yatt.errors import BackendError, ProcessDied
from yatt.simulation.costs import EngineCosts
from yatt.simulation.engine import PROMPT, SimulatedGenerator
from yatt.simulation.loop import run
from yatt.types import Completion, Pulse, Request, SampleKey, SamplingParams, Span, WeightManifest

SIZE = 10  # tokens of a prompt
# One second a step and nothing else: a token a second, whatever runs.
PLAIN = EngineCosts(step=1.0, per_request=0.0, per_kv_token=0.0, load=5.0, sleep=2.0, wake=3.0)


def request(uid: int, sibling: int = 0, *, begun: int = 0, limit: int = 1000) -> Request:
    tokens = np.zeros(SIZE + begun, dtype=np.int32)
    tokens[:SIZE] = PROMPT
    return Request(key=SampleKey(uid, sibling), tokens=tokens, params=SamplingParams(max_tokens=limit), seed=0)


def engine(
    costs: EngineCosts, lengths: dict[int, int] | Callable[[SampleKey], int], **options: Any
) -> SimulatedGenerator:
    """Responses of `lengths[uid]` tokens."""
    length = lengths if callable(lengths) else lambda key: lengths[key.uid]
    log = options.pop("log", lambda *event: None)
    return SimulatedGenerator(costs, name="generator 0", slots=(0,), node="node 0", length=length, log=log)


async def ends(generator: SimulatedGenerator, wanted: Sequence[Request], at: float = 0.0) -> dict[SampleKey, float]:
    """Ask at this second; when each has ended."""
    await asyncio.sleep(at)
    loop, ended = asyncio.get_running_loop(), {}
    async for completions in generator.generate(wanted):
        ended |= {c.key: loop.time() for c in completions}
    return ended


async def answers(generator: SimulatedGenerator, wanted: Sequence[Request]) -> list[Completion]:
    return [c async for completions in generator.generate(wanted) for c in completions]


async def at(second: float, call: Callable[[], Awaitable[Any]]) -> Any:
    await asyncio.sleep(second)
    return await call()


def token_by_token(
    costs: EngineCosts, calls: Sequence[tuple[float, Sequence[tuple[SampleKey, int, int]]]]
) -> dict[SampleKey, float]:
    """When each request ends, one decode step after the other. `calls` are (second, [(key, own tokens, length)])."""
    coming = [
        (second, [key, own, 0, length])
        for second, wanted in sorted(calls, key=lambda c: c[0])
        for key, own, length in wanted
    ]
    waiting: list[list[Any]] = []
    running: list[list[Any]] = []
    ended: dict[SampleKey, float] = {}
    time = debt = 0.0

    def held() -> int:
        return sum(own + done for _, own, done, _ in running) + SIZE * len({key.uid for key, *_ in running})

    while coming or waiting or running:
        while coming and coming[0][0] <= time:
            waiting.append(coming.pop(0)[1])
        while len(running) > 1 and held() + len(running) > costs.kv_tokens:
            waiting.insert(0, running.pop())
        while waiting and len(running) < costs.max_running:
            key, own, done, _ = waiting[0]
            size = own + done + (0 if key.uid in {k.uid for k, *_ in running} else SIZE)
            if running and held() + size + len(running) + 1 > costs.kv_tokens:
                break
            running.append(waiting.pop(0))
            debt += costs.prefill * size
        if not running:
            time = coming[0][0]
            continue
        if debt and coming and coming[0][0] < time + debt:  # joins the prefill under way
            debt -= coming[0][0] - time
            time = coming[0][0]
            continue
        time, debt = time + debt, 0.0
        time += costs.step + costs.per_request * len(running) + costs.per_kv_token * held()
        for entry in running:
            entry[2] += 1
        ended |= {key: time for key, _, done, length in running if done == length}
        running = [entry for entry in running if entry[2] < entry[3]]
    return ended


@pytest.mark.parametrize("seed", range(40))
def test_the_closed_form_is_that_of_a_loop_over_tokens(seed: int) -> None:
    chance = random.Random(seed)
    costs = EngineCosts(
        step=chance.choice([0.0, 0.01]) + 1e-3,
        per_request=chance.choice([0.0, 0.002]),
        per_kv_token=chance.choice([0.0, 3e-5]),
        prefill=chance.choice([0.0, 0.001]),
        kv_tokens=chance.choice([130, 300, 10**6]),
        max_running=chance.choice([2, 5, 64]),
        load=0.0,
    )
    lengths: dict[SampleKey, int] = {}
    calls = []
    for uid in range(12):
        begun = chance.choice([0, 0, 7])
        wanted = []
        for sibling in range(chance.randint(1, 4)):
            key = SampleKey(uid, sibling)
            lengths[key] = begun + chance.randint(1, 60)
            wanted.append((key, begun, lengths[key] - begun))
        calls.append((chance.uniform(0.0, 3.0), wanted))

    async def main() -> dict[SampleKey, float]:
        generator = engine(costs, lambda key: lengths[key])
        asked = (
            ends(generator, [request(k.uid, k.sibling, begun=own, limit=60) for k, own, _ in wanted], second)
            for second, wanted in calls
        )
        return {key: time for each in await asyncio.gather(*asked) for key, time in each.items()}

    expected = token_by_token(costs, calls)
    found = run(main())
    assert found.keys() == expected.keys()
    for key, time in expected.items():
        assert found[key] == pytest.approx(time, rel=1e-9), key


def test_batching_by_hand() -> None:
    """Steps of 1 + 0.5 b + 0.01 kv seconds, prompts of 10 tokens at 0.1 s each.

    Request 0 (3 tokens) begins at 0: prefill to 1.0, then a step of 1.6 to 2.6, under way when request 1 (1 token) asks
    at 2.0. At 2.6 request 1 is read, to 3.6; a step of both takes 1 + 1 + 0.01 (11 + 10) = 2.21 s, to 5.81: request 1
    ends. Alone again, with 12 tokens held: 1.62 s, to 7.43: request 0 ends.
    """
    costs = replace(PLAIN, per_request=0.5, per_kv_token=0.01, prefill=0.1)

    async def main() -> list[dict[SampleKey, float]]:
        generator = engine(costs, {0: 3, 1: 1})
        return await asyncio.gather(ends(generator, [request(0)]), ends(generator, [request(1)], 2.0))

    first, second = run(main())
    assert first[SampleKey(0, 0)] == pytest.approx(7.43) and second[SampleKey(1, 0)] == pytest.approx(5.81)


def test_siblings_share_their_prompt_and_reissued_tokens_are_read_again() -> None:
    """Reading: 10 for the prompt, once, and 4 that one sibling brings: 1.4 s. It has 2 of 6 tokens left, 1 s each."""

    async def main() -> dict[SampleKey, float]:
        generator = engine(replace(PLAIN, prefill=0.1), {0: 6})
        return await ends(generator, [request(0, 0), request(0, 1, begun=4)])

    assert run(main()) == {SampleKey(0, 1): pytest.approx(3.4), SampleKey(0, 0): pytest.approx(7.4)}


def test_the_limit_ends_a_response() -> None:
    async def main() -> list[Completion]:
        generator = engine(PLAIN, {0: 3, 1: 4, 2: 5})
        return await answers(generator, [request(uid, limit=4) for uid in range(3)])

    assert [(c.key.uid, c.finish, len(c.tokens)) for c in run(main())] == [
        (0, "stop", 3),
        (1, "stop", 4),
        (2, "length", 4),
    ]


def test_others_wait_where_no_more_may_run() -> None:
    async def main() -> dict[SampleKey, float]:
        generator = engine(replace(PLAIN, max_running=2), {0: 3, 1: 5, 2: 1})
        return await ends(generator, [request(0), request(1), request(2)])

    assert run(main()) == {SampleKey(0, 0): 3.0, SampleKey(2, 0): 4.0, SampleKey(1, 0): 5.0}


def test_a_full_cache_puts_the_youngest_back() -> None:
    """Room for 26 tokens. Two prompts of 10 leave 6: three steps of two. At 3 s the next step would not fit: request 1
    goes back with its 3 tokens. Request 0 ends at 5 s. Request 1 is read again, 13 tokens at 0.1 s, and draws the other
    two by 5 + 1.3 + 2 s; reading both prompts took 2 s at the start."""
    events: list[tuple[Any, ...]] = []

    async def main() -> dict[SampleKey, float]:
        costs = replace(PLAIN, kv_tokens=26, prefill=0.1)
        generator = engine(costs, {0: 5, 1: 5}, log=lambda *event: events.append(event))
        return await ends(generator, [request(0, limit=10), request(1, limit=10)])

    assert run(main()) == {SampleKey(0, 0): pytest.approx(7.0), SampleKey(1, 0): pytest.approx(10.3)}
    assert [event[1:] for event in events if event[1] == "preempt"] == [("preempt", SampleKey(1, 0))]


def test_a_request_that_can_never_fit_is_refused() -> None:
    async def main() -> None:
        await answers(engine(replace(PLAIN, kv_tokens=26), {0: 5}), [request(0, limit=17)])

    with pytest.raises(BackendError, match="10 tokens and up to 17 more do not fit a KV cache of 26"):
        run(main())


def test_abort_answers_with_whole_tokens_and_frees_the_place_after_the_step() -> None:
    """Steps of 0.5 b seconds. Two run to 3.3 s: 3 tokens each. Request 0 is aborted; the fourth step of both ends at
    4.0; alone, request 1 draws its other 6 tokens in 3 s."""

    async def main() -> tuple[list[Completion], float, int]:
        generator = engine(replace(PLAIN, step=0.0, per_request=0.5), {0: 10, 1: 10})
        first = asyncio.create_task(answers(generator, [request(0)]))
        second = asyncio.create_task(ends(generator, [request(1)]))
        await at(3.3, lambda: generator.abort([SampleKey(0, 0), SampleKey(9, 9)]))
        assert (await generator.pulse()).running == 1
        return await first, (await second)[SampleKey(1, 0)], (await generator.pulse()).tokens

    (aborted,), end, tokens = run(main())
    assert (aborted.finish, len(aborted.tokens)) == ("aborted", 3)
    assert end == pytest.approx(7.0)
    assert tokens == 13  # 4 steps of two, 6 of one, without the aborted one's last: it was drawn and is nobody's


def test_leaving_a_stream_ends_its_requests() -> None:
    async def main() -> int:
        generator = engine(PLAIN, {0: 2, 1: 50})
        stream = generator.generate([request(0), request(1)])
        await anext(stream)
        await stream.aclose()
        return (await generator.pulse()).running

    assert run(main()) == 0


def test_pause_waits_for_the_step_and_load_gives_later_tokens_the_new_version() -> None:
    """Asked to pause at 2.5 s it has 3 tokens at 3.0; loading takes to 8.0. Resumed at 8.0, the prefix of 13 is read
    again in 1.3 s, and the other 2 tokens are drawn by 11.3."""

    async def main() -> tuple[list[float], Completion, float]:
        generator = engine(replace(PLAIN, prefill=0.1), {0: 5})
        loop = asyncio.get_running_loop()
        task = asyncio.create_task(answers(generator, [request(0)]))
        with pytest.raises(BackendError, match="pause"):
            await generator.load(WeightManifest(version=1, kind="flat", path="", checksum=""))
        times = []
        await at(3.5, generator.pause)  # one second went into reading the prompt
        times.append(loop.time())
        assert await generator.load(WeightManifest(version=1, kind="flat", path="", checksum="")) == 1
        times.append(loop.time())
        await generator.resume()
        (completion,) = await task
        return times, completion, loop.time()

    times, completion, end = run(main())
    assert times == [pytest.approx(4.0), pytest.approx(9.0)] and end == pytest.approx(12.3)
    assert completion.spans == (Span(start=0, stop=3, version=0), Span(start=3, stop=5, version=1))
    assert completion.tokens.tolist() == [0, 0, 0, 1, 1]


def test_sleep_and_wake_take_their_time_and_keep_tokens() -> None:
    """2 tokens by 2.0; asleep at 4.0, awake at 7.0; nothing is drawn until resume. 3 more tokens by 10.0."""

    async def main() -> float:
        generator = engine(PLAIN, {0: 5})
        task = asyncio.create_task(ends(generator, [request(0)]))
        await asyncio.sleep(1.5)
        assert await generator.sleep() > 0 and await generator.sleep() == 0
        with pytest.raises(BackendError, match="wake"):
            await generator.resume()
        await generator.wake()
        await generator.resume()
        return (await task)[SampleKey(0, 0)]

    assert run(main()) == pytest.approx(10.0)


def test_slow_from_the_next_step_on() -> None:
    """2 tokens by 2.0, the other two at 3 s each."""

    async def main() -> float:
        generator = engine(PLAIN, {0: 4})
        task = asyncio.create_task(ends(generator, [request(0)]))
        await asyncio.sleep(1.5)
        generator.slow(3.0)
        return (await task)[SampleKey(0, 0)]

    assert run(main()) == pytest.approx(8.0)


def test_a_dead_engine_raises_in_open_and_later_calls() -> None:
    async def main() -> None:
        generator = engine(PLAIN, {0: 4, 1: 4})
        open_calls = [asyncio.create_task(answers(generator, [request(uid)])) for uid in (0, 1)]
        await asyncio.sleep(1.5)
        generator.die()
        for call in open_calls:
            with pytest.raises(ProcessDied, match="generator 0 died"):
                await call
        for later in (generator.pause, generator.pulse, lambda: answers(generator, [request(0)])):
            with pytest.raises(ProcessDied, match="generator 0 died"):
                await later()

    run(main())


def test_pulse_by_hand() -> None:
    """At 2.5 s two requests have two tokens each, of two steps. Request 0 ends at 4 s, request 1 at 6 s, and nothing is
    spent after that: 10 tokens in 6 steps of a second. A third one is aborted in its first step, which is done all the
    same; it has not ended by itself."""

    async def main() -> tuple[Pulse, Pulse, float]:
        generator = engine(PLAIN, {0: 4, 1: 6, 2: 9})
        task = asyncio.create_task(ends(generator, [request(0), request(1)]))
        pulse = await at(2.5, generator.pulse)
        await task
        await asyncio.sleep(100)
        left = asyncio.create_task(ends(generator, [request(2)]))
        await at(0.5, lambda: generator.abort([SampleKey(2, 0)]))
        await left
        await asyncio.sleep(100)
        return pulse, await generator.pulse(), generator.busy

    first, last, busy = run(main())
    assert first == Pulse(running=2, tokens=4, ended=0, read=20, steps=2, seconds=2.5, cached=20 + 22)
    cached = (20 + 22 + 24 + 26) + (14 + 15) + 10
    assert last == Pulse(running=0, tokens=10, ended=2, read=30, steps=7, seconds=7.0, cached=cached)
    assert busy == 7.0


def test_a_pulse_counts_what_has_been_read_so_far() -> None:
    """A prompt of 10 tokens at 0.1 s: 5 by 0.5 s, 10 by 1.5 s, half a step in. Put to sleep after that step, at 2 s,
    with 11 tokens held, and woken from 4 to 7 s, it reads them again by 8.1 s."""

    async def main() -> list[int]:
        generator = engine(replace(PLAIN, prefill=0.1), {0: 4})
        task = asyncio.create_task(ends(generator, [request(0)]))
        read = [(await at(0.5, generator.pulse)).read, (await at(1.0, generator.pulse)).read]
        await generator.sleep()
        await generator.wake()
        await generator.resume()
        read.append((await generator.pulse()).read)
        await task
        return [*read, (await generator.pulse()).read]

    assert run(main()) == [5, 10, 10, 21]


def test_requests_wait_for_a_sleeping_engine() -> None:
    """Asleep from 0 to 2 s, asked at 5 s, woken from 10 to 13 s: four tokens by 17 s."""

    async def main() -> tuple[int, dict[SampleKey, float]]:
        generator = engine(PLAIN, {0: 4})
        await generator.sleep()
        task = asyncio.create_task(ends(generator, [request(0)], 3.0))
        running = (await at(8.0, generator.pulse)).running
        await generator.wake()
        await generator.resume()
        return running, await task

    assert run(main()) == (1, {SampleKey(0, 0): 17.0})


def test_prompts_of_many_lengths_share_and_go_on_after_a_move() -> None:
    """Reading at 0.1 s a token: a prompt of 3, shared by two, one of 20, and the 5 tokens one brings: 2.8 s. Of 6
    tokens it has 1 left; the others have 6 and 2."""
    tokens = np.full(20, PROMPT, dtype=np.int32)
    moved = np.concatenate([tokens[:3], np.zeros(5, dtype=np.int32)])

    async def main() -> dict[SampleKey, float]:
        generator = engine(replace(PLAIN, prefill=0.1), {0: 6, 1: 2})
        return await ends(
            generator,
            [
                replace(request(0), tokens=tokens[:3]),
                replace(request(0, 1), tokens=moved),
                replace(request(1), tokens=tokens),
            ],
        )

    assert run(main()) == {
        SampleKey(0, 1): pytest.approx(3.8),
        SampleKey(1, 0): pytest.approx(4.8),
        SampleKey(0, 0): pytest.approx(8.8),
    }


def test_close_answers_what_runs_and_refuses_what_comes() -> None:
    async def main() -> list[Completion]:
        generator = engine(PLAIN, {0: 40})
        task = asyncio.create_task(answers(generator, [request(0)]))
        await at(2.5, generator.close)
        with pytest.raises(BackendError, match="closed"):
            await answers(generator, [request(0)])
        await generator.close()
        return await task

    (completion,) = run(main())
    assert (completion.finish, len(completion.tokens)) == ("aborted", 2)

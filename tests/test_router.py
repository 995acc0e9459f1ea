"""Where requests go, and what becomes of those at a generator that is full, slow or dead."""

import asyncio
from contextlib import aclosing

import numpy as np
import pytest

from yatt.controller.fleet import Fleet
from yatt.controller.health import PULSE_DEADLINE, Pace, slow_engines
from yatt.controller.migration import continued, joined
from yatt.controller.router import WATCH_SECONDS, Router
from yatt.errors import BackendError, ProcessDied, WaitTimeout
from yatt.types import Completion, Pulse, Request, SampleKey, SamplingParams, Span


class Manual:
    """An engine whose requests end when the test says so."""

    def __init__(self, slot):
        self.slots, self.node = (slot,), "here"
        self.open = {}  # key -> (request, queue)
        self.calls = []
        self.tokens = 0
        self.dead = self.hangs = False

    async def generate(self, requests):
        self._check()
        queue, left = asyncio.Queue(), len(requests)
        self.calls.append([r.key for r in requests])
        self.open |= {r.key: (r, queue) for r in requests}
        try:
            while left:
                ended = await queue.get()
                if isinstance(ended, Exception):
                    raise ended
                left -= len(ended)
                yield ended
        finally:
            for request in requests:
                self.open.pop(request.key, None)

    def end(self, key, tokens, finish="stop", version=0):
        """Answer one request with these tokens."""
        _, queue = self.open.pop(key)
        queue.put_nowait([completion(key, tokens, finish, version)])

    async def abort(self, keys):
        self._check()
        for key in [key for key in keys if key in self.open]:
            self.end(key, [7], "aborted")

    def die(self):
        self.dead = True
        for queue in {id(queue): queue for _, queue in self.open.values()}.values():
            queue.put_nowait(ProcessDied("engine died"))

    async def pulse(self):
        self._check()
        if self.hangs:
            await asyncio.Event().wait()
        return Pulse(running=len(self.open), tokens=self.tokens)

    def _check(self):
        if self.dead:
            raise ProcessDied("engine died")


class HandClock:
    """Time passes when the test says so."""

    def __init__(self):
        self.waiting = []

    def now(self):
        return 0.0

    async def sleep(self, seconds):
        assert seconds == WATCH_SECONDS
        event = asyncio.Event()
        self.waiting.append(event)
        await event.wait()

    async def look(self):
        """Let the router's watch take one look."""
        await settle()
        for event in self.waiting:
            event.set()
        self.waiting.clear()
        await settle()


def completion(key, tokens, finish="stop", version=0):
    tokens = np.array(tokens, dtype=np.int32)
    spans = (Span(start=0, stop=len(tokens), version=version),) if len(tokens) else ()
    logprobs = -tokens.astype(np.float32)
    return Completion(key=key, tokens=tokens, rollout_logprobs=logprobs, spans=spans, finish=finish)


def requests(uid, n, max_tokens=10, prompt=(1, 2)):
    tokens, params = np.array(prompt, dtype=np.int32), SamplingParams(max_tokens=max_tokens)
    return [Request(key=SampleKey(uid, i), tokens=tokens, params=params, seed=100 + i) for i in range(n)]


async def settle():
    for _ in range(20):
        await asyncio.sleep(0)


async def collect(router, group, into):
    async with aclosing(router.generate(group)) as stream:
        async for ended in stream:
            into += ended


def start(router, group):
    ended = []
    return asyncio.create_task(collect(router, group, ended)), ended


def make(count, clock=None, **options):
    engines = [Manual(slot) for slot in range(count)]
    return engines, Router(Fleet(engines), clock=clock or HandClock(), **options)


async def test_a_group_goes_whole_to_the_generator_with_least_to_do_and_ties_begin_at_first():
    engines, router = make(3, index=1, controllers=3)
    tasks = [start(router, requests(uid, n))[0] for uid, n in ((0, 3), (1, 1), (2, 2), (3, 1))]
    await settle()
    # 0 -> engine 1, 1 -> engine 2, 2 -> engine 0; then engine 2 has one request, the others two and three.
    assert [[len(call) for call in e.calls] for e in engines] == [[2], [3], [1, 1]]
    assert engines[2].calls == [[SampleKey(1, 0)], [SampleKey(3, 0)]]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert all(not e.open for e in engines), "what nobody waits for any more runs on"


async def test_ties_are_broken_among_those_awake():
    """Four controllers, eight engines, of which the last four sleep: each begins at another one that is awake."""
    for index in range(4):
        engines, router = make(8, index=index, controllers=4)
        router.fleet.awake[4:] = False
        await router.follow()
        task, _ = start(router, requests(0, 2))
        await settle()
        assert [len(engine.calls) for engine in engines] == [n == index for n in range(8)]
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_work_is_measured_in_tokens_once_lengths_are_known():
    engines, router = make(2)
    task, _ = start(router, requests(0, 1, max_tokens=100))
    await settle()
    engines[0].end(SampleKey(0, 0), range(100))  # responses are 100 tokens long, as far as is known
    await task
    long_prompt = requests(1, 1, max_tokens=100, prompt=[1] * 6400)  # 200 response tokens' worth of reading
    tasks = [start(router, group)[0] for group in (long_prompt, requests(2, 1, 100), requests(3, 1, 100))]
    await settle()
    assert [len(e.calls) for e in engines] == [2, 2]
    assert engines[1].calls == [[SampleKey(2, 0)], [SampleKey(3, 0)]]
    for task in tasks:
        task.cancel()


async def test_a_group_is_split_only_where_no_generator_has_room_for_it():
    engines, router = make(2, limit=4)
    first, _ = start(router, requests(0, 2))
    await settle()
    second, ended = start(router, requests(1, 6))
    await settle()
    # Engine 1 is idle but takes four; engine 0 has room for the other two.
    assert [[len(call) for call in e.calls] for e in engines] == [[2, 2], [4]]
    for engine in engines:
        for key in [k for k in engine.open if k.uid == 1]:
            engine.end(key, [1])
    await second
    assert sorted(c.key.sibling for c in ended) == list(range(6))
    first.cancel()


async def test_back_pressure_holds_groups_in_order_until_there_is_room():
    engines, router = make(1, limit=4)
    tasks = [start(router, requests(uid, 4)) for uid in range(3)]
    await settle()
    assert [call[0].uid for call in engines[0].calls] == [0]
    for uid in range(3):
        assert len(engines[0].open) == 4
        for sibling in range(4):
            engines[0].end(SampleKey(uid, sibling), [1])
        await settle()
        assert [call[0].uid for call in engines[0].calls] == list(range(min(3, uid + 2)))
    await asyncio.gather(*(task for task, _ in tasks))


async def test_waiting_for_room_has_a_deadline_that_says_for_whom():
    _, router = make(1, limit=2, timeout=0.05)
    blocked, _ = start(router, requests(0, 2))
    await settle()
    with pytest.raises(WaitTimeout, match=r"prompt 1 waited 0.05 s for one of 1 generators to have room, and"):
        await start(router, requests(1, 2))[0]
    blocked.cancel()


async def test_waiting_goes_on_while_responses_end():
    engines, router = make(1, limit=2, timeout=1.0)
    first, _ = start(router, requests(0, 2))
    await settle()
    second, _ = start(router, requests(1, 2))
    await asyncio.sleep(0.6)
    engines[0].end(SampleKey(0, 0), [1])
    await asyncio.sleep(0.6)
    assert not second.done()  # 1.2 s have passed, 0.6 s since a response ended
    engines[0].end(SampleKey(0, 1), [1])
    await settle()
    assert [call[0].uid for call in engines[0].calls] == [0, 1]
    first.cancel()
    second.cancel()


async def test_the_work_of_a_dead_generator_is_done_by_the_others_once():
    engines, router = make(2)
    task, ended = start(router, requests(0, 3))
    await settle()
    engines[0].end(SampleKey(0, 1), [5])
    await settle()
    engines[0].die()
    await settle()
    assert engines[1].calls == [[SampleKey(0, 0), SampleKey(0, 2)]]
    for sibling in (0, 2):
        engines[1].end(SampleKey(0, sibling), [sibling])
    await task
    assert [(c.key.sibling, c.tokens.tolist()) for c in ended] == [(1, [5]), (0, [0]), (2, [2])]
    later, _ = start(router, requests(1, 1))
    await settle()
    assert len(engines[0].calls) == 1, "a dead generator is asked again"
    engines[1].end(SampleKey(1, 0), [1])
    await later


async def test_where_the_last_generator_dies_the_caller_hears_why():
    engines, router = make(2)
    task, _ = start(router, requests(0, 2))
    await settle()
    engines[0].die()
    await settle()
    engines[1].die()
    with pytest.raises(ProcessDied, match="engine died"):
        await task


async def test_an_error_that_is_no_death_is_the_callers():
    engines, router = make(2)
    task, _ = start(router, requests(0, 1))
    await settle()
    engines[0].open[SampleKey(0, 0)][1].put_nowait(BackendError("sampling failed"))
    with pytest.raises(BackendError, match="sampling failed"):
        await task
    assert engines[1].calls == []


async def test_a_slow_generator_gives_its_work_up_with_the_tokens_so_far():
    clock = HandClock()
    engines, router = make(3, clock=clock)
    tasks = [start(router, requests(uid, 1)) for uid in range(3)]
    await clock.look()
    engines[0].tokens, engines[1].tokens, engines[2].tokens = 10, 400, 500  # 10 is under a quarter of 400
    await clock.look()
    assert [len(e.calls) for e in engines] == [1, 2, 1]
    moved, _ = engines[1].open[SampleKey(0, 0)]
    assert moved.tokens.tolist() == [1, 2, 7]  # the prompt, and what the slow one had
    assert (moved.params.max_tokens, moved.seed) == (9, 101)
    engines[1].end(SampleKey(0, 0), [8, 9], version=0)
    engines[1].end(SampleKey(1, 0), [1])
    engines[2].end(SampleKey(2, 0), [2])
    await asyncio.gather(*(task for task, _ in tasks))
    whole = tasks[0][1][0]
    assert (whole.tokens.tolist(), whole.rollout_logprobs.tolist(), whole.finish) == ([7, 8, 9], [-7, -8, -9], "stop")
    assert whole.spans == (Span(start=0, stop=1, version=0), Span(start=1, stop=3, version=0))


async def test_an_abort_is_the_callers_even_of_work_that_is_being_moved():
    clock = HandClock()
    engines, router = make(2, clock=clock)
    task, ended = start(router, requests(0, 2))
    await settle()
    router._migration.move([SampleKey(0, 0)])
    await router.abort([SampleKey(0, 0), SampleKey(0, 1)])
    await task
    assert {(c.key.sibling, c.finish, *c.tokens.tolist()) for c in ended} == {(0, "aborted", 7), (1, "aborted", 7)}
    assert engines[1].calls == [] and not router._migration.ending


async def test_a_group_aborted_before_it_had_room_comes_back_empty():
    _, router = make(1, limit=2)
    blocked, _ = start(router, requests(0, 2))
    await settle()
    task, ended = start(router, requests(1, 2))
    await settle()
    await router.abort([SampleKey(1, 0), SampleKey(1, 1)])
    await task
    assert [(len(c.tokens), c.finish) for c in ended] == [(0, "aborted")] * 2
    blocked.cancel()


async def test_a_generator_that_gives_no_sign_of_life_is_given_up(monkeypatch):
    monkeypatch.setattr("yatt.controller.health.PULSE_DEADLINE", 0.02)
    assert PULSE_DEADLINE > WATCH_SECONDS
    clock = HandClock()
    engines, router = make(2, clock=clock)
    task, ended = start(router, requests(0, 2))
    await settle()
    engines[0].hangs = True
    await clock.look()
    await asyncio.sleep(0.1)
    assert engines[1].calls == [[SampleKey(0, 0), SampleKey(0, 1)]]
    for sibling in range(2):
        engines[1].end(SampleKey(0, sibling), [1])
    await task
    assert len(ended) == 2


def test_slow_takes_few_tokens_in_all_and_per_request():
    def pulses(**after):  # name -> (running, tokens); all began at 0 tokens
        return {n: (Pulse(running=r, tokens=0), Pulse(running=r, tokens=t)) for n, (r, t) in after.items()}

    def slow(usual=None, **after):
        return slow_engines(pulses(**after), usual)[0]

    assert slow(a=(8, 100), b=(8, 1000), c=(8, 1000)) == ["a"]
    assert slow(a=(1, 100), b=(8, 1000), c=(8, 1000)) == []  # few requests left, each as fast
    assert slow(a=(64, 1000), b=(8, 1000), c=(8, 1000)) == []  # a large batch
    assert slow(a=(8, 250), b=(8, 1000)) == []  # a quarter is not under a quarter
    assert slow(a=(8, 249), b=(8, 1000)) == ["a"]
    assert slow(a=(8, 0), b=(0, 1000)) == []  # nobody to compare with ...
    usual = Pace(total=1000, each=125)
    assert slow(usual, a=(8, 0), b=(0, 1000)) == ["a"]  # ... but what was usual before
    assert slow(usual, a=(1, 40)) == [] and slow(usual, a=(1, 30)) == ["a"]
    assert slow_engines(pulses(a=(8, 100), b=(8, 1000)), usual)[1] == Pace(total=1000, each=125)


def test_a_request_goes_on_after_what_was_drawn_and_the_parts_are_joined():
    (request,) = requests(4, 1)
    begun = completion(request.key, [3, 4], "aborted", version=1)
    rest = continued(request, begun)
    assert (rest.tokens.tolist(), rest.params.max_tokens, rest.seed, rest.key) == ([1, 2, 3, 4], 8, 102, request.key)
    assert continued(request, completion(request.key, [], "aborted")) is request
    whole = joined(begun, completion(request.key, [5], "length", version=2))
    assert whole.tokens.tolist() == [3, 4, 5] and whole.finish == "length"
    assert whole.spans == (Span(start=0, stop=2, version=1), Span(start=2, stop=3, version=2))


async def test_what_sleeps_hands_its_requests_on_and_where_none_is_awake_they_wait():
    engines, router = make(2)
    task, ended = start(router, requests(0, 4))
    await settle()
    router.fleet.awake = np.array([False, True])
    await router.follow()
    await settle()
    assert not engines[0].open and sorted(engines[1].open) == [SampleKey(0, i) for i in range(4)]
    assert engines[1].open[SampleKey(0, 0)][0].tokens.tolist() == [1, 2, 7]  # the prompt, and the token so far
    router.fleet.awake = np.array([False, False])
    await router.follow()
    await settle()
    assert len(engines[1].open) == 4  # no better place: they keep theirs
    other, _ = start(router, requests(1, 2))
    await settle()
    assert sorted(engines[0].open) == [SampleKey(1, 0), SampleKey(1, 1)]  # to the one with the least to do
    for i in range(4):
        engines[1].end(SampleKey(0, i), [9])
    await task
    assert [completion.tokens.tolist() for completion in ended] == [[7, 9]] * 4
    other.cancel()


async def test_what_waits_at_a_full_generator_is_shared_with_one_that_wakes():
    engines, router = make(2, limit=8)
    router.fleet.awake = np.array([True, False])
    tasks = [start(router, requests(uid, 4))[0] for uid in range(2)]
    await settle()
    assert (len(engines[0].open), len(engines[1].open)) == (8, 0)
    router.fleet.awake = np.array([True, True])
    await router.follow()
    await settle()
    assert sorted(engines[0].open) == [SampleKey(0, i) for i in range(4)]  # those that came first stay
    assert sorted(engines[1].open) == [SampleKey(1, i) for i in range(4)]
    for task in tasks:
        task.cancel()


async def test_everyone_hears_why_nothing_goes_on():
    _, router = make(1, limit=2)
    running, _ = start(router, requests(0, 2))
    await settle()
    waiting, _ = start(router, requests(1, 2))
    await settle()
    router.fail(BackendError("no more"))
    for task in (running, waiting):
        with pytest.raises(BackendError, match="no more"):
            await task


def test_an_engine_that_reads_prompts_is_not_slow():
    """Two that sample 100 a look, one that has read 5,000 tokens and sampled 4."""
    before = {n: Pulse(running=8, tokens=0) for n in "abc"}
    after = {n: Pulse(running=8, tokens=100) for n in "ab"} | {"c": Pulse(running=8, tokens=4, read=5000)}
    assert slow_engines({n: (before[n], after[n]) for n in before}, None)[0] == []

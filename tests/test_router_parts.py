"""The router's parts, each by itself: who is let in, which engine is chosen, what goes on elsewhere, who is slow."""

import asyncio
from types import SimpleNamespace

import numpy as np
import pytest

from yatt.controller.admission import Admission
from yatt.controller.fleet import Fleet
from yatt.controller.health import HealthCheck
from yatt.controller.load_balancer import LoadBalancer
from yatt.controller.migration import Migration
from yatt.controller.talks import TalkCounts, Talks
from yatt.errors import BackendError, ProcessDied, WaitTimeout
from yatt.types import Completion, Pulse, Request, SampleKey, SamplingParams, Span


def fleet(engines: int) -> Fleet:
    return Fleet([SimpleNamespace(slots=(slot,), node="here") for slot in range(engines)])


def group(uid: int, n: int, prompt: int = 32, max_tokens: int = 10) -> list[Request]:
    tokens, params = np.ones(prompt, dtype=np.int32), SamplingParams(max_tokens=max_tokens)
    return [Request(key=SampleKey(uid, i), tokens=tokens, params=params, seed=i) for i in range(n)]


def answer(request: Request, tokens: list[int], finish: str = "stop") -> Completion:
    column = np.array(tokens, dtype=np.int32)
    spans = (Span(start=0, stop=len(tokens), version=0),) if tokens else ()
    logprobs = -column.astype(np.float32)
    return Completion(key=request.key, tokens=column, rollout_logprobs=logprobs, spans=spans, finish=finish)


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_groups_are_admitted_in_order_while_there_is_room():
    """Two engines of four: 3 + 3 are let in at once, then 4 wait for four free places, and 1 waits behind them."""
    admission, order = Admission(fleet(2), limit=4, timeout=10), []

    async def enter(requests):
        assert await admission.admit(requests)
        order.append(requests[0].key.uid)
        admission.sent(0 if admission.room[0] >= len(requests) else 1, len(requests))

    for uid, n in enumerate((3, 3)):
        await enter(group(uid, n))
    assert admission.running.tolist() == [3, 3] and admission.room.tolist() == [1, 1]
    later = [asyncio.create_task(enter(group(uid, n))) for uid, n in ((2, 4), (3, 1))]
    await turns()
    assert order == [0, 1]
    admission.came_back(0, 1)  # three places are free
    await turns()
    assert order == [0, 1]  # one would fit, but came later
    admission.came_back(0, 2)  # five
    await asyncio.gather(*later)
    assert order == [0, 1, 2, 3]


async def test_a_group_larger_than_all_there_is_goes_where_nothing_runs():
    admission = Admission(fleet(2), limit=2, timeout=10)
    assert await admission.admit(group(0, 9))
    admission.sent(0, 1)
    task = asyncio.create_task(admission.admit(group(1, 9)))
    await turns()
    assert not task.done()
    admission.came_back(0, 1)
    assert await task


async def test_who_waits_is_told_of_an_abort_an_error_and_a_deadline():
    admission = Admission(fleet(1), limit=1, timeout=0.01)
    admission.sent(0, 1)
    aborted, failed = (asyncio.create_task(admission.admit(group(uid, 1))) for uid in (0, 1))
    await turns()
    admission.abort([SampleKey(0, 0)])
    assert not await aborted
    admission.fail(BackendError("no more"))
    with pytest.raises(BackendError, match="no more"):
        await failed
    with pytest.raises(WaitTimeout, match=r"prompt 2 waited 0.01 s for one of 1 generators"):
        await admission.admit(group(2, 1))
    admission.came_back(0, 1)  # nobody waits any more, and no place is kept for anybody
    assert await admission.admit(group(3, 1))


def test_the_engine_with_the_least_work_is_chosen_and_work_is_of_tokens():
    """A request of 32 prompt tokens and a response of 0 to 10: 1 + length + 1."""
    balancer, room = LoadBalancer(fleet(2), index=0, controllers=1), np.array([8, 8])
    assert balancer.work_of(group(0, 3)) == 3 * (1 + 0 + 1)
    balancer.response_ended(4)
    balancer.response_ended(8)
    assert balancer.work_of(group(0, 3)) == 3 * (1 + 6 + 1)
    assert balancer.work_of(group(0, 1, max_tokens=2)) == 1 + 2 + 1
    balancer.sent(0, group(0, 2))  # 16
    balancer.sent(1, group(1, 1, prompt=320))  # 17
    assert balancer.choose(group(2, 1), room) == (0, 1)
    balancer.came_back(1, group(1, 1, prompt=160), idle=False)  # 5 are left
    assert balancer.choose(group(2, 1), room) == (1, 1)
    balancer.response_ended(100)
    balancer.came_back(0, group(0, 2), idle=True)  # more than was added, and nothing is left
    assert balancer.choose(group(2, 1), room) == (0, 1)


def test_siblings_stay_together_where_one_engine_has_room_for_all():
    balancer = LoadBalancer(fleet(3), index=0, controllers=1)
    balancer.sent(2, group(0, 1))
    assert balancer.choose(group(1, 4), np.array([3, 2, 4])) == (2, 4)
    assert balancer.choose(group(1, 5), np.array([0, 2, 4])) == (1, 2)  # the least busy one with room takes some
    assert balancer.choose(group(1, 5), np.array([0, -1, 0])) == (0, 5)  # nobody has room: all go to one


def test_equals_begin_elsewhere_for_each_controller_and_a_slow_engine_counts_as_slow():
    room = np.array([8, 8, 8, 8])
    balancers = [LoadBalancer(fleet(4), index=index, controllers=2) for index in range(2)]
    assert [balancer.choose(group(0, 1), room)[0] for balancer in balancers] == [0, 2]
    first = balancers[0]
    first.slow_down({0: True, 1: False})
    assert first.choose(group(0, 1), room) == (1, 1)
    for engine in (1, 2, 3):
        first.sent(engine, group(0, 3))  # 6 and 2 more are as much as four times 2
    assert first.choose(group(0, 1), room) == (0, 1)
    first.sent(0, group(0, 1))
    assert first.choose(group(0, 1), room) == (1, 1)
    first.slow_down({0: False})
    assert first.choose(group(0, 1), room) == (0, 1)


def test_a_conversation_stays_with_its_cache_unless_another_engine_is_far_less_busy():
    engines, room = fleet(3), np.array([8, 8, 8])
    balancer = LoadBalancer(engines, index=0, controllers=1)
    turn = group(0, 1)  # its work is 2
    for engine in range(3):
        balancer.sent(engine, group(1, 8))  # 16 each
    assert balancer.choose(turn, room, home=2) == (2, 1)
    balancer.sent(2, group(2, 10))  # 36 and 2 are 38, of 24.7 in the mean: 1.54 times
    assert balancer.choose(turn, room, home=2) == (0, 1)
    balancer.came_back(2, group(2, 2), idle=False)  # 34, of 23.3: 1.46 times
    assert balancer.choose(turn, room, home=2) == (2, 1)
    assert balancer.choose(turn, np.array([8, 8, 0]), home=2) == (0, 1)
    engines.awake[2] = False
    assert balancer.choose(turn, room, home=2) == (0, 1)


def test_conversations_are_counted_as_one_controller_of_several_sees_them():
    """One of turns of 3 and 5 tokens that is moved and ends after 4 s outside, and one that is given up."""
    talks = Talks(controllers=2)
    assert talks.counts() is None and talks.home(SampleKey(0, 0)) is None
    talks.begin(0, 0)
    talks.begin(0, 1)
    talks.said(SampleKey(0, 0), row=10, sampled=3, engine=1)
    talks.said(SampleKey(9, 0), row=10, sampled=3, engine=1)  # none of its business
    assert talks.home(SampleKey(0, 0, 1)) == 1 and talks.home(SampleKey(0, 1)) is None
    assert talks.known(SampleKey(0, 0, 1), 14) == 10 and talks.known(SampleKey(0, 1), 14) == 0
    talks.said(SampleKey(0, 0, 1), row=19, sampled=5, engine=0)
    assert talks.counts() == TalkCounts(under_way=4, ended=0, sampled=8, outside=0.0)
    talks.end(0, 0, 4.0)
    assert talks.counts() == TalkCounts(under_way=2, ended=2, sampled=0, outside=0.5)
    talks.end(0, 1, None)  # given up: it says nothing of others
    assert talks.counts() == TalkCounts(under_way=0, ended=2, sampled=0, outside=0.5)


def test_an_engine_with_far_more_than_its_share_is_overfull():
    """10 requests on two awake engines are 5 each; 7.5 are too many."""
    engines = fleet(3)
    engines.awake[2] = False
    balancer = LoadBalancer(engines, index=0, controllers=1)
    assert balancer.overfull(np.array([8, 2, 0])) == ([0], 5)
    assert balancer.overfull(np.array([7, 3, 0])) == ([], 5)
    assert balancer.overfull(np.array([0, 2, 8])) == ([], 5)  # it sleeps: all of its requests move


def test_a_moved_request_goes_on_after_its_tokens_as_often_as_it_is_moved():
    (request,), migration = group(0, 1, prompt=2), Migration()
    rest, spans = request, []
    for round, tokens in enumerate(([5, 6], [], [7])):
        migration.move([request.key])
        assert migration.ending == {request.key}
        whole, rest = migration.came_back(rest, answer(request, tokens, "aborted"))
        assert (rest.params.max_tokens, rest.seed) == [(8, 2), (8, 2), (7, 3)][round]
        assert rest.tokens.tolist() == [1, 1, *whole.tokens.tolist()]
        spans.append(len(tokens))
    whole, rest = migration.came_back(rest, answer(request, [8, 9], "length"))
    assert rest is None and whole.finish == "length"
    assert whole.tokens.tolist() == [5, 6, 7, 8, 9]
    assert whole.rollout_logprobs.tolist() == [-5, -6, -7, -8, -9]
    assert [(span.start, span.stop) for span in whole.spans] == [(0, 2), (2, 3), (3, 5)]


def test_an_abort_is_final_and_keeps_the_tokens_so_far():
    (moved, fresh, wanted), migration = group(0, 3), Migration()
    migration.move([moved.key])
    _, rest = migration.came_back(moved, answer(moved, [5], "aborted"))
    migration.abort([moved.key, fresh.key])
    migration.move([fresh.key])  # too late
    to_send, responses = migration.sort_out([rest, fresh, wanted])
    assert to_send == [wanted]
    assert [(r.finish, r.tokens.tolist()) for r in responses] == [("aborted", [5]), ("aborted", [])]
    migration.forget([moved.key, fresh.key])
    assert migration.ending == set() and migration.sort_out([moved]) == ([moved], [])


def test_a_request_that_ends_before_it_could_be_moved_has_ended():
    (request,), migration = group(0, 1), Migration()
    migration.move([request.key])
    whole, rest = migration.came_back(request, answer(request, [5], "stop"))
    assert rest is None and whole.finish == "stop" and migration.ending == set()


class Sampling:
    """An engine with 8 requests that has sampled so many tokens."""

    def __init__(self, slot: int) -> None:
        self.slots, self.node, self.tokens, self.dead = (slot,), "here", 0, False

    async def pulse(self) -> Pulse:
        if self.dead:
            raise ProcessDied("engine died")
        return Pulse(running=8, tokens=self.tokens)


async def test_an_engine_is_slow_from_the_second_look_on_and_others_awake_begin_anew():
    engines = [Sampling(slot) for slot in range(3)]
    health = HealthCheck(Fleet(engines))

    async def look(*sampled: int) -> dict[int, bool]:
        for engine, tokens in zip(engines, sampled, strict=True):
            engine.tokens += tokens
        return await health.look({0, 1, 2})

    assert await look(0, 0, 0) == {0: False, 1: False, 2: False}
    assert await look(10, 100, 100) == {0: True, 1: False, 2: False}
    assert await look(100, 100, 10) == {0: False, 1: False, 2: True}
    health.forget()
    assert await look(100, 10, 100) == {0: False, 1: False, 2: False}
    engines[2].dead = True
    assert await look(100, 10, 100) == {0: False, 1: True}
    engines[0].tokens += 10
    assert await health.look({0}) == {0: True}  # alone, against what was usual
    health.begin()
    engines[0].tokens += 10
    assert await health.look({0}) == {0: False}  # nothing is usual yet

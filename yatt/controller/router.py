"""Which generator draws what: the one with the least to do; and what is done when one turns slow or dies."""

from __future__ import annotations

import asyncio
import statistics
from collections import deque
from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from yatt.controller.fleet import Fleet, PlacedGenerator
from yatt.errors import ProcessDied, WaitTimeout
from yatt.protocols import Clock
from yatt.types import Completion, Pulse, Request, SampleKey

PREFILL = 1 / 32
"""Work of reading a prompt token, in response tokens."""
WATCH_SECONDS = 10.0
"""How often busy generators are looked at."""
PULSE_DEADLINE = 120.0
"""A generator that does not say how it is doing for so long is given up for dead."""
UNEVEN = 1.5
"""An engine with so many times its share gives some of it to others that have woken."""
SLOW = 4.0
"""A generator is slow when others are this many times as fast, both in all and per request."""

Inbox = asyncio.Queue["list[Completion] | Exception"]


@dataclass(slots=True, eq=False)
class _Call:
    """Requests at one generator that have not come back."""

    number: int
    pending: dict[SampleKey, Request]
    inbox: Inbox


class Pace(NamedTuple):
    """Tokens between two looks."""

    total: float
    each: float  # per running request


@dataclass(slots=True, eq=False)
class _Waiting:
    """A group that no generator has room for yet."""

    requests: Sequence[Request]
    room: asyncio.Future[bool]


class Router:
    """Spreads groups over the fleet, from one controller.

    A group goes whole to the generator with the least outstanding work, so that its prompt is read once. Each generator
    is given at most `limit` requests at a time: where none has room for the whole group it is split over those that
    have some, and where all are full together it waits its turn, at most `timeout` seconds in which nothing ends. Ties
    begin at the first generator of the share that controller `index` of `controllers` would have of the open ones, so
    that they do not all start at the same one.

    What a dead generator had not answered is drawn anew elsewhere; what a slow one has begun is ended there and goes on
    elsewhere after the tokens so far, each with its logprob and version.
    """

    def __init__(
        self,
        fleet: Fleet,
        *,
        clock: Clock,
        limit: int = 512,
        index: int = 0,
        controllers: int = 1,
        timeout: float = 3600.0,
    ) -> None:
        self.fleet = fleet
        self._clock = clock
        self._limit = limit
        self._timeout = timeout
        self._index, self._controllers = index, controllers
        self._ties = self._order()
        size = len(fleet)
        self._counts = np.zeros(size, dtype=np.int64)
        self._work = np.zeros(size)
        self._pace = np.ones(size)
        self._length = 0.0  # mean response tokens seen so far
        self.asked = 0  # requests
        self.asked_tokens = 0.0  # of their prompts; siblings share theirs
        self.longest = 0  # tokens of the longest response since the director last looked
        self._ended = 0
        self._calls: dict[_Call, asyncio.Task[None]] = {}
        self._waiting: deque[_Waiting] = deque()
        self._promised = 0  # requests of groups that were told of room and have not taken it
        self._moving: set[SampleKey] = set()
        self._unwanted: set[SampleKey] = set()
        self._begun: dict[SampleKey, Completion] = {}
        self._looked: dict[int, Pulse] = {}  # at the last look, of engines that were awake since
        self._watching: asyncio.Task[None] | None = None

    async def generate(self, requests: Sequence[Request]) -> AsyncIterator[list[Completion]]:
        """Completions of one group, in the order they end. Left early, it ends what is still running."""
        inbox: Inbox = asyncio.Queue()
        self.asked += len(requests)
        self.asked_tokens += len(requests[0].tokens)
        if not await self._admit(requests):
            yield [_unbegun(request) for request in requests]
            return
        self._send(requests, inbox)
        left = len(requests)
        try:
            while left:
                ended = await inbox.get()
                if isinstance(ended, Exception):
                    raise ended
                left -= len(ended)
                self.longest = max(self.longest, *(len(completion.tokens) for completion in ended))
                yield ended
        finally:
            for call in [call for call in self._calls if call.inbox is inbox]:
                self._calls[call].cancel()
            for request in requests:
                self._begun.pop(request.key, None)
                self._moving.discard(request.key)
                self._unwanted.discard(request.key)

    async def abort(self, keys: Collection[SampleKey]) -> None:
        """End these requests: each comes back at once with the tokens so far, if any."""
        self._moving.difference_update(keys)
        self._unwanted.update(keys)
        for waiting in [w for w in self._waiting if not w.room.done() and w.requests[0].key in keys]:
            waiting.room.set_result(False)
            self._waiting.remove(waiting)
        await self._end(keys)

    async def _end(self, keys: Collection[SampleKey]) -> None:
        at: dict[int, list[SampleKey]] = {}
        for call in self._calls:
            at.setdefault(call.number, []).extend(key for key in call.pending if key in keys)
        at = {number: mine for number, mine in at.items() if mine}
        await self.fleet.each(lambda number, generator: generator.abort(at[number]), among=at)

    async def follow(self) -> None:
        """Others are awake than before: what lies at engines that sleep now goes on at those that are awake, and what
        came last to the fullest is shared with the new. Where none is awake, all stays where it is and waits."""
        self._looked.clear()
        self._ties = self._order()
        for call in list(self._calls):
            if not self.fleet.open[call.number]:
                await self._move(call.pending)
        fair = -(-int(self._counts.sum()) // max(1, int(self.fleet.open.sum())))
        for number in np.flatnonzero(self.fleet.awake & self.fleet.up & (self._counts > UNEVEN * fair)):
            here = [key for call in self._calls if call.number == number for key in call.pending]
            await self._move(here[fair:])
        self._let_in()

    def _order(self) -> np.ndarray:
        """[generators] Less than any work: who comes first among equals."""
        place, count = np.cumsum(self.fleet.open) - 1, max(1, int(self.fleet.open.sum()))
        return 1e-6 * ((place - self._index * count // self._controllers) % count)

    def fail(self, error: Exception) -> None:
        """Everyone who waits for a response hears of this error instead."""
        for call in self._calls:
            call.inbox.put_nowait(error)
        for waiting in self._waiting:
            if not waiting.room.done():
                waiting.room.set_exception(error)

    async def _move(self, keys: Collection[SampleKey]) -> None:
        """End these requests where they are: they go on elsewhere."""
        keys = set(keys)
        self._moving |= keys
        await self._end(keys)

    async def _admit(self, requests: Sequence[Request]) -> bool:
        """Wait for room, first come, first served. False where it was aborted meanwhile."""
        if not self._waiting and self._room() >= min(len(requests), self._most()):
            return True
        waiting = _Waiting(requests, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        try:
            while not waiting.room.done():
                ended = self._ended
                await asyncio.wait([waiting.room], timeout=self._timeout)
                if not waiting.room.done() and self._ended == ended:
                    raise WaitTimeout(
                        f"prompt {requests[0].key.uid} waited {self._timeout:g} s for one of {self.fleet.alive} "
                        "generators to have room, and no response ended"
                    )
            return waiting.room.result()
        finally:
            if waiting in self._waiting:
                self._waiting.remove(waiting)
            if waiting.room.done() and waiting.room.result():
                self._promised -= len(requests)

    def _most(self) -> int:
        """What all generators together may be given."""
        return self._limit * int(self.fleet.open.sum())

    def _room(self) -> int:
        return int(np.maximum(0, self._limit - self._counts[self.fleet.open]).sum()) - self._promised

    def _send(self, requests: Sequence[Request], inbox: Inbox) -> None:
        """Place requests now, together where one generator has room for all."""
        more = self._weight(requests)
        load = np.where(self.fleet.open, (self._work + more) / self._pace + self._ties, np.inf)
        room = self._limit - self._counts
        fits = np.where(room >= len(requests), load, np.inf)
        if np.isfinite(fits.min()) or room[np.isfinite(load)].max() <= 0:
            best = int((fits if np.isfinite(fits.min()) else load).argmin())
            self._call(best, requests, inbox)
            return
        number = int(np.where(room > 0, load, np.inf).argmin())
        self._call(number, requests[: room[number]], inbox)
        self._send(requests[room[number] :], inbox)

    def _call(self, number: int, requests: Sequence[Request], inbox: Inbox) -> None:
        call = _Call(number, {request.key: request for request in requests}, inbox)
        self._counts[number] += len(requests)
        self._work[number] += self._weight(requests)
        self._calls[call] = asyncio.create_task(self._run(call))
        if self._watching is None or self._watching.done():
            self._watching = asyncio.create_task(self._watch())

    async def _run(self, call: _Call) -> None:
        again: list[Request] = []
        try:
            async for completions in self.fleet.generators[call.number].generate(list(call.pending.values())):
                self._go_on(self._deliver(call, completions), call.inbox)
        except ProcessDied as error:
            again = self._bury(call, error)
        except asyncio.CancelledError:
            if self.fleet.up[call.number]:
                raise
            again = list(call.pending.values())
        except Exception as error:
            call.inbox.put_nowait(error)
        finally:
            self._release(call, list(call.pending.values()))
            del self._calls[call]
        self._go_on(again, call.inbox)

    def _go_on(self, again: Sequence[Request], inbox: Inbox) -> None:
        """Place once more what came back unfinished, but for what was aborted meanwhile."""
        if unwanted := [request for request in again if request.key in self._unwanted]:
            inbox.put_nowait([joined(self._begun.pop(r.key, None), _unbegun(r)) for r in unwanted])
        if again := [request for request in again if request.key not in self._unwanted]:
            self._send(again, inbox)

    def _bury(self, call: _Call, error: ProcessDied) -> list[Request]:
        """What is to be drawn anew; where nobody is left to do it, the caller hears why."""
        try:
            self.fleet.lose(call.number, error)
        except ProcessDied:
            call.inbox.put_nowait(error)
            return []
        return list(call.pending.values())

    def _deliver(self, call: _Call, completions: Sequence[Completion]) -> list[Request]:
        """Hand on what has ended; returns what is to go on elsewhere."""
        ended, again, released = [], [], []
        for completion in completions:
            request = call.pending.pop(completion.key)
            released.append(request)
            whole = joined(self._begun.pop(completion.key, None), completion)
            moving = completion.key in self._moving
            self._moving.discard(completion.key)
            if completion.finish == "aborted" and moving:
                self._begun[completion.key] = whole
                again.append(continued(request, completion))
            else:
                ended.append(whole)
                self._ended += 1
                self._length += (len(whole.tokens) - self._length) / self._ended
        self._release(call, released)
        if ended:
            call.inbox.put_nowait(ended)
        return again

    def _release(self, call: _Call, requests: Sequence[Request]) -> None:
        self._counts[call.number] -= len(requests)
        # Weights drift with the mean length: an idle generator has no work, whatever was added for it.
        gone = self._weight(requests)
        self._work[call.number] = max(0.0, self._work[call.number] - gone) if self._counts[call.number] else 0.0
        self._let_in()

    def _let_in(self) -> None:
        """Tell those who wait of the room there is now."""
        while self._waiting:
            waiting = self._waiting[0]
            if self._room() < min(len(waiting.requests), self._most()):
                break
            self._waiting.popleft()
            if not waiting.room.done():
                self._promised += len(waiting.requests)
                waiting.room.set_result(True)

    def _weight(self, requests: Sequence[Request]) -> float:
        """Expected work of siblings, in response tokens; they are taken to be alike."""
        if not requests:
            return 0.0
        first = requests[0]
        return len(requests) * (1.0 + min(self._length, first.params.max_tokens) + PREFILL * len(first.tokens))

    async def _watch(self) -> None:
        """While anything runs, look for generators that are slow or gone."""
        usual: Pace | None = None
        while self._calls:
            await self._clock.sleep(WATCH_SECONDS)
            await self._end(self._moving | self._unwanted)  # an abort may have overtaken its request
            before, self._looked = self._looked, {}
            try:
                pulses = await self.fleet.each(self._pulse, among={call.number for call in self._calls})
            except ProcessDied as error:
                self.fail(error)
                return
            for call, task in list(self._calls.items()):
                if not self.fleet.up[call.number]:
                    task.cancel()
            slow, usual = slow_ones({n: (before[n], pulses[n]) for n in pulses if n in before}, usual)
            self._pace[list(pulses)] = 1.0
            self._pace[slow] = 1 / SLOW
            if self.fleet.open.sum() > 1:
                await self._move({key for call in self._calls if call.number in slow for key in call.pending})
            self._looked = {number: pulse for number, pulse in pulses.items() if self.fleet.open[number]}

    @staticmethod
    async def _pulse(number: int, generator: PlacedGenerator) -> Pulse:
        try:
            async with asyncio.timeout(PULSE_DEADLINE):
                return await generator.pulse()
        except TimeoutError:
            raise ProcessDied(f"generator {number} gave no sign of life for {PULSE_DEADLINE:g} s") from None


def slow_ones(pulses: dict[int, tuple[Pulse, Pulse]], usual: Pace | None) -> tuple[list[int], Pace | None]:
    """Those whose tokens since the last look are few against the median of all busy ones, in all and per request; and
    those medians. Where only one is busy, it is held to the medians of before, `usual`. One that read more than it
    sampled is not busy: reading is no slowness.

    Few in all alone may be a generator with a few requests left, few per request one with a large batch.
    """
    busy = {
        n: (before, after)
        for n, (before, after) in pulses.items()
        if before.running and after.running and after.read - before.read <= after.tokens - before.tokens
    }
    total = {n: after.tokens - before.tokens for n, (before, after) in busy.items()}
    each = {n: total[n] / max(before.running, after.running) for n, (before, after) in busy.items()}
    if len(busy) > 1:
        usual = Pace(statistics.median_high(total.values()), statistics.median_high(each.values()))
    if usual is None:
        return [], None
    return [n for n in busy if SLOW * total[n] < usual.total and SLOW * each[n] < usual.each], usual


def continued(request: Request, done: Completion) -> Request:
    """The rest of a request that was ended after `done`'s tokens."""
    if not len(done.tokens):
        return request
    return replace(
        request,
        tokens=np.concatenate([request.tokens, done.tokens]).astype(np.int32),
        params=replace(request.params, max_tokens=request.params.max_tokens - len(done.tokens)),
        seed=(request.seed + len(done.tokens)) & 0x7FFFFFFF,
    )


def joined(begun: Completion | None, rest: Completion) -> Completion:
    """One completion of what was drawn before and after a move."""
    if begun is None:
        return rest
    shift = len(begun.tokens)
    moved = tuple(replace(span, start=span.start + shift, stop=span.stop + shift) for span in rest.spans)
    return replace(
        rest,
        tokens=np.concatenate([begun.tokens, rest.tokens]),
        rollout_logprobs=np.concatenate([begun.rollout_logprobs, rest.rollout_logprobs]),
        spans=begun.spans + moved,
    )


def _unbegun(request: Request) -> Completion:
    return Completion(
        key=request.key,
        tokens=np.zeros(0, dtype=np.int32),
        rollout_logprobs=np.zeros(0, dtype=np.float32),
        spans=(),
        finish="aborted",
    )

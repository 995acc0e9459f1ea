"""Sends requests to engines, and sees to it that each is answered: by the first engine asked, or by another."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Collection, Sequence
from dataclasses import dataclass

from yatt.controller.admission import Admission
from yatt.controller.engine_stats import Asked
from yatt.controller.fleet import Fleet, PlacedGenerator
from yatt.controller.health import HealthCheck
from yatt.controller.load_balancer import LoadBalancer
from yatt.controller.migration import Migration, empty
from yatt.controller.talks import Talks
from yatt.errors import ProcessDied
from yatt.protocols import Clock
from yatt.types import Completion, Request, SampleKey

WATCH_SECONDS = 10.0
"""How often busy engines are looked at."""

Inbox = asyncio.Queue[list[Completion] | Exception]


@dataclass(slots=True, eq=False)
class _Call:
    """Requests at one engine that have not come back."""

    engine: int
    generator: PlacedGenerator
    pending: dict[SampleKey, Request]
    inbox: Inbox


class Router:
    """Spreads groups over the engines of one role, from one controller.

    Admission says when a group may go, the load balancer to which engine, and migration what becomes of requests that
    an engine gives back unfinished. What a dead engine had not answered is drawn anew elsewhere, or waits where none is
    left until one has come back; what a slow one, or one that sleeps, has begun is ended there and goes on elsewhere.
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
        self.asked = Asked()
        self.talks = Talks(controllers)
        self._longest = 0  # tokens of the longest response since the director last asked
        self._clock = clock
        self._admission = Admission(fleet, limit=limit, timeout=timeout)
        self._balancer = LoadBalancer(fleet, index=index, controllers=controllers)
        self._migration = Migration()
        self._health = HealthCheck(fleet)
        self._calls: dict[_Call, asyncio.Task[None]] = {}
        self._stranded: list[tuple[Sequence[Request], Inbox]] = []  # no engine is left to send them to
        self._watching: asyncio.Task[None] | None = None

    async def generate(self, requests: Sequence[Request]) -> AsyncGenerator[list[Completion], None]:
        """Completions of one group, in the order they end. Left early, it ends what is still running."""
        inbox: Inbox = asyncio.Queue()
        asked, first = self.asked, requests[0]
        fresh = len(first.tokens) - self.talks.known(first.key, len(first.tokens))
        self.asked = Asked(asked.requests + len(requests), asked.prompt_tokens + fresh)
        left = len(requests)
        try:
            if not await self._admission.admit(requests):
                yield [empty(request) for request in requests]
                return
            self._send(requests, inbox)
            while left:
                ended = await inbox.get()
                if isinstance(ended, Exception):
                    raise ended
                left -= len(ended)
                self._longest = max(self._longest, *(len(completion.tokens) for completion in ended))
                yield ended
        finally:
            for call in [call for call in self._calls if call.inbox is inbox]:
                self._calls[call].cancel()
            self._stranded = [(left_over, whose) for left_over, whose in self._stranded if whose is not inbox]
            self._migration.forget([request.key for request in requests])

    async def abort(self, keys: Collection[SampleKey]) -> None:
        """End these requests: each comes back at once with the tokens so far, if any."""
        self._migration.abort(keys)
        self._admission.abort(keys)
        self._send_stranded()  # those that are ended come back
        await self._end(keys)

    async def follow(self) -> None:
        """Others are awake than before, or an engine has come back: what lies at engines that sleep now goes on at
        those that are awake, and what came last to the fullest is shared with the new. Where none is awake, all stays
        where it is and waits."""
        self._health.forget()
        self._balancer.order_ties()
        self._end_calls_of_the_dead()
        self._send_stranded()
        for call in list(self._calls):
            if not self.fleet.open[call.engine]:
                await self._move(call.pending)
        overfull, share = self._balancer.overfull(self._admission.running)
        for engine in overfull:
            here = [key for call in self._calls if call.engine == engine for key in call.pending]
            await self._move(here[share:])
        self._admission.let_in()

    def take_longest(self) -> int:
        """Tokens of the longest response since the last call."""
        longest, self._longest = self._longest, 0
        return longest

    def fail(self, error: Exception) -> None:
        """Everyone who waits for a response hears of this error instead."""
        for call in self._calls:
            call.inbox.put_nowait(error)
        for _, inbox in self._stranded:
            inbox.put_nowait(error)
        self._admission.fail(error)

    async def _move(self, keys: Collection[SampleKey]) -> None:
        """End these requests where they are: they go on elsewhere."""
        keys = set(keys)
        self._migration.move(keys)
        await self._end(keys)

    async def _end(self, keys: Collection[SampleKey]) -> None:
        """Abort these requests at the engines that have them."""
        at: dict[int, list[SampleKey]] = {}
        for call in self._calls:
            if running := [key for key in call.pending if key in keys]:
                at.setdefault(call.engine, []).extend(running)
        await self.fleet.each(lambda number, generator: generator.abort(at[number]), among=at)

    def _send(self, requests: Sequence[Request], inbox: Inbox) -> None:
        """Place requests now, together where one engine has room for all. Where no engine is left, they wait for the
        first to come back, or the caller hears why none will."""
        while requests:
            if self.fleet.lost is not None:
                inbox.put_nowait(self.fleet.lost)
                return
            if not self.fleet.alive:
                self._stranded.append((requests, inbox))
                return
            engine, count = self._balancer.choose(requests, self._admission.room, self.talks.home(requests[0].key))
            self._call(engine, requests[:count], inbox)
            requests = requests[count:]

    def _call(self, engine: int, requests: Sequence[Request], inbox: Inbox) -> None:
        generator = self.fleet.generators[engine]
        call = _Call(engine, generator, {request.key: request for request in requests}, inbox)
        self._admission.sent(engine, len(requests))
        self._balancer.sent(engine, requests)
        self._calls[call] = asyncio.create_task(self._run(call))
        if self._watching is None or self._watching.done():
            self._watching = asyncio.create_task(self._watch())

    async def _run(self, call: _Call) -> None:
        unanswered: list[Request] = []
        try:
            async for completions in call.generator.generate(list(call.pending.values())):
                self._go_on(self._deliver(call, completions), call.inbox)
        except ProcessDied as error:
            self._lose(call, error)
            unanswered = list(call.pending.values())
        except asyncio.CancelledError:
            if not self._is_dead(call):
                raise
            unanswered = list(call.pending.values())
        except Exception as error:
            call.inbox.put_nowait(error)
        finally:
            self._release(call, list(call.pending.values()))
            del self._calls[call]
        self._go_on(unanswered, call.inbox)

    def _deliver(self, call: _Call, completions: Sequence[Completion]) -> list[Request]:
        """Hand on the responses that have ended; returns what is to go on elsewhere."""
        ended: list[Completion] = []
        unfinished: list[Request] = []
        released: list[Request] = []
        for completion in completions:
            request = call.pending.pop(completion.key)
            released.append(request)
            whole, rest = self._migration.came_back(request, completion)
            if rest is not None:
                unfinished.append(rest)
                continue
            ended.append(whole)
            self._admission.response_ended()
            self._balancer.response_ended(len(whole.tokens))
            row = len(request.tokens) + len(completion.tokens)
            self.talks.said(completion.key, row, len(whole.tokens), call.engine)
        self._release(call, released)
        if ended:
            call.inbox.put_nowait(ended)
        return unfinished

    def _go_on(self, unfinished: Sequence[Request], inbox: Inbox) -> None:
        """Send what came back unfinished once more, but for what was aborted meanwhile."""
        wanted, aborted = self._migration.sort_out(unfinished)
        if aborted:
            inbox.put_nowait(aborted)
        self._send(wanted, inbox)

    def _lose(self, call: _Call, error: ProcessDied) -> None:
        """The engine is dead: what it had not answered is drawn anew."""
        with contextlib.suppress(ProcessDied):  # the last one: `_send` tells the caller
            self.fleet.lose(call.engine, call.generator, error)

    def _is_dead(self, call: _Call) -> bool:
        """Whether the engine that has it is dead, though another may stand in its place."""
        return not self.fleet.up[call.engine] or self.fleet.generators[call.engine] is not call.generator

    def _end_calls_of_the_dead(self) -> None:
        """What they had is drawn anew."""
        for call, task in list(self._calls.items()):
            if self._is_dead(call):
                task.cancel()

    def _send_stranded(self) -> None:
        stranded, self._stranded = self._stranded, []
        for requests, inbox in stranded:
            self._go_on(requests, inbox)

    def _release(self, call: _Call, requests: Sequence[Request]) -> None:
        """These requests are at their engine no longer."""
        self._admission.came_back(call.engine, len(requests))
        self._balancer.came_back(call.engine, requests, idle=not self._admission.running[call.engine])

    async def _watch(self) -> None:
        """While anything runs, look for engines that are slow or gone."""
        self._health.begin()
        while self._calls:
            await self._clock.sleep(WATCH_SECONDS)
            await self._end(self._migration.ending)  # an abort may have overtaken its request
            try:
                slow = await self._health.look({call.engine for call in self._calls})
            except ProcessDied as error:
                self.fail(error)
                return
            self._end_calls_of_the_dead()
            self._balancer.slow_down(slow)
            if self.fleet.open.sum() > 1:
                await self._move([key for call in self._calls if slow.get(call.engine) for key in call.pending])

"""A generator that only spends time: continuous batching in closed form, one timer whatever the batch."""

from __future__ import annotations

import asyncio
import heapq
import math
from collections import Counter, deque
from collections.abc import AsyncGenerator, Callable, Sequence
from functools import partial

import numpy as np

from yatt.errors import BackendError, ProcessDied
from yatt.placement.plan import POLICY, Role
from yatt.reports import PhaseSpan
from yatt.simulation.costs import EngineCosts
from yatt.simulation.drawing import Answers, Drawing
from yatt.simulation.kept import KeptTurns
from yatt.simulation.mortal import Mortal
from yatt.types import Completion, Finish, Pulse, Request, SampleKey, WeightManifest

Log = Callable[..., None]
"""(actor, event, details ...): where events go."""
PROMPT = -1
"""The id of every prompt token; a sampled one's is the version that sampled it."""
HEARD = -2
"""The id of what a conversation has from its environment."""


class SimulatedGenerator(Mortal):
    """Implements `yatt.protocols.Generator` on a virtual loop.

    All running requests share a counter of decode steps, so the next end is the top of a heap, and the time of k steps
    at a constant batch is a closed form. What comes in between - arrivals, aborts, a pause - acts at the end of the
    step under way; prefill can be joined or interrupted at any moment. Siblings share their prompt's KV tokens while
    one of them runs. Where the next step would not fit, the youngest request is put back and recomputed later.

    What a request has beyond its PROMPT tokens is its own, and shared with nobody. What it has beyond its HEARD ones is
    of its own response, of before it was moved here. The tokens of a conversation's turn are kept until their room is
    needed: the next turn reads only what it has beyond them.
    """

    def __init__(
        self,
        costs: EngineCosts,
        *,
        name: str,
        slots: tuple[int, ...],
        node: str,
        length: Callable[[SampleKey], int],
        log: Log,
        role: Role = POLICY,
        asleep: bool = False,
        talks: bool = False,
    ) -> None:
        super().__init__(name)
        self.slots, self.node = slots, node
        self._span = partial(PhaseSpan, actor=name, role=role, slots=slots)
        self.spans: list[PhaseSpan] = []
        self._spell: tuple[float, dict[str, int]] | None = None  # since when it samples, and what it had done by then
        self._costs, self._length, self._log = costs, length, log
        self._drawings: dict[SampleKey, Drawing] = {}
        self._waiting: deque[Drawing] = deque()
        self._running: dict[Drawing, None] = {}  # the oldest first
        self._leaving: list[Drawing] = []  # aborted in the step under way
        self._ends: list[tuple[int, int, Drawing]] = []
        self._prefixes: Counter[int] = Counter()  # running siblings of each prompt
        self._kv = self._step = self._serial = self._served = 0
        self._talks = talks
        self._kept = KeptTurns()
        self._debt = 0.0  # seconds of prefill still to do
        self._read = 0  # tokens, those of the debt included
        # What seeing a prompt's images costs, in tokens of prefill.
        self._sight = round(costs.images / costs.prefill) if costs.prefill else 0
        self._batch = 0  # requests in the steps under way; 0 while none is
        self._begun = self._start = self._pace = 0.0
        self._steps = 0  # of those under way, up to the timer
        self._timer: asyncio.TimerHandle | None = None
        self._still: list[asyncio.Future[None]] = []
        self._going, self._asleep, self._cold = not asleep, asleep, False
        self._slowness = 1.0
        self._sampled = self._answered = self._cached = 0
        self.busy = 0.0

    async def generate(self, requests: Sequence[Request]) -> AsyncGenerator[list[Completion], None]:
        await self._check()
        answers = Answers()
        drawings = [self._drawing(request, answers) for request in requests]
        for drawing in drawings:
            self._drawings[drawing.request.key] = drawing
        self._waiting += drawings
        self._interrupt()
        left = len(drawings)
        try:
            while left:
                ended = [await answers.get()]
                while not answers.empty():
                    ended.append(answers.get_nowait())
                if self.dead is not None:
                    raise self.dead
                left -= len(ended)
                yield [completion for completion in ended if completion is not None]
        finally:
            self._end([d for d in drawings if self._drawings.get(d.request.key) is d])

    async def abort(self, keys: Sequence[SampleKey]) -> None:
        await self._check()
        self._end([self._drawings[key] for key in keys if key in self._drawings])

    async def pause(self) -> None:
        await self._check()
        self._going = False
        if self._batch:
            self._interrupt()
            still = asyncio.get_running_loop().create_future()
            self._still.append(still)
            await still
            await self._check()

    async def resume(self) -> None:
        await self._check()
        if self._asleep:
            raise BackendError(f"{self.name} is asleep and cannot resume; wake it first")
        if self._cold:
            again = self._kv + self._sight * len(self._prefixes)
            self._read += again - self._unread(self._now())  # what is read again after a sleep counts again
            self._debt, self._cold = self._costs.prefill * again, False
            self._kept.clear()
        self._going = True
        self._interrupt()

    async def load(self, manifest: WeightManifest) -> int:
        await self._check()
        if self._going or self._batch:
            raise BackendError(f"{self.name}: weights can only be loaded into a paused generator; pause it first")
        await self._spend("load", self._costs.load)
        for drawing in self._running:
            drawing.settle(self._step, self._served)
        self._served, self._cold = manifest.version, True
        self._log(self.name, "load", self._served)
        return self._served

    async def sleep(self) -> int:
        """The KV tokens freed, in place of bytes."""
        await self.pause()
        if self._asleep:
            return 0
        self._asleep = self._cold = True
        await self._spend("sleep", self._costs.sleep)
        return self._costs.kv_tokens

    async def wake(self) -> None:
        await self._check()
        if self._asleep:
            await self._spend("wake", self._costs.wake)
            self._asleep = False

    async def pulse(self) -> Pulse:
        await self._check()
        now = self._now()
        steps = self._done_by(now)
        return Pulse(
            running=len(self._drawings),
            tokens=self._sampled + self._batch * steps,
            ended=self._answered,
            read=self._read - self._unread(now),
            steps=self._step + steps,
            seconds=self.busy + (now - self._begun if self._batch else 0.0),
            cached=self._cached + self._reads(steps),
        )

    async def close(self) -> None:
        self._end(list(self._drawings.values()))
        self.closed = True

    def die(self) -> None:
        """Every open and later call raises ProcessDied."""
        if self.dead is not None:
            return
        self.dead = ProcessDied(f"{self.name} died")
        self.died.set()
        self._log(self.name, "died")
        for drawing in self._drawings.values():
            drawing.answers.put_nowait(None)
        self._drawings.clear()
        self._waiting.clear()
        self._halt()

    def hang(self) -> None:
        """Nothing is sampled and no call answered any more, until it is dead."""
        self._log(self.name, "hangs")
        self.hangs = True
        self._halt()

    def slow(self, factor: float) -> None:
        """Every step from the next on takes `factor` times its cost."""
        self._log(self.name, "slow", factor)
        self._slowness = factor
        self._interrupt()

    def _drawing(self, request: Request, answers: Answers) -> Drawing:
        size, limit = len(request.tokens), request.params.max_tokens
        if size + limit > self._costs.kv_tokens:
            raise BackendError(
                f"request {request.key}: {size} tokens and up to {limit} more do not fit a KV cache of "
                f"{self._costs.kv_tokens}; lower rollout.max_tokens"
            )
        if request.key in self._drawings:
            raise BackendError(f"request {request.key} is being drawn already on {self.name}")
        self._serial += 1
        others = np.flatnonzero(request.tokens != PROMPT)
        own = size - int(others[0]) if len(others) else 0
        begun = int(np.argmax(request.tokens[::-1] < 0))  # 0 for a probe, which has none
        target = max(1, self._length(request.key) - begun)
        finish: Finish = "stop" if target <= limit else "length"
        return Drawing(request, answers, self._serial, own, min(target, limit), finish)

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    async def _spend(self, name: str, seconds: float) -> None:
        if seconds:
            start = self._now()
            await asyncio.sleep(seconds)
            await self._check()
            self.spans.append(self._span(name=name, start=start, stop=self._now()))

    def _time(self, steps: int) -> float:
        """Seconds of `steps` steps of the batch under way."""
        costs, batch = self._costs, self._batch
        return self._pace * (steps * (costs.step + costs.per_request * batch) + costs.per_kv_token * self._reads(steps))

    def _reads(self, steps: int) -> int:
        """KV tokens read in `steps` steps of the batch under way. Step i reads those of i earlier ones as well:
        sum over i < k of (kv + i b) = k kv + b k (k - 1) / 2."""
        return steps * self._kv + self._batch * steps * (steps - 1) // 2

    def _unread(self, now: float) -> int:
        """Tokens of the prefill still to do."""
        debt = max(0.0, self._start - now) / self._pace if self._batch else self._debt
        return round(debt / self._costs.prefill) if self._costs.prefill else 0

    def _done_by(self, now: float) -> int:
        """Steps under way that have ended by `now`: the closed form of `_time` turned round."""
        spent = now - self._start
        if not self._batch or spent < 0:
            return 0
        if self._time(self._steps) <= spent:
            return self._steps
        square = self._pace * self._costs.per_kv_token * self._batch / 2
        linear = self._time(1) - square
        steps = int(
            spent / linear if square == 0 else (math.sqrt(linear**2 + 4 * square * spent) - linear) / (2 * square)
        )
        while self._time(steps + 1) <= spent:
            steps += 1
        while self._time(steps) > spent:
            steps -= 1
        return steps

    def _interrupt(self) -> None:
        """Act at the end of the step under way; at once where there is none."""
        if self.dead is not None or self.hangs:
            return
        now = self._now()
        if self._batch == 0 or now < self._start:
            self._at(now, 0)
            return
        steps = self._done_by(now)
        steps += self._start + self._time(steps) < now
        if steps < self._steps:
            self._at(max(now, self._start + self._time(steps)), steps)

    def _at(self, time: float, steps: int) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._steps = steps
        self._timer = asyncio.get_running_loop().call_at(time, self._turn)

    def _turn(self) -> None:
        """Between two steps: let go of what was aborted, answer what has ended, and go on unless paused."""
        now = self._now()
        if self._batch:
            self._debt = max(0.0, self._start - now) / self._pace
            self._step += self._steps
            self._cached += self._reads(self._steps)
            self._kv += self._batch * self._steps
            self._sampled += self._batch * self._steps
            self.busy += now - self._begun
        self._halt()
        for drawing in self._leaving:
            self._sampled -= self._step - drawing.since  # drawn after it was answered
            self._leave(drawing)
        self._leaving.clear()
        while self._ends and self._ends[0][0] <= self._step:
            end, _, drawing = heapq.heappop(self._ends)
            if drawing in self._running and drawing.end == end:
                self._leave(drawing)
                if self._talks:
                    room = self._costs.kv_tokens - self._kv
                    self._kept.keep(drawing.request.key, len(drawing.request.tokens) + drawing.done, room)
                del self._drawings[drawing.request.key]
                self._answered += drawing.request.key.uid >= 0  # a probe is no response
                self._answer(drawing)
        if self._going:
            self._go_on(now)
        if self._batch and self._spell is None:
            self._spell = (now, self._done())
        elif not self._batch and self._spell is not None:
            start, before = self._spell
            counts = {name: done - before[name] for name, done in self._done().items()}
            self.spans.append(self._span(name="sample", start=start, stop=now, counts=counts))
            self._spell = None

    def _done(self) -> dict[str, int]:
        """Its counts at the end of the last step; a prefill that is still to do is not in them."""
        read = self._read - round(self._debt / self._costs.prefill if self._costs.prefill else 0)
        return {"requests": self._answered, "tokens": self._sampled, "steps": self._step, "read": read}

    def _go_on(self, now: float) -> None:
        """Put back what does not fit, take in what waits, and sleep to the next end or until the KV cache is full."""
        self._make_room()
        self._admit()
        if self._running:
            self._batch, self._pace, self._begun = len(self._running), self._slowness, now
            self._start = now + self._debt * self._slowness
            room = (self._costs.kv_tokens - self._kv) // self._batch
            steps = max(1, min(self._ends[0][0] - self._step, room))
            self._at(self._start + self._time(steps), steps)

    def _halt(self) -> None:
        """No step is under way: who waits for a pause goes on."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._batch = None, 0
        for still in self._still:
            if not still.done():
                still.set_result(None)
        self._still.clear()

    def _make_room(self) -> None:
        while len(self._running) > 1 and self._kv + len(self._running) > self._costs.kv_tokens:
            youngest = next(reversed(self._running))
            self._leave(youngest)
            self._waiting.appendleft(youngest)
            self._log(self.name, "preempt", youngest.request.key)

    def _admit(self) -> None:
        while self._waiting and len(self._running) < self._costs.max_running:
            drawing = self._waiting[0]
            if drawing.finish == "aborted":
                self._waiting.popleft()
                continue
            uid = drawing.request.key.uid
            alone = not self._prefixes[uid]
            size = drawing.own + drawing.done + (self._shared(drawing) if alone else 0)
            if self._running and self._kv + size + len(self._running) + 1 > self._costs.kv_tokens:
                return
            self._waiting.popleft()
            self._running[drawing] = None
            self._prefixes[uid] += 1
            self._kv += size
            whole = len(drawing.request.tokens) + drawing.done
            read = self._kept.unread(drawing.request.key, size + (self._sight if alone else 0), whole)
            self._debt += self._costs.prefill * read
            self._read += read
            drawing.since, drawing.end = self._step, self._step + drawing.target - drawing.done
            heapq.heappush(self._ends, (drawing.end, drawing.serial, drawing))

    def _leave(self, drawing: Drawing) -> None:
        """Take it out of the batch, and its tokens out of the KV cache."""
        drawing.settle(self._step, self._served)
        del self._running[drawing]
        uid = drawing.request.key.uid
        self._prefixes[uid] -= 1
        self._kv -= drawing.own + drawing.done + (0 if self._prefixes[uid] else self._shared(drawing))
        if not self._prefixes[uid]:
            del self._prefixes[uid]

    @staticmethod
    def _shared(drawing: Drawing) -> int:
        return len(drawing.request.tokens) - drawing.own

    def _end(self, drawings: Sequence[Drawing]) -> None:
        """Answer them with what they have by now. Their places in the batch are free from the next step on."""
        steps = self._done_by(self._now())
        for drawing in drawings:
            del self._drawings[drawing.request.key]
            drawing.finish = "aborted"
            if drawing in self._running:
                drawing.settle(self._step + steps, self._served)
                self._leaving.append(drawing)
            self._answer(drawing)
        if self._leaving:
            self._interrupt()

    def _answer(self, drawing: Drawing) -> None:
        drawing.answers.put_nowait(drawing.completion())
        self._log(self.name, drawing.finish, drawing.request.key, drawing.done)

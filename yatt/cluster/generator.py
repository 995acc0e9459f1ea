"""A generator in a process of its own, and how controllers reach it: few calls, each full."""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any, Literal

from yatt.cluster.backends import Backends, HostedGenerator, load
from yatt.cluster.calls import wait_one
from yatt.cluster.media import address, opened
from yatt.cluster.process import Hosted, SlotProcess, settle
from yatt.cluster.wire import (
    CompletionColumns,
    RequestColumns,
    pack_completions,
    pack_requests,
    read_completions,
    read_requests,
)
from yatt.config.judges import judge_context
from yatt.config.schema import Config
from yatt.controller.recorder import Recorder
from yatt.errors import BackendError
from yatt.placement.cost import settings_of
from yatt.reports import PhaseSpan
from yatt.types import Completion, Pulse, Request, SampleKey, WeightManifest

LINGER = 0.02
"""Seconds an answer waits for more completions while some are to come: the batch that a decode step ends travels as
one call."""
POLL = 30.0
"""Seconds an empty answer is held back."""

Command = Literal["abort", "pause", "resume", "load", "sleep", "wake", "pulse"]
RECORDED: tuple[Command, ...] = ("load", "sleep", "wake")
PAUSES: dict[Command, bool] = {"pause": True, "sleep": True, "resume": False}


class Sampling:
    """Records when an engine samples: from its first request until it is idle or paused, with the requests that ended
    in that time and their tokens, the decode steps, and the prompt tokens read. An engine comes up paused. Each call
    brings what the engine has done since it started."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._paused = True
        self._running = self._requests = self._tokens = 0
        self._since: tuple[float, Pulse] | None = None

    @property
    def going(self) -> bool:
        """Whether it samples."""
        return self._since is not None

    def begin(self, requests: int, now: Pulse) -> None:
        self._running += requests
        self._look(now)

    def end(self, requests: int, tokens: int, now: Pulse) -> None:
        self._running -= requests
        self._requests += requests
        self._tokens += tokens
        self._look(now)

    def pause(self, paused: bool, now: Pulse) -> None:
        self._paused = paused
        self._look(now)

    def _look(self, now: Pulse) -> None:
        samples = self._running > 0 and not self._paused
        if samples and self._since is None:
            self._since = (self._recorder.clock.now(), now)
        elif not samples and self._since is not None:
            start, before = self._since
            counts = {"requests": self._requests, "tokens": self._tokens}
            counts |= {"steps": now.steps - before.steps, "read": now.read - before.read}
            self._recorder.add("sample", start, counts)
            self._requests, self._tokens, self._since = 0, 0, None


class GeneratorActor(Hosted):
    """Hosts one engine. A client (a controller) submits requests under stream numbers and drains what has ended; where
    it drains nothing yet, one call does both."""

    def __init__(self, process: SlotProcess, config: Config, model: str, backends: Backends) -> None:
        settle(process)
        self._recorder = process.recorder()
        self._sampling = Sampling(self._recorder)
        rollout, length, backend = config.rollout, config.model.context_length, backends.generator
        if (judge := config.reward.models.get(process.role)) is not None:
            own = {"engine": judge.engine or rollout.engine, "engine_args": judge.engine_args, "sleep": True}
            rollout = rollout.model_copy(update=own)
            length = judge_context(process.role, judge)
            backend = backends.classifier if judge.kind == "classifier" else backends.generator
        self._generator: HostedGenerator = load(backend)(
            model=model,
            config=rollout,
            context_length=length,
            dtype=config.model.dtype,
            device=process.device,
            seed=config.run.seed,
            setting=settings_of(process.role),
        )
        self._mail: dict[str, asyncio.Queue[tuple[int, list[Completion] | str]]] = {}
        self._tasks: defaultdict[str, dict[int, asyncio.Task[None]]] = defaultdict(dict)

    async def start(self, asleep: bool) -> None:
        """Load the engine. It comes up paused, or asleep where its slots serve others too."""
        async with self._recorder.phase("start"):
            await self._generator.start()
            await (self._generator.sleep() if asleep else self._generator.pause())
        gc.freeze()  # what a process holds for good need not be looked through for garbage

    async def progress(self) -> tuple[int, ...] | None:
        if not self._sampling.going:
            return None
        now = await self._generator.pulse()
        return (now.steps, now.tokens, now.read)

    async def submit(self, client: str, requests: RequestColumns, *images: Any) -> None:
        """Begin generating; each stream is one `generate` call. Its images are let go when it ends."""
        for stream, part in read_requests(requests, opened(images)):
            task = self._tasks[client][stream] = asyncio.create_task(self._run(client, stream, part))
            task.add_done_callback(partial(self._ended, client, stream))

    def _ended(self, client: str, stream: int, task: asyncio.Task[None]) -> None:
        del self._tasks[client][stream]

    async def _run(self, client: str, stream: int, requests: Sequence[Request]) -> None:
        box, left = self._box(client), len(requests)
        self._sampling.begin(left, await self._generator.pulse())
        try:
            async for completions in self._generator.generate(requests):
                left -= len(completions)
                tokens = sum(len(c.tokens) for c in completions)
                self._sampling.end(len(completions), tokens, await self._generator.pulse())
                box.put_nowait((stream, completions))
        except Exception as error:
            logging.getLogger(__name__).exception("generate failed")
            box.put_nowait((stream, f"{type(error).__name__}: {error}"))
        finally:
            self._sampling.end(left, 0, await self._generator.pulse())

    async def forsake(self, client: str, stream: int) -> None:
        """End a stream nobody reads any more: its requests sample no further token."""
        if task := self._tasks[client].get(stream):
            task.cancel()

    async def forget(self, asleep: bool) -> None:
        """Let go of all requests and of all answers, for whoever asked, and be as after `start`."""
        tasks = [task for streams in self._tasks.values() for task in streams.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._mail.clear()
        await self.call("sleep" if asleep else "pause")

    async def drain(self, client: str, requests: RequestColumns | None = None, *images: Any) -> CompletionColumns:
        """Begin these requests, if any; what has ended for this client since the last call. Waits up to POLL seconds
        for something."""
        if requests is not None:
            await self.submit(client, requests, *images)
        box = self._box(client)
        try:
            first = await asyncio.wait_for(box.get(), POLL)
        except TimeoutError:
            return pack_completions([])
        await asyncio.sleep(0)  # a stream that has ended is gone after this
        if self._tasks[client]:
            await asyncio.sleep(LINGER)
        return pack_completions([first, *(box.get_nowait() for _ in range(box.qsize()))])

    def _box(self, client: str) -> asyncio.Queue[tuple[int, list[Completion] | str]]:
        return self._mail.setdefault(client, asyncio.Queue())

    async def call(self, method: Command, *arguments: Any) -> Any:
        """Call a method that takes no requests."""
        if method in PAUSES:
            self._sampling.pause(PAUSES[method], await self._generator.pulse())
        if method == "abort":
            await asyncio.sleep(0)  # what was submitted before reaches the engine first
        work = getattr(self._generator, method)(*arguments)
        if method not in RECORDED:
            return await work
        async with self._recorder.phase(method):
            return await work

    async def take_spans(self) -> tuple[PhaseSpan, ...]:
        """The engine's spans since the last call."""
        return self._recorder.take()

    async def close(self) -> None:
        await self._generator.close()


class RemoteGenerator:
    """`Generator` over the wire, for one controller. Calls made in one turn of the event loop travel together."""

    def __init__(
        self, actor: Any, *, name: str, client: str, slots: tuple[int, ...], node: str, timeout: float
    ) -> None:
        self.name = name
        self.slots = slots
        self.node = node
        self._actor = actor
        self._client = client
        self._timeout = timeout
        self._numbers = itertools.count()
        self._streams: dict[int, asyncio.Queue[list[Completion] | BaseException]] = {}
        self._out: dict[int, int] = {}  # requests of each stream that the actor has not answered
        self._outbox: list[tuple[int, Sequence[Request]]] = []
        self._pump: asyncio.Task[None] | None = None

    async def generate(self, requests: Sequence[Request]) -> AsyncIterator[list[Completion]]:
        stream = next(self._numbers)
        queue = self._streams[stream] = asyncio.Queue()
        if not self._outbox:
            asyncio.get_running_loop().call_soon(self._flush)
        self._outbox.append((stream, requests))
        left = len(requests)
        try:
            while left:
                async with asyncio.timeout(self._timeout):
                    completions = await queue.get()
                if isinstance(completions, BaseException):
                    raise completions
                left -= len(completions)
                yield completions
        except TimeoutError:
            raise BackendError(f"{self.name} ended none of {left} requests in {self._timeout:g} s") from None
        finally:
            del self._streams[stream]
            if left:
                self._forsake(stream)

    def _forsake(self, stream: int) -> None:
        """Take the requests of a stream that nobody reads any more back, or end them in the actor."""
        waiting = [entry for entry in self._outbox if entry[0] != stream]
        if len(waiting) < len(self._outbox):
            self._outbox = waiting
        elif self._out.pop(stream, 0):
            self._actor.forsake.remote(self._client, stream)

    def _flush(self) -> None:
        streams, self._outbox = self._outbox, []
        if not streams:
            return
        self._out |= {stream: len(requests) for stream, requests in streams if requests}
        if not self._out:
            return
        columns, handles = pack_requests(streams)
        images = address(handles)
        if self._pump is None or self._pump.done():
            self._pump = asyncio.create_task(self._drain(self._actor.drain.remote(self._client, columns, *images)))
        else:
            self._actor.submit.remote(self._client, columns, *images)

    async def _drain(self, call: Any) -> None:
        """Carry completions home, from this call of `drain` on, while any are to come; a failure ends all streams."""
        try:
            while True:
                for stream, ended in read_completions(await wait_one("drain", self.name, call, self._timeout)):
                    self._deliver(stream, ended)
                if not self._out:
                    return
                call = self._actor.drain.remote(self._client)
        except Exception as error:
            self._out.clear()
            for queue in self._streams.values():
                queue.put_nowait(error)

    def _deliver(self, stream: int, ended: list[Completion] | str) -> None:
        if stream not in self._out:
            return
        self._out[stream] -= self._out[stream] if isinstance(ended, str) else len(ended)
        if not self._out[stream]:
            del self._out[stream]
        self._streams[stream].put_nowait(BackendError(f"{self.name}: {ended}") if isinstance(ended, str) else ended)

    async def _call(self, method: Command, *arguments: Any) -> Any:
        return await wait_one(method, self.name, self._actor.call.remote(method, *arguments), self._timeout)

    async def abort(self, keys: Sequence[SampleKey]) -> None:
        self._flush()  # an abort must not overtake what it is to end
        await self._call("abort", keys)

    async def pause(self) -> None:
        await self._call("pause")

    async def resume(self) -> None:
        await self._call("resume")

    async def load(self, manifest: WeightManifest) -> int:
        version: int = await self._call("load", manifest)
        return version

    async def sleep(self) -> int:
        freed: int = await self._call("sleep")
        return freed

    async def wake(self) -> None:
        await self._call("wake")

    async def pulse(self) -> Pulse:
        pulse: Pulse = await self._call("pulse")
        return pulse

    async def close(self) -> None:
        await wait_one("close", self.name, self._actor.close.remote(), self._timeout)

"""A generator in a process of its own, and how controllers reach it: few calls, each full."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Sequence
from typing import Any, Literal

from yatt.cluster.backends import load
from yatt.cluster.calls import wait_one
from yatt.cluster.process import SlotProcess, settle
from yatt.cluster.wire import (
    CompletionColumns,
    RequestColumns,
    pack_completions,
    pack_requests,
    read_completions,
    read_requests,
)
from yatt.config.schema import Config
from yatt.errors import BackendError
from yatt.types import Completion, Pulse, Request, SampleKey, WeightManifest

LINGER = 0.02
"""Seconds a full answer waits for more completions: the batch that a decode step ends travels as one call."""
POLL = 30.0
"""Seconds an empty answer is held back."""

Command = Literal["abort", "pause", "resume", "load", "sleep", "wake", "version", "pulse"]


class GeneratorActor:
    """Hosts one engine. A client (a controller) submits requests under a stream number and drains what has ended."""

    def __init__(self, process: SlotProcess, config: Config, model: str, backend: str) -> None:
        settle(process)
        self._generator: Any = load(backend)(
            model=model,
            config=config.rollout,
            context_length=config.model.context_length,
            dtype=config.model.dtype,
            device=process.device,
            seed=config.run.seed,
        )
        self._mail: dict[str, asyncio.Queue[tuple[int, list[Completion] | str]]] = {}
        self._tasks: dict[tuple[str, int], asyncio.Task[None]] = {}

    async def start(self) -> None:
        """Load the engine. It comes up paused."""
        await self._generator.start()
        await self._generator.pause()

    async def submit(self, client: str, requests: RequestColumns, *images: Any) -> None:
        """Begin generating; each stream is one `generate` call. Its images are let go when it ends."""
        for stream, part in read_requests(requests, images):
            task = self._tasks[client, stream] = asyncio.create_task(self._run(client, stream, part))
            task.add_done_callback(lambda _, name=(client, stream): self._tasks.pop(name))

    async def _run(self, client: str, stream: int, requests: Sequence[Request]) -> None:
        box = self._box(client)
        try:
            async for completions in self._generator.generate(requests):
                box.put_nowait((stream, completions))
        except Exception as error:
            logging.getLogger(__name__).exception("generate failed")
            box.put_nowait((stream, f"{type(error).__name__}: {error}"))

    async def forsake(self, client: str, stream: int) -> None:
        """End a stream nobody reads any more: its requests sample no further token."""
        if task := self._tasks.get((client, stream)):
            task.cancel()

    async def drain(self, client: str) -> CompletionColumns:
        """What has ended for this client since the last call; waits up to POLL seconds for something."""
        box = self._box(client)
        try:
            first = await asyncio.wait_for(box.get(), POLL)
        except TimeoutError:
            return pack_completions([])
        await asyncio.sleep(LINGER)
        return pack_completions([first, *(box.get_nowait() for _ in range(box.qsize()))])

    def _box(self, client: str) -> asyncio.Queue[tuple[int, list[Completion] | str]]:
        return self._mail.setdefault(client, asyncio.Queue())

    async def call(self, method: Command, *arguments: Any) -> Any:
        """What the engine does by itself."""
        return await getattr(self._generator, method)(*arguments)

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
                completions = await asyncio.wait_for(queue.get(), self._timeout)
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
        """Whoever asked has left: take its requests back, or end them in the actor."""
        waiting = [entry for entry in self._outbox if entry[0] != stream]
        if len(waiting) < len(self._outbox):
            self._outbox = waiting
        else:
            self._actor.forsake.remote(self._client, stream)

    def _flush(self) -> None:
        streams, self._outbox = self._outbox, []
        if not streams:
            return
        columns, images = pack_requests(streams)
        self._actor.submit.remote(self._client, columns, *images)
        if self._pump is None or self._pump.done():
            self._pump = asyncio.create_task(self._drain())

    async def _drain(self) -> None:
        """Carry completions home while any stream is open; a failure ends them all."""
        try:
            while self._streams:
                columns = await wait_one("drain", self.name, self._actor.drain.remote(self._client), self._timeout)
                for stream, ended in read_completions(columns):
                    if stream in self._streams:
                        failed = isinstance(ended, str)
                        self._streams[stream].put_nowait(BackendError(f"{self.name}: {ended}") if failed else ended)
        except Exception as error:
            for queue in self._streams.values():
                queue.put_nowait(error)

    async def _call(self, method: Command, *arguments: Any) -> Any:
        return await wait_one(method, self.name, self._actor.call.remote(method, *arguments), self._timeout)

    async def abort(self, keys: Sequence[SampleKey]) -> None:
        await self._call("abort", keys)

    async def pause(self) -> None:
        await self._call("pause")

    async def resume(self) -> None:
        await self._call("resume")

    async def load(self, manifest: WeightManifest) -> int:
        return await self._call("load", manifest)

    async def sleep(self) -> int:
        return await self._call("sleep")

    async def wake(self) -> None:
        await self._call("wake")

    async def version(self) -> int:
        return await self._call("version")

    async def pulse(self) -> Pulse:
        return await self._call("pulse")

    async def close(self) -> None:
        await wait_one("close", self.name, self._actor.close.remote(), self._timeout)

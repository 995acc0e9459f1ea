"""The data path's calls without any data: what parallel controllers that speak to every engine and every rank once a
step cost on Ray before they carry anything: the engines answered in one piece, a share for each rank from everyone,
two meetings, and new weights."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import ray

from yatt.config.schema import Config
from yatt.controller.peers import Hub

SECONDS = 600.0


class Worker:
    """The process of an engine, which answers at once, or of a rank, which answers when all controllers have called."""

    def __init__(self, controllers: int) -> None:
        self._hub = Hub(controllers, SECONDS)

    async def answer(self) -> None: ...

    async def gather(self, step: int, index: int) -> None:
        await self._hub.gather(str(step), index, None)


class Caller:
    """The process of a controller. The first hosts the meetings and, at the end of a step, speaks to everyone again:
    weights leave the ranks and reach the engines."""

    def __init__(self, index: int, controllers: int) -> None:
        self._index = index
        self._hub = Hub(controllers, SECONDS)

    def wire(self, host: Any, engines: list[Any], ranks: list[Any]) -> None:
        self._host, self._engines, self._ranks = host, engines, ranks

    async def meet(self, tag: str, index: int) -> None:
        await self._hub.gather(tag, index, None)

    async def step(self, step: int) -> None:
        await together(engine.answer.remote() for engine in self._engines)
        await self._meeting(f"lengths/{step}")
        await together(rank.gather.remote(step, self._index) for rank in self._ranks)
        if self._index == 0:
            await together(rank.answer.remote() for rank in self._ranks)
            await together(engine.answer.remote() for engine in self._engines)
        await self._meeting(f"report/{step}")

    async def _meeting(self, tag: str) -> None:
        await (self.meet(tag, 0) if self._index == 0 else self._host.meet.remote(tag, self._index))


class Calls:
    """A side of the benchmark."""

    def __init__(self, config: Config) -> None:
        count = config.cluster.controllers or 1
        worker, caller = ray.remote(Worker).options(num_cpus=0), ray.remote(Caller).options(num_cpus=0)
        engines, ranks = ([worker.remote(count) for _ in range(config.cluster.slots)] for _ in range(2))
        self._callers = [caller.remote(index, count) for index in range(count)]
        self._actors = [*engines, *ranks, *self._callers]
        self._workers = (engines, ranks)

    async def start(self) -> None:
        await together(caller.wire.remote(self._callers[0], *self._workers) for caller in self._callers)

    async def step(self, step: int) -> None:
        await together(caller.step.remote(step) for caller in self._callers)

    async def everywhere(self, function: Any) -> list[Any]:
        return await together(actor.__ray_call__.remote(function) for actor in self._actors)

    async def controllers(self, function: Any) -> list[Any]:
        return await together(caller.__ray_call__.remote(function) for caller in self._callers)

    async def close(self) -> None:
        for actor in self._actors:
            ray.kill(actor)


async def together(calls: Iterable[Any]) -> list[Any]:
    return await asyncio.gather(*calls)

"""The engines' processes on Ray: started on their slots, and anew where they die."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import ray

from yatt.cluster.calls import explain, wait_one
from yatt.cluster.controller import GeneratorHandle
from yatt.config.schema import ClusterConfig
from yatt.errors import ProcessDied, YattError
from yatt.revival import Engine

FORGETTING = 60.0
"""Seconds that an engine has to let go of what it does; then it is ended, and comes back as a dead one does."""
ENDING = 20.0
"""Seconds that a killed process has to be gone."""


class EngineHosts:
    """`yatt.revival.Hosts` on Ray. `place` starts the process of an engine on the slots of the one before; it comes up
    paused, or `asleep` where its slots serve others too, and `came_up` hears of it. `controllers`, the leader first,
    use the engines."""

    def __init__(
        self,
        config: ClusterConfig,
        place: Callable[[GeneratorHandle], GeneratorHandle],
        came_up: Callable[[str, Any], object],
    ) -> None:
        self._config = config
        self._place = place
        self._came_up = came_up
        self.asleep = False
        self.handles: dict[Engine, GeneratorHandle] = {}
        self.controllers: Mapping[str, Any] = {}

    def name(self, engine: Engine) -> str:
        return self.handles[engine].name

    async def death(self, engine: Engine) -> ProcessDied:
        handle = self.handles[engine]
        return await death_of(handle.name, handle.actor)

    async def start(self, engine: Engine) -> None:
        handle = self.handles[engine] = self._place(self.handles[engine])
        try:
            await self.load(handle)
        except BaseException:  # half a start is none, also where nobody waits for it any more
            ray.kill(handle.actor)
            raise
        self._came_up(handle.name, handle.actor)

    async def load(self, handle: GeneratorHandle) -> None:
        """Have a process load its engine."""
        call = handle.actor.start.remote(self.asleep)
        await wait_one("starting engines", handle.name, call, self._config.start_timeout)

    async def join(self, engine: Engine) -> None:
        handle = self.handles[engine]
        for name, controller in self.controllers.items():
            call = controller.join.remote(*engine, handle)
            await wait_one(f"giving {handle.name} the weights of now, and work", name, call, self._config.step_timeout)

    async def end(self, engine: Engine) -> None:
        await end_all({self.name(engine): self.handles[engine].actor})

    async def give_up(self, engine: Engine, error: ProcessDied) -> None:
        for name, controller in self.controllers.items():
            call = controller.give_up.remote(*engine, str(error))
            await wait_one(f"giving {self.name(engine)} up", name, call, self._config.step_timeout)

    async def forget_all(self) -> None:
        """Have every engine that lives forget what it was asked: who asked is gone. One that cannot is ended."""
        await asyncio.gather(*(self._forget(handle) for handle in self.handles.values()))

    async def _forget(self, handle: GeneratorHandle) -> None:
        try:
            await wait_one("forgetting", handle.name, handle.actor.forget.remote(self.asleep), FORGETTING)
        except YattError:
            ray.kill(handle.actor)


async def death_of(name: str, actor: Any) -> ProcessDied:
    """Waits until an actor is gone; why."""
    try:
        await actor.lasts.remote()
    except Exception as error:
        died = explain(name, "", error)
        return died if isinstance(died, ProcessDied) else ProcessDied(str(died))
    return ProcessDied(f"{name} has ended")


async def end_all(actors: Mapping[str, Any]) -> None:
    """Kill these processes; returns once they are gone, or after ENDING seconds."""
    for actor in actors.values():
        ray.kill(actor)
    if actors:
        gone = [asyncio.ensure_future(death_of(name, actor)) for name, actor in actors.items()]
        _, late = await asyncio.wait(gone, timeout=ENDING)
        for wait in late:
            wait.cancel()

"""Engines come back: one that dies is started anew on its slots while the run goes on. The same for every runtime."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Literal, Protocol

from yatt.errors import ProcessDied
from yatt.placement.plan import Role
from yatt.protocols import Clock
from yatt.reports import Incident

Engine = tuple[Role, int]
"""A role, and the number of one of its engines."""
ATTEMPTS = 4
"""Deaths and failed starts of an engine, without a step done in between, after which its slot is given up."""
BACK_OFF = 2.0
"""Seconds before the second attempt; each later one waits three times as long as the one before."""


class Hosts(Protocol):
    """The processes of the engines, in the hands of the runtime."""

    def name(self, engine: Engine) -> str: ...

    async def death(self, engine: Engine) -> ProcessDied:
        """Waits until it is dead; why."""
        ...

    async def start(self, engine: Engine) -> None:
        """Start a process in place of the dead one: it comes up paused or asleep, and nobody knows of it yet. Raises
        YattError where it does not come up."""
        ...

    async def join(self, engine: Engine) -> None:
        """Have the controllers give it the weights of now, and work. Raises YattError where that cannot be."""
        ...

    async def end(self, engine: Engine) -> None:
        """End its process, if there is one."""
        ...

    async def give_up(self, engine: Engine, error: ProcessDied) -> None:
        """Tell the controllers that it does not come back."""
        ...


class Revival:
    """Watches over engines, one task each. `tell` hears what happened to them."""

    def __init__(self, hosts: Hosts, clock: Clock, tell: Callable[[Incident], object]) -> None:
        self._hosts = hosts
        self._clock = clock
        self._tell = tell
        self._failures: dict[Engine, int] = {}  # since the last step
        self._tasks: list[asyncio.Task[None]] = []
        self.given_up: dict[Engine, ProcessDied] = {}

    def watch(self, engines: Iterable[Engine]) -> None:
        """From now on, start these anew when they die. Those that were given up before stay so."""
        self._tasks += [asyncio.create_task(self._keep(engine)) for engine in engines]

    def step_done(self) -> None:
        """The run has made progress: what failed before is forgiven."""
        self._failures.clear()

    async def close(self) -> None:
        """Watch no more; what is being started is left as it is."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []

    async def _keep(self, engine: Engine) -> None:
        name = self._hosts.name(engine)
        while engine not in self.given_up:
            error = await self._hosts.death(engine)
            since = self._clock.now()
            self._say(name, "died", f"{error}; starting it anew")
            while (last := await self._attempt(engine, error)) is not None:
                error = last
                if self._failures.get(engine, 0) >= ATTEMPTS:
                    self.given_up[engine] = error
                    self._say(name, "given up", f"given up after {ATTEMPTS} failures: {error}")
                    break
            else:
                self._say(name, "back", f"back after {self._clock.now() - since:.1f} s")
        await self._hosts.give_up(engine, self.given_up[engine])

    async def _attempt(self, engine: Engine, error: ProcessDied) -> ProcessDied | None:
        """Start it once more; why it failed, if it did."""
        failures = self._failures[engine] = self._failures.get(engine, 0) + 1
        if failures > ATTEMPTS:
            return error
        if failures > 1:
            await self._clock.sleep(BACK_OFF * 3 ** (failures - 2))
        try:
            await self._hosts.start(engine)
            await self._hosts.join(engine)
        except Exception as again:  # whatever it is: else nobody would wait for this engine any more
            await self._hosts.end(engine)
            return again if isinstance(again, ProcessDied) else ProcessDied(str(again) or type(again).__name__)
        return None

    def _say(self, name: str, kind: Literal["died", "back", "given up"], text: str) -> None:
        self._tell(Incident(at=self._clock.now(), process=name, kind=kind, text=text))

"""A run goes on after a death: engines come back one by one while the step goes on; for a rank or a controller, all
ranks and controllers are started anew, and the run goes back to its last checkpoint. The same for every runtime."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal, Protocol

from yatt.errors import BackendError, ProcessDied, WaitTimeout
from yatt.protocols import Clock
from yatt.reports import Incident
from yatt.revival import BACK_OFF, Engine, Hosts, Revival


class Builder(Protocol):
    """Ranks and controllers, in the hands of the runtime."""

    def revivable(self) -> Iterable[Engine]:
        """The engines that come back when they die."""
        ...

    async def tear_down(self) -> None:
        """End ranks and controllers, however they are. Engines are left as they are."""
        ...

    async def build(self) -> None:
        """Start ranks and controllers, on the engines that live: those forget what they were asked before. Raises
        BackendError or WaitTimeout where one does not come up."""
        ...

    async def go_back(self) -> int:
        """Have all load the last good checkpoint; its step, 0 for the start of the run. Raises as `build`."""
        ...


class Recovery:
    """Counts deaths of ranks and controllers: after `most` in a row, without a step done that had not been done before,
    the run ends. `tell` hears what happened."""

    def __init__(
        self, builder: Builder, hosts: Hosts, clock: Clock, tell: Callable[[Incident], object], *, most: int
    ) -> None:
        self._builder = builder
        self._clock = clock
        self._tell = tell
        self._most = most
        self._failures = 0
        self._furthest = 0
        self._watches = False
        self.revival = Revival(hosts, clock, tell)

    def watch(self) -> None:
        """From now on, start engines anew when they die."""
        if not self._watches:
            self._watches = True
            self.revival.watch(self._builder.revivable())

    def step_done(self, step: int) -> None:
        """Where the run is further than ever, what failed before is forgiven."""
        self.revival.step_done()
        if step > self._furthest:
            self._furthest, self._failures = step, 0

    async def recover(self, error: ProcessDied) -> int:
        """Go back to the last checkpoint after this death; returns its step. What dies on the way there is started anew
        too. Raises the last death where they are too many."""
        since = self._clock.now()
        while True:
            self._failures += 1
            if self._failures > self._most:
                raise error
            self._say("died", f"{error}; starting ranks and controllers anew ({self._failures} of {self._most})")
            await self.close()
            if self._failures > 1:
                await self._clock.sleep(BACK_OFF * 3 ** (self._failures - 2))
            try:
                await self._builder.tear_down()
                await self._builder.build()
                step = await self._builder.go_back()
            except (BackendError, WaitTimeout) as again:
                error = again if isinstance(again, ProcessDied) else ProcessDied(str(again))
            else:
                self.watch()
                self._say("back", f"going on from the end of step {step}, after {self._clock.now() - since:.1f} s")
                return step

    async def close(self) -> None:
        """Watch no more."""
        self._watches = False
        await self.revival.close()

    def _say(self, kind: Literal["died", "back"], text: str) -> None:
        self._tell(Incident(at=self._clock.now(), process="run", kind=kind, text=text))

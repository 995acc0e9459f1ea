"""Which engines and ranks are awake on their slots, and the calls that change it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping

from yatt.controller.fleet import PlacedGenerator
from yatt.controller.router import Router
from yatt.placement.plan import Role
from yatt.protocols import Trainer

Engine = tuple[Role, int]
"""A role, and the number of one of its generators."""
Call = Callable[[int, PlacedGenerator], Awaitable[object]]


class Slots:
    """Wakes and sleeps engines and ranks. On the leader only.

    Until the first change, engines may be awake or asleep: as they came up, or as a death left them.
    """

    def __init__(self, routers: Mapping[Role, Router], trainer: Trainer) -> None:
        self._routers = routers
        self._trainer = trainer
        self._unsure = True
        self._awake = {(role, number) for role, router in routers.items() for number in range(len(router.fleet))}
        self._sampling: set[Engine] = set()
        self._ranks_awake = True

    @property
    def awake(self) -> set[Engine]:
        return self._awake

    @property
    def sampling(self) -> set[Engine]:
        return self._sampling

    async def join(self, engine: Engine, generator: PlacedGenerator) -> None:
        """Bring an engine that was started anew, paused or asleep, to where the one before it was."""
        if engine not in self._awake:
            await generator.sleep()
            return
        await generator.wake()
        if engine in self._sampling:
            await generator.resume()

    async def change(self, awake: set[Engine], *, sampling: bool, ranks: bool) -> None:
        """Have these engines awake, sampling or paused, and the ranks awake or asleep. Sleeps first, so that their
        memory is free for the wakes."""
        await self._each(self._awake - awake, lambda _, generator: generator.sleep())
        self._sampling &= awake
        if not sampling:  # after a death, engines sample that nothing is known of here
            await self._each(awake, lambda _, generator: generator.pause())
        if ranks != self._ranks_awake:
            await (self._trainer.onload() if ranks else self._trainer.offload())
        await self._each(awake if self._unsure else awake - self._awake, lambda _, generator: generator.wake())
        if sampling:
            await self._each(awake - self._sampling, lambda _, generator: generator.resume())
        self._unsure = False
        self._awake, self._sampling, self._ranks_awake = awake, awake if sampling else set(), ranks

    async def pause(self) -> None:
        """Those that sample do not, until `resume`."""
        await self._each(self._sampling, lambda _, generator: generator.pause())

    async def resume(self) -> None:
        await self._each(self._sampling, lambda _, generator: generator.resume())

    async def _each(self, engines: Collection[Engine], call: Call) -> None:
        """Call these engines at once."""
        numbers: dict[Role, set[int]] = {}
        for role, number in engines:
            numbers.setdefault(role, set()).add(number)
        await asyncio.gather(
            *(router.fleet.each(call, among=numbers[role]) for role, router in self._routers.items() if role in numbers)
        )

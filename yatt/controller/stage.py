"""Moves slots from phase to phase, and from role to role within a rollout; brings new weights to the engines."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from yatt.controller.director import Director
from yatt.controller.fleet import Fleet, PlacedGenerator
from yatt.controller.recorder import Recorder
from yatt.controller.router import Router
from yatt.errors import BackendError
from yatt.placement.plan import Phase, Role
from yatt.protocols import EVERY_NODE, Peers, Trainer
from yatt.reports import MOVE, Decision
from yatt.types import WeightManifest

Engine = tuple[Role, int]
"""A role, and the number of one of its generators."""
Call = Callable[[int, PlacedGenerator], Awaitable[Any]]


class Stage:
    """The leader wakes and sleeps; what it announces, everyone's routers follow. Nobody waits for anybody: what is
    asked of a sleeping engine or rank waits there.

    Engines sample in phase "rollout" only. With `resident`, engines and ranks do not take turns on their slots; where
    they share none, a rollout may go on while the ranks train, and with `continuous` a phase "train" changes nothing.
    """

    def __init__(
        self,
        *,
        routers: Mapping[Role, Router],
        director: Director,
        trainer: Trainer,
        peers: Peers,
        recorder: Recorder,
        resident: bool,
        continuous: bool = False,
    ) -> None:
        self._routers = routers
        self._director = director
        self._trainer = trainer
        self._peers = peers
        self._recorder = recorder
        self._resident = resident
        self._continuous = continuous
        self._leads = peers.index == 0
        self._phase: Phase | None = None
        self._awake = {(role, n) for role, router in routers.items() for n in range(len(router.fleet))}
        # Engines come up asleep where several share a slot, or are left as a death found them.
        self._unsure = self.judges
        self._sampling: set[Engine] = set()
        self._ranks_awake = True
        self._heard = 0
        self._changing = asyncio.Lock()
        self._watching: list[asyncio.Task[None]] = []

    @property
    def judges(self) -> bool:
        """Whether engines of this run judge."""
        return len(self._routers) > 1

    async def enter(self, phase: Phase, responses: float = 0.0) -> None:
        """On the leader, returns once every slot is as `phase` wants it; on the others at once. The leader must not
        enter before all have done with the phase before. `responses` are expected in a rollout, over everyone."""
        again = self._continuous and phase == self._phase == "rollout"
        goes_on = self._continuous and phase == "train" and self._phase == "rollout"
        if goes_on or (phase == self._phase and not again):
            return
        self._phase = phase
        if phase == "train":
            self._director.stop()
            await self._stop_watching()
        if self._leads:
            async with self._changing:
                holders = await self._director.start(responses) if phase == "rollout" else self._director.holders
                await self._place(holders)
        if phase == "rollout" and self.judges and not again:
            duties = [self._follow, self._lead] if self._leads and self._director.moves else [self._follow]
            self._watching = [asyncio.create_task(self._guarded(duty)) for duty in duties]

    @contextlib.asynccontextmanager
    async def still(self) -> AsyncIterator[None]:
        """The engines that sample do not, meanwhile, and nothing changes hands: for new weights to come in."""
        async with self._changing:
            sampling = self._sampling if self._leads else set()
            await self._each(sampling, lambda _, g: g.pause())
            yield
            await self._each(sampling, lambda _, g: g.resume())

    def decisions(self, longest: int) -> tuple[Decision, ...]:
        """What the leader has decided since the last call; it learns how long the longest response was."""
        self._director.learn(longest)
        return self._director.take()

    async def close(self) -> None:
        await self._stop_watching()

    async def _guarded(self, duty: Callable[[], Awaitable[None]]) -> None:
        try:
            await duty()
        except Exception as error:  # who waits for a response is to hear of it
            for router in self._routers.values():
                router.fail(error)

    async def _stop_watching(self) -> None:
        async with self._changing:  # never in the middle of a change
            for task in self._watching:
                task.cancel()
        await asyncio.gather(*self._watching, return_exceptions=True)
        self._watching = []

    async def _lead(self) -> None:
        while True:
            await self._director.rest()
            async with self._changing:
                if (holders := await self._director.look()) is not None:
                    start = self._recorder.clock.now()
                    async with self._recorder.phase(MOVE):
                        await self._place(holders)
                    self._director.switched(self._recorder.clock.now() - start)

    async def _follow(self) -> None:
        while True:
            number, holders = await self._peers.hear(self._heard)
            if number != self._heard:
                self._heard = number
                await self._route(holders)

    async def _route(self, holders: Sequence[Role]) -> None:
        held = self._held(holders)
        for role, router in self._routers.items():
            router.fleet.awake = np.array([(role, n) in held for n in range(len(router.fleet))], dtype=bool)
        await asyncio.gather(*(router.follow() for router in self._routers.values()))

    def _held(self, holders: Sequence[Role]) -> set[Engine]:
        """The engines of the roles that hold their slots."""
        at = self._director.layout.awake(holders)
        return {
            (role, n)
            for role, router in self._routers.items()
            for n, generator in enumerate(router.fleet.generators)
            if role in at[generator.slots[0]]
        }

    async def _place(self, holders: Sequence[Role]) -> None:
        """Leader only: wake and sleep what differs; sleeps first, so that their memory is free for the wakes."""
        rollout, held = self._phase == "rollout", self._held(holders) if holders else self._awake
        if rollout and self.judges:
            self._peers.announce(tuple(holders))
        awake = held if rollout or self._resident else set()
        ranks = self._resident or not rollout
        await self._each(self._awake - awake, lambda _, g: g.sleep())
        self._sampling &= awake
        if not rollout:  # after a death, engines sample that this stage knows nothing of
            await self._each(awake, lambda _, g: g.pause())
        if ranks != self._ranks_awake:
            await (self._trainer.onload() if ranks else self._trainer.offload())
        await self._each(awake if self._unsure else awake - self._awake, lambda _, g: g.wake())
        if rollout:
            await self._each(awake - self._sampling, lambda _, g: g.resume())
        self._unsure = False
        self._awake, self._sampling, self._ranks_awake = awake, awake if rollout else set(), ranks

    async def _each(self, engines: Collection[Engine], call: Call) -> None:
        """Call these engines at once."""
        numbers = {role: {n for r, n in engines if r == role} for role in self._routers}
        await asyncio.gather(
            *(self._routers[role].fleet.each(call, among=among) for role, among in numbers.items() if among)
        )


class Publisher:
    """Version + 1 reaches every engine of the policy, whole, before the next step can draw from it."""

    def __init__(self, fleet: Fleet, trainer: Trainer, peers: Peers) -> None:
        self._fleet = fleet
        self._trainer = trainer
        self._peers = peers

    async def publish(self, version: int) -> None:
        """The leader's work; the others need not wait, since engines stay paused until it is done. Raises BackendError
        where an engine ends up with another version."""
        if self._peers.index or not len(self._fleet):
            return
        manifests = await self._trainer.export(version)
        served = await self._fleet.each(lambda _, g: g.load(self._manifest(g, manifests)))
        if stale := [self._fleet.generators[n].slots for n, v in served.items() if v != version]:
            raise BackendError(f"weights of version {version} did not reach the generators on slots {stale}")

    @staticmethod
    def _manifest(generator: PlacedGenerator, manifests: Mapping[str, WeightManifest]) -> WeightManifest:
        manifest = manifests.get(generator.node) or manifests.get(EVERY_NODE)
        if manifest is None:
            raise BackendError(
                f"node {generator.node} has a generator but no rank to write its weights; set weights.transport=disk"
            )
        return manifest

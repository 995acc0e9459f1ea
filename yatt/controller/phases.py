"""Takes the slots from phase to phase, and within a rollout from role to role."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence

import numpy as np

from yatt.controller.director import Director
from yatt.controller.fleet import PlacedGenerator
from yatt.controller.recorder import Recorder
from yatt.controller.router import Router
from yatt.controller.slots import Engine, Slots
from yatt.controller.weight_sync import WeightSync
from yatt.errors import ProcessDied
from yatt.placement.plan import POLICY, Phase, Role
from yatt.protocols import Peers, Trainer
from yatt.reports import MOVE, Decision


class Phases:
    """Engines sample in phase "rollout", ranks train in phase "train". The leader wakes and sleeps them, and announces
    which role holds which block; the routers of all controllers follow. Nobody waits for anybody: what is asked of a
    sleeping engine or rank waits there.

    With `resident`, engines and ranks do not take turns on their slots; where they share none, a rollout may go on
    while the ranks train, and with `continuous` a phase "train" changes nothing.
    """

    def __init__(
        self,
        *,
        routers: Mapping[Role, Router],
        director: Director,
        trainer: Trainer,
        weight_sync: WeightSync,
        peers: Peers,
        recorder: Recorder,
        resident: bool,
        continuous: bool = False,
    ) -> None:
        self._routers = routers
        self._weight_sync = weight_sync
        self._director = director
        self._peers = peers
        self._recorder = recorder
        self._resident = resident
        self._continuous = continuous
        self._leads = peers.index == 0
        self._phase: Phase | None = None
        self._slots = Slots(routers, trainer)
        self._heard = 0  # number of the last announcement
        self._changing = asyncio.Lock()
        self._in_rollout = asyncio.Event()
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
            self._in_rollout.clear()
            self._director.stop()
            await self._stop_watching()
        if self._leads:
            async with self._changing:
                if phase == "rollout":
                    await self._weight_sync.begin()
                holders = await self._director.start(responses) if phase == "rollout" else self._director.holders
                await self._place(holders)
        if phase == "rollout":
            self._in_rollout.set()
        if phase == "rollout" and self.judges and not again:
            duties = [self._follow, self._lead] if self._leads and self._director.moves else [self._follow]
            self._watching = [asyncio.create_task(self._guarded(duty)) for duty in duties]

    @contextlib.asynccontextmanager
    async def still(self) -> AsyncIterator[None]:
        """The engines that sample do not, meanwhile, and nothing changes hands: for new weights to come in."""
        async with self._changing:
            if self._leads:
                await self._slots.pause()
            yield
            if self._leads:
                await self._slots.resume()

    async def join(self, role: Role, number: int, generator: PlacedGenerator) -> None:
        """An engine that was started anew, paused or asleep, takes the place of one that died. On the leader, returns
        once it has the others' weights and does what the one before it did; the others are told after that. Waits for
        a rollout: in between, its slot may be the ranks'. Raises BackendError where an engine of the policy is not what
        the others are."""
        router = self._routers[role]
        if self._leads:
            while router.fleet.generators[number] is not generator:
                await self._in_rollout.wait()
                async with self._changing:
                    if self._in_rollout.is_set():
                        await self._take_in(role, number, generator)
                        router.fleet.join(number, generator)
        else:
            router.fleet.join(number, generator)
        await router.follow()

    async def _take_in(self, role: Role, number: int, generator: PlacedGenerator) -> None:
        if role == POLICY:
            await self._weight_sync.give(generator)
        await self._slots.join((role, number), generator)
        fleet, sampling = self._routers[role].fleet, self._slots.sampling
        others = [n for n in np.flatnonzero(fleet.up).tolist() if n != number and (role, n) in sampling]
        if role == POLICY and (role, number) in sampling and others:
            await self._weight_sync.compare(generator, fleet.generators[others[0]])

    def give_up(self, role: Role, number: int, error: ProcessDied) -> None:
        """This engine died and is not started anew."""
        router = self._routers[role]
        try:
            router.fleet.give_up(number, error)
        except ProcessDied as lost:
            router.fail(lost)

    def decisions(self, longest: int) -> tuple[Decision, ...]:
        """The leader's decisions since the last call; it learns how long the longest response was."""
        self._director.learn(longest)
        return self._director.take()

    async def close(self) -> None:
        await self._stop_watching()

    async def _guarded(self, duty: Callable[[], Awaitable[None]]) -> None:
        """Do it; where it fails, all that wait for a response hear of it."""
        try:
            await duty()
        except Exception as error:
            for router in self._routers.values():
                router.fail(error)

    async def _stop_watching(self) -> None:
        async with self._changing:  # never in the middle of a change
            for task in self._watching:
                task.cancel()
        await asyncio.gather(*self._watching, return_exceptions=True)
        self._watching = []

    async def _lead(self) -> None:
        """Look every so often whether blocks are to change hands, and have them do so."""
        while True:
            await self._director.rest()
            async with self._changing:
                if (holders := await self._director.look()) is not None:
                    start = self._recorder.clock.now()
                    async with self._recorder.phase(MOVE):
                        await self._place(holders)
                    self._director.switched(self._recorder.clock.now() - start)

    async def _follow(self) -> None:
        """Hear what the leader announces, and let the routers know."""
        while True:
            number, holders = await self._peers.hear(self._heard)
            if number != self._heard:
                self._heard = number
                await self._route(holders)

    async def _route(self, holders: Sequence[Role]) -> None:
        holding = self._engines_of(holders)
        for role, router in self._routers.items():
            awake = [(role, number) in holding for number in range(len(router.fleet))]
            router.fleet.awake = np.array(awake, dtype=bool)
        await asyncio.gather(*(router.follow() for router in self._routers.values()))

    def _engines_of(self, holders: Sequence[Role]) -> set[Engine]:
        """The engines on the blocks that their roles hold."""
        awake_on = self._director.layout.awake(holders)
        holding: set[Engine] = set()
        for role, router in self._routers.items():
            for number, generator in enumerate(router.fleet.generators):
                if role in awake_on[generator.slots[0]]:
                    holding.add((role, number))
        return holding

    async def _place(self, holders: Sequence[Role]) -> None:
        """Leader only: announce who holds what, and wake and sleep what differs. Without `holders`, as in the first
        phase "train", engines are left as they are where they may be."""
        rollout = self._phase == "rollout"
        if rollout and self.judges:
            self._peers.announce(tuple(holders))
        holding = self._engines_of(holders) if holders else self._slots.awake
        awake = holding if rollout or self._resident else set()
        await self._slots.change(awake, sampling=rollout, ranks=self._resident or not rollout)
        await self._weight_sync.check([number for role, number in self._slots.sampling if role == POLICY])

"""Gathers what the roles have to do, asks the placement policy, and keeps what was decided. On the leader only."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from yatt.controller.engine_stats import EngineStats
from yatt.controller.router import Router
from yatt.controller.speed_fit import SpeedFit
from yatt.placement.forecast import FAIR, Load
from yatt.placement.plan import POLICY, Layout, Role, arrange
from yatt.placement.policy import Choice, Mode, miss
from yatt.protocols import Clock
from yatt.reports import Decision

LOOKS = 100
"""Looks in a rollout as long as the last one; in a longer one they become rarer as it lasts."""
SOONEST, LATEST = 0.1, 5.0
"""Seconds between looks, whatever the rollout takes."""
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Rollout:
    """The rollout under way, or the last one."""

    holders: tuple[Role, ...] = ()  # of each block as it began; none before the first rollout
    responses: float = 0.0  # expected of it
    foreseen: bool = False  # whether its end was forecast as it began
    start: float = 0.0
    end: float = 0.0  # of the rollout before, while it lasts

    @property
    def over(self) -> bool:
        return self.end > self.start

    def lasted(self, now: float) -> float:
        """Its seconds so far."""
        return (self.end if self.over else now) - self.start if self.holders else 0.0


class Director:
    """Decides which role holds which block. `routers` and `stats` are by role, the policy's first."""

    def __init__(
        self,
        *,
        mode: Mode,
        layout: Layout,
        routers: Mapping[Role, Router],
        stats: Mapping[Role, EngineStats],
        clock: Clock,
    ) -> None:
        self.layout = layout
        self.holders: tuple[Role, ...] = ()  # of each block, as decided last
        self._mode = mode
        self._routers = routers
        self._stats = stats
        self._clock = clock
        self._block_of = {slot: block for block, slots in enumerate(layout.blocks) for slot in slots}
        self._running: dict[Role, list[int]] = {}  # requests on each block
        self._rollout = _Rollout()
        self._lasted = 0.0  # seconds of the rollout before
        self._switching = 0.0  # seconds that blocks take to change hands
        self._missed = FAIR
        self._decisions: list[Decision] = []

    @property
    def moves(self) -> bool:
        """Whether slots may change hands within a rollout."""
        return self._mode.look is not None

    async def start(self, responses: float) -> tuple[Role, ...]:
        """The role that holds each block at the beginning of a rollout that is to give so many responses."""
        if len(self._routers) == 1:
            self.holders = self.holders or (POLICY,) * len(self.layout.blocks)
            return self.holders
        await self._look_at_engines()
        self._begin_stats()
        now, last = self._clock.now(), self._rollout
        split = self._split_of(last.holders) if last.holders else None
        self._lasted = last.lasted(now)
        if split and last.over and last.foreseen:
            missed = miss(self._whole(last.responses), split, self._lasted)
            self._learn(missed, alone=split[POLICY] == len(self.layout.blocks))
        foreseen = all(stats.lengths.mean for stats in self._stats.values())
        loads = self._whole(responses) if foreseen else None
        self._decide(self._mode.start(len(self.layout.blocks), loads, split, self._switching, self._missed))
        self._rollout = _Rollout(holders=self.holders, responses=responses, foreseen=foreseen, start=now, end=last.end)
        return self.holders

    def stop(self) -> None:
        """The rollout is over."""
        self._rollout.end = self._clock.now()

    def learn(self, longest: int) -> None:
        """The longest response of the policy in the last rollout, over all controllers."""
        if self._stats:
            self._stats[POLICY].lengths.see_longest(longest)

    def switched(self, seconds: float) -> None:
        """Blocks have changed hands, which took so long."""
        self._switching = seconds if not self._switching else 0.7 * self._switching + 0.3 * seconds

    def take(self) -> tuple[Decision, ...]:
        """The decisions since the last call."""
        decisions, self._decisions = tuple(self._decisions), []
        return decisions

    async def rest(self) -> None:
        """Wait until it is time to look."""
        lasts = max(self._lasted, self._clock.now() - self._rollout.start)
        await self._clock.sleep(min(max(lasts / LOOKS, SOONEST), LATEST))

    async def look(self) -> tuple[Role, ...] | None:
        """The role that is to hold each block from now on; None where nothing is to change."""
        assert self._mode.look is not None
        await self._look_at_engines()
        if not any(stats.speed.looks for stats in self._stats.values()):
            return None  # nobody has done anything yet
        policy = self._stats[POLICY]
        responses = max(self._rollout.responses, policy.ended + policy.requests)
        coming = {role: stats.coming(responses) for role, stats in self._stats.items()}
        before, self.holders = self.holders, self._livable(self.holders)
        split = self._split_of(self.holders)
        choice = self._mode.look(split, self._loads(coming), self._switching)
        if choice is not None and choice.split != split:
            self._decide(choice)
        elif self.holders != before:
            self._decide(Choice(split=split, seconds=0.0, why="an engine died"))
        return self.holders if self.holders != before else None

    def _begin_stats(self) -> None:
        """A rollout begins. The longest response of a judge is known from this controller's router, the policy's from
        all controllers."""
        for role, stats in self._stats.items():
            stats.begin()
            longest = self._routers[role].take_longest()
            if role != POLICY:
                stats.lengths.see_longest(longest)

    def _learn(self, missed: float, *, alone: bool) -> None:
        """The forecast of the last rollout missed by so much; `alone`, it began with all blocks at the policy."""
        divided, whole = self._missed
        self._missed = (divided, (whole + missed) / 2) if alone else ((divided + missed) / 2, whole)

    def _split_of(self, holders: Sequence[Role]) -> dict[Role, int]:
        """Blocks of each role."""
        return {role: holders.count(role) for role in self._routers}

    def _livable(self, holders: Sequence[Role]) -> tuple[Role, ...]:
        """The same shares of the blocks, none held by a role whose engines there are dead, where that can be."""
        if all(router.fleet.up.all() for router in self._routers.values()):
            return tuple(holders)
        lives = {role: self._blocks_alive(router) for role, router in self._routers.items()}
        after = list(holders)
        for block, role in enumerate(holders):
            if block in lives[role]:
                continue
            partners = [
                other
                for other, its_role in enumerate(after)
                if its_role != role and other in lives[role] and block in lives[its_role]
            ]
            able = [other_role for other_role in lives if block in lives[other_role]]
            if partners:
                after[block], after[partners[0]] = after[partners[0]], role
            elif able:
                after[block] = able[0]
        return tuple(after)

    def _blocks_alive(self, router: Router) -> set[int]:
        """Blocks on which a role has an engine that lives."""
        engines = zip(router.fleet.generators, router.fleet.up, strict=True)
        return {self._block_of[generator.slots[0]] for generator, up in engines if up}

    def _loads(self, coming: Mapping[Role, float]) -> dict[Role, Load]:
        """The work of each role. Where nothing has been seen of one yet, it is taken to be as fast as one that was
        seen, and to read what the policy writes."""
        seen = next((stats.speed for stats in self._stats.values() if stats.speed.looks), SpeedFit())
        loads: dict[Role, Load] = {}
        written = 0.0  # tokens of a prompt and its response
        for role, stats in self._stats.items():
            load = stats.load(max(0.0, coming[role]), written, stats.speed if stats.speed.looks else seen)
            blocks = [block for block, holder in enumerate(self.holders) if holder == role]
            loads[role] = replace(load, on_blocks=tuple(self._running[role][block] for block in blocks))
            if role == POLICY:
                written = load.prefix + load.length
        return loads

    def _whole(self, responses: float) -> dict[Role, Load]:
        """The work of each role in a rollout of so many responses."""
        return self._loads({role: responses * stats.per_response for role, stats in self._stats.items()})

    def _decide(self, choice: Choice) -> None:
        self.holders = self._livable(arrange(choice.split, self.holders or None, self._work()))
        size = len(self.layout.blocks[0])
        slots = {role: size * blocks for role, blocks in self._split_of(self.holders).items()}
        self._decisions.append(Decision(at=self._clock.now(), text=choice.why, slots=slots))
        _log.info("placement %s: %s", slots, choice.why)

    def _work(self) -> list[int]:
        """Requests of the role that holds it on each block."""
        return [self._running[role][block] for block, role in enumerate(self.holders)]

    async def _look_at_engines(self) -> None:
        for role, router in self._routers.items():
            pulses = await router.fleet.each(lambda _, generator: generator.pulse())
            self._stats[role].see(pulses, router.asked, router.talks.counts())
            running = [0] * len(self.layout.blocks)
            for number, pulse in pulses.items():
                running[self._block_of[router.fleet.generators[number].slots[0]]] += pulse.running
            self._running[role] = running

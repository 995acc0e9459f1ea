"""Gathers what the roles have to do, asks the placement policy, and keeps what was decided. On the leader only."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

from yatt.controller.gauge import Fit, Gauge
from yatt.controller.router import Router
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


class Director:
    """Who holds which block. `routers` and `gauges` are by role, the policy's first."""

    def __init__(
        self,
        *,
        mode: Mode,
        layout: Layout,
        routers: Mapping[Role, Router],
        gauges: Mapping[Role, Gauge],
        clock: Clock,
    ) -> None:
        self.layout = layout
        self.holders: tuple[Role, ...] = ()
        self._begun: tuple[Role, ...] = ()  # who held what when the last rollout began
        self._mode = mode
        self._routers = routers
        self._gauges = gauges
        self._clock = clock
        self._block_of = {slot: block for block, slots in enumerate(layout.blocks) for slot in slots}
        self._running: dict[Role, list[int]] = {}  # requests on each block
        self._responses = 0.0
        self._switch = 0.0
        self._began = self._ended = 0.0
        self._lasted = 0.0
        self._foreseen = False  # whether the last rollout began with a forecast
        self._missed = FAIR
        self._decisions: list[Decision] = []

    @property
    def moves(self) -> bool:
        """Whether slots may change hands within a rollout."""
        return self._mode.look is not None

    async def start(self, responses: float) -> tuple[Role, ...]:
        """Who holds each block at the beginning of a rollout that is to give so many responses."""
        if len(self._routers) == 1:
            self.holders = self.holders or (POLICY,) * len(self.layout.blocks)
            return self.holders
        await self._pulses()
        for role, gauge in self._gauges.items():
            gauge.begin()
            if role != POLICY:  # of the policy's everyone's longest is known
                self._longest(role, self._routers[role].longest)
            self._routers[role].longest = 0
        split = {role: self._begun.count(role) for role in self._routers} if self._begun else None
        blocks, now, over = len(self.layout.blocks), self._clock.now(), self._ended > self._began
        self._lasted = (self._ended if over else now) - self._began if split else 0.0
        if split and over and self._foreseen:
            self._learn(miss(self._whole(self._responses), split, self._lasted), alone=split[POLICY] == blocks)
        self._responses = responses
        self._foreseen = all(gauge.length for gauge in self._gauges.values())
        loads = self._whole(responses) if self._foreseen else None
        choice = self._mode.start(blocks, loads, split, self._switch, self._missed)
        self._began = now
        self._decide(choice)
        self._begun = self.holders
        return self.holders

    def stop(self) -> None:
        """The rollout is over."""
        self._ended = self._clock.now()

    def _learn(self, missed: float, *, alone: bool) -> None:
        """The forecast of the last rollout missed by so much."""
        divided, whole = self._missed
        self._missed = (divided, (whole + missed) / 2) if alone else ((divided + missed) / 2, whole)

    async def rest(self) -> None:
        """Wait until it is time to look."""
        lasts = max(self._lasted, self._clock.now() - self._began)
        await self._clock.sleep(min(max(lasts / LOOKS, SOONEST), LATEST))

    async def look(self) -> tuple[Role, ...] | None:
        """Who is to hold each block from now on; None where nothing is to change."""
        assert self._mode.look is not None
        await self._pulses()
        if not any(gauge.fit.looks for gauge in self._gauges.values()):
            return None  # nobody has done anything yet
        policy = self._gauges[POLICY]
        drawn = max(self._responses, policy.ended + policy.requests)
        coming = {r: drawn * g.per_response - g.ended - g.requests for r, g in self._gauges.items()}
        before, self.holders = self.holders, self._livable(self.holders)
        split = {role: self.holders.count(role) for role in self._routers}
        choice = self._mode.look(split, self._loads(coming), self._switch)
        if choice is not None and choice.split != split:
            self._decide(choice)
        elif self.holders != before:
            self._decide(Choice(split=split, seconds=0.0, why="an engine died"))
        return self.holders if self.holders != before else None

    def _livable(self, holders: Sequence[Role]) -> tuple[Role, ...]:
        """The same shares of the blocks, none held by a role whose engines there are dead, where that can be."""
        if all(router.fleet.up.all() for router in self._routers.values()):
            return tuple(holders)
        lives = {
            role: {
                block
                for block, slots in enumerate(self.layout.blocks)
                for n, generator in enumerate(router.fleet.generators)
                if generator.slots[0] in slots and router.fleet.up[n]
            }
            for role, router in self._routers.items()
        }
        after = list(holders)
        for block, role in enumerate(holders):
            if block in lives[role]:
                continue
            others = [b for b, r in enumerate(after) if r != role and b in lives[role] and block in lives[r]]
            able = [r for r in lives if block in lives[r]]
            if others:
                after[block], after[others[0]] = after[others[0]], role
            elif able:
                after[block] = able[0]
        return tuple(after)

    def _loads(self, coming: Mapping[Role, float]) -> dict[Role, Load]:
        """What everyone has to do. Of whom nothing has been seen yet, it is taken to be as fast as one that was seen,
        and to read what the policy writes."""
        seen = next((gauge.fit for gauge in self._gauges.values() if gauge.fit.looks), Fit())
        loads, written = dict[Role, Load](), 0.0
        for role, gauge in self._gauges.items():
            fit = gauge.fit if gauge.fit.looks else seen
            held = tuple(self._running[role][block] for block, holder in enumerate(self.holders) if holder == role)
            loads[role] = replace(gauge.load(max(0.0, coming[role]), written, fit), held=held)
            if role == POLICY:
                written = loads[role].prefix + loads[role].length
        return loads

    def _whole(self, responses: float) -> dict[Role, Load]:
        """What everyone has to do in a rollout of so many responses."""
        return self._loads({role: responses * gauge.per_response for role, gauge in self._gauges.items()})

    def learn(self, longest: int) -> None:
        """The longest response of the policy in the last rollout."""
        if self._gauges:
            self._longest(POLICY, longest)

    def _longest(self, role: Role, longest: int) -> None:
        gauge = self._gauges[role]
        gauge.longest = max(float(longest), 0.8 * gauge.longest)

    def switched(self, seconds: float) -> None:
        """Blocks have changed hands, which took so long."""
        self._switch = seconds if not self._switch else 0.7 * self._switch + 0.3 * seconds

    def take(self) -> tuple[Decision, ...]:
        """What was decided since the last call."""
        decisions, self._decisions = tuple(self._decisions), []
        return decisions

    def _decide(self, choice: Choice) -> None:
        self.holders = self._livable(arrange(choice.split, self.holders or None, self._work()))
        size = len(self.layout.blocks[0])
        slots = {role: size * self.holders.count(role) for role in self._routers}
        self._decisions.append(Decision(at=self._clock.now(), text=choice.why, slots=slots))
        _log.info("placement %s: %s", slots, choice.why)

    def _work(self) -> list[int]:
        """Requests on each block of who holds it."""
        return [self._running[role][block] for block, role in enumerate(self.holders)]

    async def _pulses(self) -> None:
        """Look at every engine."""
        for role, router in self._routers.items():
            pulses = await router.fleet.each(lambda _, generator: generator.pulse())
            self._gauges[role].see(pulses)
            self._gauges[role].asked = (router.asked, router.asked_tokens)
            self._running[role] = [0] * len(self.layout.blocks)
            for number, pulse in pulses.items():
                self._running[role][self._block_of[router.fleet.generators[number].slots[0]]] += pulse.running

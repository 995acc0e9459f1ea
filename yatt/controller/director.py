"""Measures what the roles have to do, asks the placement policy, and keeps what was decided. On the leader only."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

from yatt.controller.fleet import Fleet
from yatt.placement.plan import POLICY, Layout, Role, arrange
from yatt.placement.policy import Choice, Load, Mode, Speed
from yatt.protocols import Clock
from yatt.types import Decision, Pulse

LOOKS = 100
"""Looks in a rollout as long as the last one."""
SOONEST, LATEST = 0.1, 5.0
"""Seconds between looks, whatever the rollout takes."""
FORGET = 0.98
"""Weight of what was known of an engine's speed when another look comes in."""
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Gauge:
    """What the pulses of a role's engines say. `per_response` requests come to it for each response of the policy;
    one samples at most `limit` tokens.

    A decode step's time is fitted to t = step + per_request * batch, by least squares over the looks, each weighted
    with its decode steps, old ones fading. Where the batch hardly varies, all of t is the step's.
    """

    per_response: float
    limit: int
    capacity: int
    engines: int  # in a block
    requests: int = 0
    ended: int = 0  # in this rollout
    tokens: int = 0
    length: float = 0.0  # mean tokens of a response, as of the last rollouts
    before: dict[int, Pulse] = field(default_factory=dict)
    sums: list[float] = field(default_factory=lambda: [0.0] * 5)  # w, w b, w b^2, w t, w b t

    def see(self, pulses: Mapping[int, Pulse]) -> None:
        """Take one look at all engines of the role in."""
        self.requests = sum(pulse.running for pulse in pulses.values())
        for number, pulse in pulses.items():
            before = self.before.get(number, pulse)
            steps, tokens = pulse.steps - before.steps, pulse.tokens - before.tokens
            if steps < 0:  # the engine was started anew
                continue
            self.ended += pulse.ended - before.ended
            self.tokens += tokens
            if steps:
                batch, time = tokens / steps, (pulse.seconds - before.seconds) / steps
                seen = (1.0, batch, batch * batch, time, batch * time)
                self.sums = [FORGET * old + steps * new for old, new in zip(self.sums, seen, strict=True)]
        self.before = dict(pulses)

    def begin(self) -> None:
        """A rollout begins: what was seen in the last one, as it is over, says how long responses are."""
        if self.ended:
            mean = self.tokens / self.ended
            self.length = mean if not self.length else 0.3 * self.length + 0.7 * mean
        self.ended = self.tokens = 0

    def load(self, coming: float) -> Load:
        """The role's work now. What a request has still to sample is taken to be a whole response, as it would be if
        lengths had no memory."""
        length = min(self.length or self.tokens / max(1, self.ended + self.requests // 2) or 1.0, self.limit)
        return Load(
            requests=self.requests,
            coming=coming,
            tokens=length,
            length=length,
            longest=min(float(self.limit), 4 * length),
            prefix=length,
            speed=self.speed(),
        )

    def speed(self) -> Speed:
        weight, b, bb, t, bt = self.sums
        if not weight:
            return Speed(step=1.0, per_request=0.0, prefill=0.0, capacity=self.capacity, engines=self.engines)
        b, bb, t, bt = b / weight, bb / weight, t / weight, bt / weight
        varied = bb - b * b > 0.01 * bb
        slope = min(max(0.0, (bt - b * t) / (bb - b * b)), t / b) if varied else 0.0
        return Speed(
            step=max(t - slope * b, 1e-9),
            per_request=slope,
            prefill=slope,  # a token read costs what a token more in the batch does
            capacity=self.capacity,
            engines=self.engines,
        )


class Director:
    """Who holds which block. `fleets` and `gauges` are by role, the policy's first."""

    def __init__(
        self, *, mode: Mode, layout: Layout, fleets: Mapping[Role, Fleet], gauges: Mapping[Role, Gauge], clock: Clock
    ) -> None:
        self.layout = layout
        self.holders: tuple[Role, ...] = ()
        self._mode = mode
        self._fleets = fleets
        self._gauges = gauges
        self._clock = clock
        self._responses = 0.0
        self._switch = 0.0
        self._rollouts = 0
        self._began = self._looked = 0.0
        self._lasted = 0.0
        self._decisions: list[Decision] = []

    @property
    def moves(self) -> bool:
        """Whether slots may change hands within a rollout."""
        return self._mode.look is not None

    async def start(self, responses: float) -> tuple[Role, ...]:
        """Who holds each block at the beginning of a rollout that is to give so many responses."""
        if len(self._fleets) == 1:
            self.holders = self.holders or (POLICY,) * len(self.layout.blocks)
            return self.holders
        await self._pulses()
        for gauge in self._gauges.values():
            gauge.begin()
        self._responses = responses
        loads = {role: gauge.load(responses * gauge.per_response) for role, gauge in self._gauges.items()}
        split = {role: self.holders.count(role) for role in self._fleets} if self.holders else None
        measured = all(gauge.length for gauge in self._gauges.values())
        blocks = len(self.layout.blocks)
        choice = self._mode.start(blocks, loads if measured else None, split, self._switch)
        self._lasted, self._began = self._looked - self._began, self._clock.now()
        self._decide(choice)
        return self.holders

    async def rest(self) -> None:
        """Wait until it is time to look."""
        await self._clock.sleep(min(max(self._lasted / LOOKS, SOONEST), LATEST))

    async def look(self) -> tuple[Role, ...] | None:
        """Who is to hold each block from now on; None where nothing is to change."""
        assert self._mode.look is not None
        await self._pulses()
        self._looked = self._clock.now()
        policy = self._gauges[POLICY]
        drawn = max(self._responses, policy.ended + policy.requests)
        loads = {
            role: gauge.load(max(0.0, drawn * gauge.per_response - gauge.ended - gauge.requests))
            for role, gauge in self._gauges.items()
        }
        split = {role: self.holders.count(role) for role in self._fleets}
        choice = self._mode.look(split, loads, self._switch)
        if choice is None or choice.split == split:
            return None
        self._decide(choice)
        return self.holders

    def switched(self, seconds: float) -> None:
        """Blocks have changed hands, which took so long."""
        self._switch = seconds if not self._switch else 0.7 * self._switch + 0.3 * seconds

    def take(self) -> tuple[Decision, ...]:
        """What was decided since the last call."""
        decisions, self._decisions = tuple(self._decisions), []
        return decisions

    def _decide(self, choice: Choice) -> None:
        self.holders = arrange(choice.split, self.holders or None)
        size = len(self.layout.blocks[0])
        slots = {role: size * self.holders.count(role) for role in self._fleets}
        self._decisions.append(Decision(at=self._clock.now(), text=choice.why, slots=slots))
        _log.info("placement %s: %s", slots, choice.why)

    async def _pulses(self) -> None:
        for role, fleet in self._fleets.items():
            self._gauges[role].see(await fleet.each(lambda _, generator: generator.pulse()))

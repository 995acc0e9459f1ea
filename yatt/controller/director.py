"""Measures what the roles have to do, asks the placement policy, and keeps what was decided. On the leader only."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from yatt.controller.router import Router
from yatt.placement.plan import POLICY, Layout, Role, arrange
from yatt.placement.policy import Choice, Load, Mode, Speed
from yatt.protocols import Clock
from yatt.reports import Decision
from yatt.types import Pulse

LOOKS = 100
"""Looks in a rollout as long as the last one; in a longer one they become rarer as it lasts."""
SOONEST, LATEST = 0.1, 5.0
"""Seconds between looks, whatever the rollout takes."""
FORGET = 0.98
"""Weight of what was known of an engine's speed when another look comes in."""
WORST = 1e6
"""Condition number of the fit beyond which terms are not told apart."""
UNSEEN = 0.25
"""Share of the limit that a response is taken for, until some have ended."""
LONGEST = 4.0
"""The longest response in means, where it is not known."""
_log = logging.getLogger(__name__)


class Fit:
    """Seconds of an engine, fitted to what it did in them: a for a decode step, b for a token sampled, c for a prompt
    token read, all at least 0. Least squares over the looks, old ones fading."""

    def __init__(self) -> None:
        self._products = np.zeros((3, 3))
        self._sums = np.zeros(3)
        self.looks = 0

    def see(self, rows: Sequence[Sequence[float]]) -> None:
        """One look: of each engine steps, tokens sampled, tokens read, and seconds. [engines, 4]"""
        did, seconds = np.array(rows, dtype=np.float64)[:, :3], np.array(rows, dtype=np.float64)[:, 3]
        self._products = FORGET * self._products + did.T @ did
        self._sums = FORGET * self._sums + did.T @ seconds
        self.looks += 1

    def costs(self) -> np.ndarray:
        """[3] seconds. Of the sets of terms whose costs are positive, the one that explains most; where terms cannot be
        told apart, the fewest of them."""
        best, explained = np.zeros(3), 0.0
        scale = np.sqrt(np.maximum(np.diag(self._products), 1e-30))
        for chosen in ([0], [1], [2], [0, 1], [0, 2], [1, 2], [0, 1, 2]):
            part = (self._products / np.outer(scale, scale))[np.ix_(chosen, chosen)]
            if np.linalg.cond(part) > WORST:
                continue
            found = np.linalg.solve(part, (self._sums / scale)[chosen])
            gain = float(found @ (self._sums / scale)[chosen])
            if found.min() > 0 and gain > explained * (1 + 1e-6):
                best, explained = np.zeros(3), gain
                best[chosen] = found / scale[chosen]
        return best


@dataclass(slots=True)
class Gauge:
    """What the pulses of a role's engines say. `per_response` requests come to it for each response of the policy;
    one samples at most `limit` tokens."""

    per_response: float
    limit: int
    capacity: int
    engines: int  # in a block
    requests: int = 0
    ended: int = 0  # in this rollout
    tokens: int = 0
    length: float = 0.0  # mean tokens of a response, as of the last rollouts
    longest: float = 0.0  # tokens of the longest, where it is known
    before: dict[int, Pulse] = field(default_factory=dict)
    fit: Fit = field(default_factory=Fit)

    def see(self, pulses: Mapping[int, Pulse]) -> None:
        """Take one look at all engines of the role in."""
        self.requests = sum(pulse.running for pulse in pulses.values())
        rows = []
        for number, pulse in pulses.items():
            before = self.before.get(number, pulse)
            steps, tokens = pulse.steps - before.steps, pulse.tokens - before.tokens
            if steps > 0:
                self.ended += pulse.ended - before.ended
                self.tokens += tokens
                rows.append((steps, tokens, pulse.read - before.read, pulse.seconds - before.seconds))
            if steps or number not in self.before:  # an engine that only reads is looked at once it has sampled
                self.before[number] = pulse
        if rows:
            self.fit.see(rows)

    def begin(self) -> None:
        """A rollout begins: what was seen in the last one, as it is over, says how long responses are."""
        if self.ended:
            mean = self.tokens / self.ended
            self.length = mean if not self.length else 0.3 * self.length + 0.7 * mean
        self.ended = self.tokens = 0

    def load(self, coming: float, prompt: float, fit: Fit) -> Load:
        """The role's work now; `prompt` are tokens read for a request, `fit` says how fast that goes. What a request
        has still to sample is taken to be a whole response, as it would be if lengths had no memory."""
        length = min(self.length or UNSEEN * self.limit, self.limit)
        return Load(
            requests=self.requests,
            coming=coming,
            tokens=length,
            length=length,
            longest=self.longest or min(float(self.limit), LONGEST * length),
            prefix=prompt,
            drawn=length / 2,
            speed=self._speed(*fit.costs().tolist()),
        )

    def _speed(self, step: float, token: float, read: float) -> Speed:
        return Speed(
            step=max(step, 1e-9), per_request=token, prefill=read, capacity=self.capacity, engines=self.engines
        )


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
        self._responses = 0.0
        self._switch = 0.0
        self._began = self._looked = 0.0
        self._lasted = 0.0
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
        for gauge in self._gauges.values():
            gauge.begin()
        self._responses = responses
        loads = self._loads({role: responses * gauge.per_response for role, gauge in self._gauges.items()})
        before = self.holders if POLICY in self.holders else self._begun  # no rollout begins with judges alone
        split = {role: before.count(role) for role in self._routers} if before else None
        measured = all(gauge.length for gauge in self._gauges.values())
        blocks = len(self.layout.blocks)
        choice = self._mode.start(blocks, loads if measured else None, split, self._switch)
        self._lasted, self._began = self._looked - self._began, self._clock.now()
        self._decide(choice)
        self._begun = self.holders
        return self.holders

    async def rest(self) -> None:
        """Wait until it is time to look."""
        lasts = max(self._lasted, self._clock.now() - self._began)
        await self._clock.sleep(min(max(lasts / LOOKS, SOONEST), LATEST))

    async def look(self) -> tuple[Role, ...] | None:
        """Who is to hold each block from now on; None where nothing is to change."""
        assert self._mode.look is not None
        await self._pulses()
        self._looked = self._clock.now()
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
        loads: dict[Role, Load] = {}
        for role, gauge in self._gauges.items():
            prompt = self._routers[role].prompt or self._routers[POLICY].prompt + self._gauges[POLICY].length
            loads[role] = gauge.load(max(0.0, coming[role]), prompt, gauge.fit if gauge.fit.looks else seen)
        return loads

    def learn(self, longest: int) -> None:
        """The longest response of the policy in the last rollout."""
        gauge = self._gauges.get(POLICY)
        if gauge is not None:
            gauge.longest = max(float(longest), 0.8 * gauge.longest)

    def switched(self, seconds: float) -> None:
        """Blocks have changed hands, which took so long."""
        self._switch = seconds if not self._switch else 0.7 * self._switch + 0.3 * seconds

    def take(self) -> tuple[Decision, ...]:
        """What was decided since the last call."""
        decisions, self._decisions = tuple(self._decisions), []
        return decisions

    def _decide(self, choice: Choice) -> None:
        self.holders = self._livable(arrange(choice.split, self.holders or None))
        size = len(self.layout.blocks[0])
        slots = {role: size * self.holders.count(role) for role in self._routers}
        self._decisions.append(Decision(at=self._clock.now(), text=choice.why, slots=slots))
        _log.info("placement %s: %s", slots, choice.why)

    async def _pulses(self) -> None:
        for role, router in self._routers.items():
            self._gauges[role].see(await router.fleet.each(lambda _, generator: generator.pulse()))

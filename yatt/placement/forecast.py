"""When a rollout and its judging end under a split of the blocks: pure functions of what was measured."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import Field

from yatt.placement.plan import POLICY, Role, Split, apportion

Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpeed:
    """What an engine's work costs, for the placement and the simulation. A decode step that gives one token to each of
    R running requests, whose prefixes hold K tokens together, takes `step + per_request * R + per_kv_token * K`
    seconds."""

    step: Amount  # seconds of a decode step, whatever runs: reading the weights, launching
    per_request: Amount  # seconds per running request in a decode step
    per_kv_token: Amount  # seconds per token of KV cache read in a decode step
    prefill: Amount = 0.0  # seconds per prompt token computed; siblings share their prompt's


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed(EngineSpeed):
    """One engine of a role, as the placement sees it."""

    capacity: int  # requests run at once
    engines: int  # in a block

    @classmethod
    def of(cls, engine: EngineSpeed, *, capacity: int, engines: int) -> Speed:
        costs = {cost.name: getattr(engine, cost.name) for cost in fields(EngineSpeed)}
        return cls(**costs, capacity=capacity, engines=engines)


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """A role's work at one moment, over all its engines."""

    requests: int  # at its engines, those that wait there included
    coming: float  # requests expected in the rest of the step
    tokens: float  # mean tokens a request at an engine has still to sample; a coming one samples `length`
    length: float  # mean tokens of a whole response of this role
    longest: float  # tokens the longest request, a coming one included, has still to sample
    prefix: float  # mean tokens of its prompt that an engine reads for a request; siblings share theirs
    speed: Speed
    drawn: float = 0.0  # mean tokens of a running response so far, read anew where it moves
    gone: float = 0.0  # tokens of the longest so far
    unread: float = 0.0  # requests at its engines that none has read yet
    outside: float = 0.0  # seconds that a conversation spends outside the engines for each token that it samples
    on_blocks: tuple[int, ...] = ()  # requests on each block that the role holds, where that is known


Loads = Mapping[Role, Load]
Missed = tuple[float, float]
"""Factors for the forecast of a rollout: of one that begins with divided blocks, and of one with all at the policy."""
FAIR: Missed = (1.0, 1.0)

LATER = 0.02
"""Share of the predicted seconds that putting a change off must gain; else it would be put off for ever."""

SPREAD = (0.7, 1.0, 1.5)
"""Lengths that the longest response may turn out to have, in parts of the expected one. Splits are judged by the mean
over them: where it is short, a split whose judges are behind loses; where it is long, one that crowds responses."""
LEAST = 0.2
"""Share of the longest response that is taken to be left, once it is about as long as expected or longer."""

_FULL = np.array([0, 0.33, 0.67, *[1] * 13])
_PASSED = np.array([0, 0, 0, *np.sin(np.linspace(0, np.pi / 2, 13)) ** 2])
"""Points of a phase: shares of the queue admitted, and then of the longest request's steps passed."""
_AT_START = _FULL + _PASSED == 0
_HANDOVERS = (2, 5, 7, 10, 15)
_SHARES = np.array([0, 1 / 16, 1 / 8, 1 / 4, 3 / 8, 1 / 2, 5 / 8, 3 / 4, 7 / 8, 15 / 16, 1])

Array = npt.NDArray[np.float64]


def block_seconds(load: Load) -> float:
    """Seconds of one block for all of a role's work, in full batches."""
    speed = load.speed
    token = speed.step / speed.capacity + speed.per_request + speed.per_kv_token * (load.prefix + load.length)
    tokens = load.requests * load.tokens + load.coming * load.length
    return (tokens * token + load.coming * load.prefix * speed.prefill) / speed.engines


def _drain(load: Load, requests: Array, fresh: Array, blocks: Array, full: Array, passed: Array) -> tuple[Array, Array]:
    """Seconds to a point of the phase in which `requests` of a role end on `blocks`, and the share that has ended.

    Requests left after u of the longest one's L steps: (1 - u)^(r - 1) with r = L / mean, which has the right mean.
    While more wait than run, engines go on in full batches, whose requests have sampled L / (r + 1) tokens in the mean.
    `fresh` requests have still to be read.
    """
    speed = load.speed
    count = max(load.requests + load.coming, 1e-9)
    mean = max((load.requests * load.tokens + load.coming * load.length) / count, 1.0)
    longest = _longest(max(load.longest, mean), mean, requests, count)
    engines = np.maximum(blocks, 1e-9) * speed.engines
    each = requests / engines
    running = np.minimum(each, speed.capacity)
    queue = each - running
    ratio = longest / mean
    reading = speed.prefill * load.prefix * np.maximum(queue, np.maximum(fresh / engines, np.minimum(fresh, 1.0)))
    context = load.prefix + longest / (ratio + 1)
    batch = speed.step + (speed.per_request + speed.per_kv_token * context) * speed.capacity
    gone, rest = longest * passed, (1 - passed) ** ratio
    sampled = running * mean * (1 - rest)
    seconds = full * (reading + queue * mean / speed.capacity * batch) + (speed.step + load.outside) * gone
    seconds = seconds + speed.per_request * np.maximum(sampled, gone)
    if speed.per_kv_token:
        cached = load.prefix + load.drawn * np.minimum(load.requests, engines * speed.capacity) / count
        grown = running * longest * mean * ((1 - rest * (1 - passed)) / (ratio + 1) - passed * rest)
        seconds = seconds + speed.per_kv_token * np.maximum(cached * sampled + grown, cached * gone + gone**2 / 2)
    left = (1 - full) * queue + running * (1 - passed) ** (ratio - 1)
    ended = 1 - left / np.maximum(each, 1e-9)
    idle = requests <= 0
    seconds = np.where(idle, 0.0, np.where(blocks > 0, seconds, np.inf))
    return seconds, np.where(idle, 1.0, ended)


def spreads(loads: Loads, blocks: int) -> Array:
    """Splits [C, roles] to choose from: a share for the policy, the rest to the judges by their work."""
    work = {role: block_seconds(load) for role, load in loads.items()}
    judges = {role: seconds for role, seconds in work.items() if role != POLICY and seconds > 0}
    most = blocks - len(judges)
    counts = range(most + 1) if most < len(_SHARES) else np.rint(_SHARES * most).astype(int)
    shares = [max(int(count), 1) if work[POLICY] > 0 else 0 for count in counts]
    if not judges:
        return row({POLICY: blocks}, loads)
    splits = [{POLICY: count, **apportion(blocks - count, judges)} for count in shares if count <= most]
    return np.vstack([row(split, loads) for split in splits or [{POLICY: blocks}]])


def _moves(split: Array) -> Array:
    """Splits [C, roles] that differ from `split` by 1, 2, 4, ... or all blocks of a role given to another."""
    splits = []
    for giver, taker in itertools.permutations(range(len(split)), 2):
        blocks = int(split[giver])
        powers = [1 << i for i in range(blocks.bit_length())]
        for size in {blocks, *powers} - {0}:
            moved = split.copy()
            moved[giver] -= size
            moved[taker] += size
            splits.append(moved)
    return np.array(splits)


def row(split: Split, loads: Loads) -> Array:
    """One split as [1, roles]."""
    return np.array([[split.get(role, 0) for role in loads]], dtype=np.float64)


def _longest(longest: float, mean: float, some: Array, count: float) -> Array:
    """Tokens of the longest of `some` out of `count` requests: where (1 - u)^(L / mean - 1) leaves one of them."""
    power = -1 / max(longest / mean - 1, 1e-3)
    part = (1 - np.maximum(some, 1) ** power) / max(1 - max(count, 1) ** power, 1e-9)
    return np.where(some >= count, longest, np.maximum(mean, longest * part))


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Predicts when the phase ends under a split. `before` [roles] is the split now; without it none is a change.
    `spread`: parts of the whole longest response that it may turn out to be, over which the prediction is the mean.
    Predictions are multiplied by what they have `missed`."""

    loads: Loads
    blocks: int
    switching: float = 0.0
    before: Array | None = None
    spread: tuple[float, ...] = (1.0,)
    missed: Missed = FAIR

    @property
    def working(self) -> int:
        """Roles that have something to do."""
        return sum(load.requests + load.coming > 0 for load in self.loads.values())

    def best(self, splits: Array) -> tuple[dict[Role, int], float]:
        """The best split that is reached from the best of `splits` by moves that help, and its seconds."""
        best, seconds, candidates = splits[0], np.inf, splits
        while len(candidates):
            predicted = self.seconds(candidates)
            index = int(predicted.argmin())
            if not predicted[index] < seconds * (1 - 1e-3):
                break
            best, seconds = candidates[index], float(predicted[index])
            candidates = _moves(best)
        return {role: int(count) for role, count in zip(self.loads, best, strict=True)}, float(seconds)

    def seconds(self, splits: Array) -> Array:
        """Seconds to the end under `splits` [C, roles]. All blocks to the policy stands for giving some away later;
        judges that have requests do not lose all blocks so."""
        mean = np.mean([case._seconds(splits) for case in self._cases], axis=0)
        divided, whole = self.missed
        alone = splits[:, list(self.loads).index(POLICY)] == self.blocks
        seconds: Array = mean * np.where(alone, whole, divided)
        return seconds

    @cached_property
    def _cases(self) -> list[Forecast]:
        policy = self.loads[POLICY]
        if policy.requests + policy.coming <= 0:
            return [self]
        whole = policy.longest + policy.gone
        longest = [max(whole * part - policy.gone, LEAST * whole) for part in self.spread]
        return [replace(self, loads={**self.loads, POLICY: replace(policy, longest=one)}) for one in longest]

    def _seconds(self, splits: Array) -> Array:
        """The same where the longest response is as long as its load says."""
        at = list(self.loads).index(POLICY)
        late = self._late(splits)
        seconds = self._to_the_end(splits, late)
        alone = splits[:, at] == self.blocks
        waiting = any(load.requests for role, load in self.loads.items() if role != POLICY)
        begun = self.before is not None and self.before[at] < self.blocks and waiting
        policy = self.loads[POLICY]
        if alone.any() and not begun and self.working > 1 and policy.requests + policy.coming > 0:
            seconds[alone] = late[alone, at] + (1 + LATER) * self._later
        return seconds

    def _to_the_end(self, splits: Array, late: Array) -> Array:
        """The same where each split is kept to the end. From each point of the policy's phase, a judge needs at least
        the time for what it has left then, done without a pause; it ends at the latest of these."""
        policy, at = self.loads[POLICY], list(self.loads).index(POLICY)
        blocks, count = splits[:, at, None], np.full((1, 1), policy.requests + policy.coming)
        fresh = np.full((1, 1), policy.coming + policy.unread)
        seconds, ended = _drain(policy, count, fresh, blocks, _FULL, _PASSED)
        seconds = seconds + late[:, at, None]
        end: Array = seconds[:, -1]
        for i, (role, load) in enumerate(self.loads.items()):
            if role == POLICY or load.requests + load.coming <= 0:
                continue
            coming = np.maximum(load.coming * (1 - ended), min(load.coming, 1.0))
            left = np.where(_AT_START, load.requests + load.coming, coming)
            unread = np.where(_AT_START, load.coming + self._unread(i, load), coming)
            done, _ = _drain(load, left, unread, splits[:, i, None], _FULL[-1:], _PASSED[-1:])
            begun = np.where(_AT_START, 0.0, seconds) + late[:, i, None]
            end = np.maximum(end, (begun + done).max(axis=1))
        return end

    def _unread(self, i: int, load: Load) -> float:
        """Requests of role i that are at engines and not read: all, where these sleep."""
        return load.requests if self.before is not None and not self.before[i] else load.unread

    def _late(self, splits: Array) -> Array:
        """Seconds [C, roles] by which a change holds each role up: new blocks come after `switching`, and what had been
        read is read anew where it moves: from lost blocks to the others, and to new ones their share."""
        if self.before is None:
            return np.zeros_like(splits)
        late: Array = self.switching * np.maximum(splits - self.before, 0) / np.maximum(splits, 1)
        for i, load in enumerate(self.loads.values()):
            had, now, speed = self.before[i], splits[:, i], load.speed
            unread = self._unread(i, load)
            away = np.minimum(load.requests - unread, self._lightest(load, had, had - now))
            shared = np.maximum(load.requests * (1 - had / np.maximum(now, 1)) - unread, 0)
            over = np.where(now > had, shared / np.maximum(now - had, 1), away / np.maximum(now, 1))
            late[:, i] += over * (load.prefix + load.drawn) * speed.prefill / speed.engines
        return late

    @staticmethod
    def _lightest(load: Load, had: float, lost: Array) -> Array:
        """Requests that run on the `lost` blocks with the fewest, of the `had` ones that a role holds."""
        running = min(load.requests, had * load.speed.engines * load.speed.capacity)
        if len(load.on_blocks) != had:
            return running * np.maximum(lost, 0) / max(had, 1)
        fewest: Array = np.cumsum([0.0, *sorted(load.on_blocks)])
        lightest: Array = np.minimum(running, fewest[np.maximum(lost, 0).astype(int)])
        return lightest

    @cached_property
    def _later(self) -> float:
        """Seconds to the end where the policy holds all blocks for now, and gives some away at the best moment."""
        policy, holding = self.loads[POLICY], row({POLICY: self.blocks}, self.loads)[0]
        count = np.full((1, 1), policy.requests + policy.coming)
        fresh = np.full((1, 1), policy.coming + policy.unread)
        seconds, ended = _drain(policy, count, fresh, holding.max(), _FULL, _PASSED)
        ends = []
        for point in _HANDOVERS:
            then = _after(self.loads, float(ended[0, point]) if _PASSED[point] < 1 else 1.0, float(_PASSED[point]))
            rest = replace(self, loads=then, before=holding)
            splits = spreads(then, self.blocks)
            ends.append(seconds[0, point] + rest._to_the_end(splits, rest._late(splits)).min())
        return float(min(ends))


def _after(loads: Loads, ended: float, passed: float) -> dict[Role, Load]:
    """Loads once a share `ended` of the policy's responses has ended, none of them judged. The responses left have the
    same distribution of lengths as before, `1 - passed` as long."""
    policy, rest = loads[POLICY], 1 - passed
    count = policy.requests + policy.coming
    mean = (policy.requests * policy.tokens + policy.coming * policy.length) / count
    then = {
        role: replace(
            load, requests=round(load.requests + load.coming * ended), coming=load.coming * (1 - ended), on_blocks=()
        )
        for role, load in loads.items()
    }
    then[POLICY] = replace(
        policy,
        requests=math.ceil(count * (1 - ended)) if rest else 0,
        coming=0.0,
        unread=0.0,
        on_blocks=(),
        tokens=mean * rest,
        longest=max(policy.longest, mean) * rest,
        drawn=policy.drawn + max(policy.longest, mean) * passed,
    )
    return then

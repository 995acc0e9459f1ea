"""Who gets which share of the slots while responses are drawn and judged: pure functions of what was measured."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from yatt.placement.plan import POLICY, Role, Split


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """One engine of a role. A decode step with b running requests takes `step + per_request * b` seconds."""

    step: float
    per_request: float
    prefill: float  # seconds per token read
    capacity: int  # requests run at once
    engines: int  # in a block


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


Loads = Mapping[Role, Load]


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A split, the seconds predicted to the end of the phase under it, and the reason in words."""

    split: Split
    seconds: float
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Mode:
    """How a placement mode decides. `start` is asked before each rollout: (blocks, loads of the whole step as expected
    from the last ones or None in the first, split of before or None, seconds of switching a block)
    -> what to begin with. `look` is asked every so often within one: (split now, loads now, seconds of switching a
    block) -> what to change to, or None. A mode without `look` never moves within a step."""

    start: Callable[[int, Loads | None, Split | None, float], Choice]
    look: Callable[[Split, Loads, float], Choice | None] | None = None


MARGIN = 0.05
"""Share of the predicted seconds that a change must gain beyond the seconds of switching; less is within the error of
what is measured and predicted."""
LATER = 0.02
"""Share of the predicted seconds that putting a change off must gain; else it would be put off for ever."""

HEDGE = 0.25
"""Splits that end together, because of the longest response, differ in how soon the judges are done by themselves. What
is expected of the longest is uncertain: when it turns out shorter, the judges should not be behind."""

_FULL = np.array([0, 0.33, 0.67, *[1] * 13])
_PASSED = np.array([0, 0, 0, *np.sin(np.linspace(0, np.pi / 2, 13)) ** 2])
"""Points of a phase: shares of the queue admitted, and then of the longest request's steps passed."""
_AT_START = _FULL + _PASSED == 0
_HANDOVERS = (2, 5, 7, 10, 15)
_SHARES = np.array([0, 1 / 16, 1 / 8, 1 / 4, 3 / 8, 1 / 2, 5 / 8, 3 / 4, 7 / 8, 15 / 16, 1])

Array = npt.NDArray[np.float64]


def open_mode(name: str, *, given: Split, parameters: Mapping[Role, float]) -> Mode:
    """The mode of this name. `given` is the split in blocks, for `partial`; `parameters` the size of each role's model,
    the policy's first."""
    return MODES[name](given, parameters)


def apportion(blocks: int, weights: Mapping[Role, float]) -> dict[Role, int]:
    """Blocks in proportion to weights by largest remainder, at least one each."""
    total = sum(weights.values())
    quota = {role: blocks * weight / total if total else blocks / len(weights) for role, weight in weights.items()}
    split = {role: max(1, int(share)) for role, share in quota.items()}
    while sum(split.values()) < blocks:
        split[max(split, key=lambda role: quota[role] - split[role])] += 1
    while sum(split.values()) > blocks:
        split[min((r for r in split if split[r] > 1), key=lambda role: quota[role] - split[role])] -= 1
    return split


def bound(loads: Loads, blocks: int) -> float:
    """Seconds that no placement goes below: all work at full batches on all blocks, or the longest response and its
    judgement with an engine for itself."""
    work = sum(_block_seconds(load) for load in loads.values()) / blocks
    judged = [_single(load, load.length, load.prefix) for role, load in loads.items() if role != POLICY]
    longest = loads[POLICY].longest
    return max(work, _single(loads[POLICY], longest, 0.0) + max(judged, default=0.0))


def _block_seconds(load: Load) -> float:
    """Seconds of one block for all of a role's work, in full batches."""
    speed = load.speed
    token = (speed.step + speed.per_request * speed.capacity) / speed.capacity
    tokens = load.requests * load.tokens + load.coming * load.length
    return (tokens * token + load.coming * load.prefix * speed.prefill) / speed.engines


def _single(load: Load, tokens: float, read: float) -> float:
    return tokens * (load.speed.step + load.speed.per_request) + read * load.speed.prefill


# --- prediction ------------------------------------------------------------------------------------------------------


def _drain(load: Load, requests: Array, fresh: Array, blocks: Array, full: Array, passed: Array) -> tuple[Array, Array]:
    """Seconds to a point of the phase in which `requests` of a role end on `blocks`, and the share that has ended.

    Requests left after u of the longest one's L steps: (1 - u)^(L / mean - 1), which has the right mean. While more
    wait than run, engines go on in full batches. `fresh` requests have still to be read.
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
    reading = speed.prefill * load.prefix * np.maximum(queue, fresh / engines)
    batch = speed.step + speed.per_request * speed.capacity
    sampled = running * mean * (1 - (1 - passed) ** ratio)
    seconds = full * (reading + queue * mean / speed.capacity * batch) + speed.step * longest * passed
    seconds = seconds + speed.per_request * np.maximum(sampled, longest * passed)
    left = (1 - full) * queue + running * (1 - passed) ** (ratio - 1)
    ended = 1 - left / np.maximum(each, 1e-9)
    idle = requests <= 0
    seconds = np.where(idle, 0.0, np.where(blocks > 0, seconds, np.inf))
    return seconds, np.where(idle, 1.0, ended)


def _spreads(loads: Loads, blocks: int) -> Array:
    """Splits [C, roles] to choose from: a share for the policy, the rest to the judges by their work."""
    work = {role: _block_seconds(load) for role, load in loads.items()}
    judges = {role: seconds for role, seconds in work.items() if role != POLICY and seconds > 0}
    most = blocks - len(judges)
    counts = range(most + 1) if most < len(_SHARES) else np.rint(_SHARES * most).astype(int)
    own = [max(int(count), 1) if work[POLICY] > 0 else 0 for count in counts]
    found = [{POLICY: count, **apportion(blocks - count, judges)} for count in own if judges and count <= most]
    return np.vstack([_row(split, loads) for split in found or [{POLICY: blocks}]])


def _moves(split: Array) -> Array:
    """Splits [C, roles] that differ from `split` by 1, 2, 4, ... or all blocks of a role given to another."""
    found = []
    for giver, taker in itertools.permutations(range(len(split)), 2):
        for size in {int(split[giver]), *(1 << i for i in range(int(split[giver]).bit_length()))} - {0}:
            found.append(split.copy())
            found[-1][[giver, taker]] += -size, size
    return np.array(found)


def _row(split: Split, loads: Loads) -> Array:
    return np.array([[split.get(role, 0) for role in loads]], dtype=np.float64)


def _longest(longest: float, mean: float, some: Array, count: float) -> Array:
    """Tokens of the longest of `some` out of `count` requests: where (1 - u)^(L / mean - 1) leaves one of them."""
    power = -1 / max(longest / mean - 1, 1e-3)
    part = (1 - np.maximum(some, 1) ** power) / max(1 - max(count, 1) ** power, 1e-9)
    return np.where(some >= count, longest, np.maximum(mean, longest * part))


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Predicts when the phase ends under a split. `before` [roles] is the split now; without it none is a change. With
    `hedge`, that share of the prediction is instead the mean of how long each role's work takes by itself."""

    loads: Loads
    blocks: int
    switching: float = 0.0
    before: Array | None = None
    hedge: float = 0.0

    @property
    def working(self) -> int:
        """Roles that have something to do."""
        return sum(load.requests + load.coming > 0 for load in self.loads.values())

    def best(self, splits: Array) -> tuple[dict[Role, int], float]:
        """The best split found from the best of `splits` by moves that help, and its seconds."""
        best, seconds, found = splits[0], np.inf, splits
        while len(found):
            predicted = self.seconds(found)
            index = int(predicted.argmin())
            if not predicted[index] < seconds * (1 - 1e-3):
                break
            best, seconds = found[index], float(predicted[index])
            found = _moves(best)
        return {role: int(count) for role, count in zip(self.loads, best, strict=True)}, float(seconds)

    def seconds(self, splits: Array) -> Array:
        """Seconds to the end under `splits` [C, roles]. All blocks to the policy stands for giving some away later;
        judges that have requests do not lose all blocks so."""
        late = self._late(splits)
        seconds = self._held(splits, late)
        at = list(self.loads).index(POLICY)
        alone = splits[:, at] == self.blocks
        waiting = any(load.requests for role, load in self.loads.items() if role != POLICY)
        begun = self.before is not None and self.before[at] < self.blocks and waiting
        policy = self.loads[POLICY]
        if alone.any() and not begun and self.working > 1 and policy.requests + policy.coming > 0:
            seconds[alone] = late[alone, at] + (1 + LATER) * self._later
        return seconds

    def _held(self, splits: Array, late: Array) -> Array:
        """The same where each split is held to the end. A judge ends at the latest of: what it has left when some
        response ends, done without a pause from there."""
        policy, at = self.loads[POLICY], list(self.loads).index(POLICY)
        blocks, count = splits[:, at, None], np.full((1, 1), policy.requests + policy.coming)
        seconds, ended = _drain(policy, count, np.full((1, 1), policy.coming), blocks, _FULL, _PASSED)
        seconds = seconds + late[:, at, None]
        end: Array = seconds[:, -1]
        alone: list[Array] = [end]
        for i, (role, load) in enumerate(self.loads.items()):
            if role == POLICY or load.requests + load.coming <= 0:
                continue
            coming = np.maximum(load.coming * (1 - ended), min(load.coming, 1.0))
            left = np.where(_AT_START, load.requests + load.coming, coming)
            asleep = self.before is not None and not self.before[i]  # then nothing of it has been read
            unread = np.where(_AT_START, load.coming + load.requests * asleep, coming)
            done, _ = _drain(load, left, unread, splits[:, i, None], _FULL[-1:], _PASSED[-1:])
            begun = np.where(_AT_START, 0.0, seconds) + late[:, i, None]
            end = np.maximum(end, (begun + done).max(axis=1))
            alone.append((begun + done)[:, 0])
        return (1 - self.hedge) * end + self.hedge * np.mean(alone, axis=0) if self.hedge else end

    def _late(self, splits: Array) -> Array:
        """Seconds [C, roles] by which a change holds each role up: new blocks come after `switching`, and what ran on
        lost ones is read anew on the others."""
        if self.before is None:
            return np.zeros_like(splits)
        late: Array = self.switching * np.maximum(splits - self.before, 0) / np.maximum(splits, 1)
        for i, load in enumerate(self.loads.values()):
            speed, had = load.speed, max(self.before[i], 1)
            running = min(load.requests, self.before[i] * speed.engines * speed.capacity)
            moved = running * np.maximum(self.before[i] - splits[:, i], 0) / had
            late[:, i] += (
                moved * (load.prefix + load.drawn) * speed.prefill / (np.maximum(splits[:, i], 1) * speed.engines)
            )
        return late

    @cached_property
    def _later(self) -> float:
        """Seconds to the end where the policy holds all blocks for now, and gives some away at the best moment."""
        policy, holding = self.loads[POLICY], _row({POLICY: self.blocks}, self.loads)[0]
        count = np.full((1, 1), policy.requests + policy.coming)
        seconds, ended = _drain(policy, count, np.full((1, 1), policy.coming), holding.max(), _FULL, _PASSED)
        ends = []
        for point in _HANDOVERS:
            then = _after(self.loads, float(ended[0, point]) if _PASSED[point] < 1 else 1.0, float(_PASSED[point]))
            rest = replace(self, loads=then, before=holding)
            splits = _spreads(then, self.blocks)
            ends.append(seconds[0, point] + rest._held(splits, rest._late(splits)).min())
        return float(min(ends))


def _after(loads: Loads, ended: float, passed: float) -> dict[Role, Load]:
    """Loads once a share of the policy's responses has ended, none of them judged. What is left of a role's requests
    has the same shape as before, `1 - passed` as long."""
    policy, rest = loads[POLICY], 1 - passed
    count = policy.requests + policy.coming
    mean = (policy.requests * policy.tokens + policy.coming * policy.length) / count
    then = {
        role: replace(load, requests=round(load.requests + load.coming * ended), coming=load.coming * (1 - ended))
        for role, load in loads.items()
    }
    then[POLICY] = replace(
        policy,
        requests=math.ceil(count * (1 - ended)) if rest else 0,
        coming=0.0,
        tokens=mean * rest,
        longest=max(policy.longest, mean) * rest,
    )
    return then


# --- modes -----------------------------------------------------------------------------------------------------------


def text(loads: Loads, before: Split, now: float, after: Split, then: float, switching: float) -> str:
    """One line for a decision: what was measured, what was predicted, what is done."""
    measured = "; ".join(f"{role} {_measured(load)}" for role, load in loads.items())
    kept = f"{_words(before)} {f'ends in {now:.3g} s' if np.isfinite(now) else 'never ends'}"
    change = "kept" if before == after else f"now {_words(after)}: {then:.3g} s, switching takes {switching:.2g} s"
    return f"{measured}; {kept}; {change}"


def _measured(load: Load) -> str:
    here = f"{load.requests} requests x {load.tokens:.0f} tokens" if load.requests else ""
    coming = f"{load.coming:.0f} coming x {load.length:.0f} tokens" if load.coming >= 1 else ""
    return " + ".join(filter(None, (here, coming))) or "idle"


def _words(split: Split) -> str:
    return " + ".join(f"{role} {count}" for role, count in split.items())


def _dynamic(given: Split, parameters: Mapping[Role, float]) -> Mode:
    def start(blocks: int, loads: Loads | None, before: Split | None, switching: float) -> Choice:
        if loads is None:
            share = 1 if blocks >= len(parameters) else 0  # with fewer blocks than roles, they take turns
            split = {role: share for role in parameters} | {POLICY: blocks - share * (len(parameters) - 1)}
            why = "one block per judge" if share else "the judges' turn comes later"
            return Choice(split=split, seconds=0.0, why=f"nothing measured yet; {_words(split)}: {why}")
        forecast = Forecast(loads=loads, blocks=blocks, hedge=HEDGE)
        best, seconds = forecast.best(np.vstack([_spreads(loads, blocks), _row({POLICY: blocks}, loads)]))
        if before is None or sum(before.values()) != blocks:
            return Choice(split=best, seconds=seconds, why=text(loads, best, seconds, best, seconds, switching))
        kept = float(forecast.seconds(_row(before, loads))[0])
        if np.isfinite(kept) and kept - seconds <= switching + MARGIN * kept:
            return Choice(split=before, seconds=kept, why=text(loads, before, kept, before, kept, switching))
        return Choice(split=best, seconds=seconds, why=text(loads, before, kept, best, seconds, switching))

    return Mode(start=start, look=_look)


def _look(split: Split, loads: Loads, switching: float) -> Choice | None:
    """Move blocks where the phase then ends sooner by more than the switching and the margin; where the policy has
    put off giving any away, once waiting gains nothing more."""
    before, blocks = _row(split, loads), sum(split.values())
    forecast = Forecast(loads=loads, blocks=blocks, switching=switching, before=before[0], hedge=HEDGE)
    if blocks < forecast.working:
        return _serial(split, loads, switching)
    now = float(forecast.seconds(before)[0])
    best, seconds = forecast.best(np.vstack([before, _spreads(loads, blocks)]))
    put_off = forecast.working > 1 and split.get(POLICY) == blocks
    if best == dict(split) or (np.isfinite(now) and now - seconds <= (0.0 if put_off else switching + MARGIN * now)):
        return None
    return Choice(split=best, seconds=seconds, why=text(loads, split, now, best, seconds, switching))


def _serial(split: Split, loads: Loads, switching: float) -> Choice | None:
    """One role at a time: who holds the blocks keeps them while anything is at its engines."""
    holder = max(split, key=lambda role: split[role])
    waiting = {role: _block_seconds(load) for role, load in loads.items() if load.requests}
    if loads[holder].requests or not waiting:
        return None
    judges = [role for role in waiting if role != POLICY]
    taker = max(judges, key=lambda role: waiting[role]) if judges else POLICY
    blocks = sum(split.values())
    why = f"{holder} has nothing at its engines, {taker} {_measured(loads[taker])}; now {taker} {blocks}"
    return Choice(split={role: blocks * (role == taker) for role in split}, seconds=waiting[taker] / blocks, why=why)


def _standing(words: str, choose: Callable[[int], Split]) -> Mode:
    """A split that does not depend on what is measured."""

    def start(blocks: int, loads: Loads | None, before: Split | None, switching: float) -> Choice:
        split = choose(blocks)
        seconds = float(Forecast(loads=loads, blocks=blocks).seconds(_row(split, loads))[0]) if loads else 0.0
        return Choice(split=split, seconds=seconds, why=f"{_words(split)}: {words}")

    return Mode(start=start)


def _colocated(given: Split, parameters: Mapping[Role, float]) -> Mode:
    phases = _standing("serial phases", lambda blocks: {role: blocks * (role == POLICY) for role in parameters})
    return replace(phases, look=_serial)


MODES: Mapping[str, Callable[[Split, Mapping[Role, float]], Mode]] = {
    "colocated": _colocated,
    "partial": lambda given, parameters: _standing("as given", lambda blocks: given),
    "weighted": lambda given, parameters: _standing("by parameters", lambda blocks: apportion(blocks, parameters)),
    "dynamic": _dynamic,
    "disaggregated": _dynamic,
}

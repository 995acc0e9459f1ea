"""Who gets which share of the slots while responses are drawn and judged: pure functions of what was measured."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

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
    longest: float  # tokens the longest request has still to sample
    prefix: float  # mean tokens read anew where a request moves: its prompt, and the response so far
    speed: Speed


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
    from the last ones or None in the first, split before or None, seconds of switching a block) -> what to begin with.
    `look` is asked every so often within one: (split now, loads now, seconds of switching a block) -> what to change
    to, or None. A mode without `look` never moves within a step."""

    start: Callable[[int, Loads | None, Split | None, float], Choice]
    look: Callable[[Split, Loads, float], Choice | None] | None = None


MARGIN = 0.05
"""Share of the predicted seconds that a change must gain beyond the seconds of switching; less is within the error of
what is measured and predicted."""
LATER = 0.02
"""Share of the predicted seconds that putting a change off must gain; else it would be put off for ever."""

_FULL = np.array([0, 0.33, 0.67, *[1] * 13])
_PASSED = np.array([0, 0, 0, *np.linspace(0, 1, 13) ** 2])
"""Points of a phase: shares of the queue admitted, and then of the longest request's steps passed."""
_HANDOVERS = (2, 4, 6, 8, 10, 12, 15)
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
    longest = np.where((requests > 1) | (requests >= count), max(load.longest, mean), mean)
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
    left = (1 - full) * queue + running * (1 - passed) ** np.maximum(ratio - 1, 1e-9)
    ended = 1 - left / np.maximum(each, 1e-9)
    idle = requests <= 0
    seconds = np.where(idle, 0.0, np.where(blocks > 0, seconds, np.inf))
    return seconds, np.where(idle, 1.0, ended)


def _fixed(loads: Loads, splits: Array, late: Array) -> Array:
    """Seconds to the end of the phase under each of `splits` [C, roles], held to the end. `late` [C, roles] is how much
    later each role gets going. A judge's end is the latest of: what was to do when some response ended, done without
    a pause from there."""
    policy, at = loads[POLICY], list(loads).index(POLICY)
    blocks = splits[:, at, None]
    requests = np.full_like(blocks, policy.requests + policy.coming)
    seconds, ended = _drain(policy, requests, np.full_like(blocks, policy.coming), blocks, _FULL, _PASSED)
    seconds = seconds + late[:, at, None]
    end = seconds[:, -1]
    for i, (role, load) in enumerate(loads.items()):
        if role == POLICY or load.requests + load.coming <= 0:
            continue
        coming = np.maximum(load.coming * (1 - ended), min(load.coming, 1.0))
        left = coming.copy()
        left[:, 0] = load.requests + load.coming
        done, _ = _drain(load, left, coming, splits[:, i, None], _FULL[-1:], _PASSED[-1:])
        begun = np.where(_FULL + _PASSED == 0, 0.0, seconds) + late[:, i, None]
        end = np.maximum(end, (begun + done).max(axis=1))
    return end


def _late(loads: Loads, before: Array, after: Array, switching: float) -> Array:
    """Seconds [C, roles] by which a change holds each role up: new blocks come after `switching`, and what ran on lost
    ones is read anew on the others."""
    late: Array = switching * np.maximum(after - before, 0) / np.maximum(after, 1)
    for i, load in enumerate(loads.values()):
        speed = load.speed
        running = min(load.requests, before[i] * speed.engines * speed.capacity)
        moved = running * np.maximum(before[i] - after[:, i], 0) / max(before[i], 1)
        late[:, i] += moved * load.prefix * speed.prefill / (np.maximum(after[:, i], 1) * speed.engines)
    return late


def _spreads(loads: Loads, blocks: int) -> Array:
    """Splits [C, roles] to choose from: a share for the policy, the rest to the judges by their work."""
    work = {role: _block_seconds(load) for role, load in loads.items()}
    judges = {role: seconds for role, seconds in work.items() if role != POLICY and seconds > 0}
    most = blocks - len(judges)
    counts = range(most + 1) if most < len(_SHARES) else np.rint(_SHARES * most).astype(int)
    own = [max(int(count), 1) if work[POLICY] > 0 else 0 for count in counts]
    found = [{POLICY: count, **apportion(blocks - count, judges)} for count in own if judges and count <= most]
    return np.array([[split.get(role, 0) for role in loads] for split in found or [{POLICY: blocks}]], dtype=np.float64)


def _later(loads: Loads, blocks: int, switching: float) -> float:
    """Seconds to the end where the policy holds all blocks for now, and gives some away at the best moment."""
    policy, holding = loads[POLICY], np.array([float(blocks) * (role == POLICY) for role in loads])
    count = np.full((1, 1), policy.requests + policy.coming)
    seconds, ended = _drain(policy, count, np.full((1, 1), policy.coming), holding.max(), _FULL, _PASSED)
    mean = (policy.requests * policy.tokens + policy.coming * policy.length) / max(count.item(), 1e-9)
    best = np.inf
    for point in _HANDOVERS:
        rest = 1 - _PASSED[point]
        then = {
            role: replace(
                load,
                requests=round(load.requests + load.coming * ended[0, point]),
                coming=load.coming * (1 - ended[0, point]),
            )
            for role, load in loads.items()
        }
        then[POLICY] = replace(
            policy,
            requests=math.ceil(count.item() * (1 - ended[0, point])) if rest else 0,
            coming=0.0,
            tokens=mean * rest,
            longest=max(policy.longest, mean) * rest,
        )
        splits = _spreads(then, blocks)
        best = min(best, seconds[0, point] + _fixed(then, splits, _late(then, holding, splits, switching)).min())
    return float(best)


def _seconds(loads: Loads, splits: Array, before: Array | None, switching: float) -> Array:
    """Seconds predicted to the end of the phase under `splits` [C, roles]; without `before` nothing is a change.

    All blocks to the policy stands for giving some away later. Judges that have requests do not lose all blocks so.
    """
    late = np.zeros_like(splits) if before is None else _late(loads, before, splits, switching)
    seconds = _fixed(loads, splits, late)
    at, blocks = list(loads).index(POLICY), splits[0].sum()
    alone = splits[:, at] == blocks
    begun = before is not None and before[at] < blocks and any(loads[r].requests for r in loads if r != POLICY)
    if alone.any() and not begun and _working(loads) > 1 and loads[POLICY].requests + loads[POLICY].coming > 0:
        seconds[alone] = late[alone, at] + (1 + LATER) * _later(loads, int(blocks), switching)
    return seconds


def _working(loads: Loads) -> int:
    return sum(load.requests + load.coming > 0 for load in loads.values())


def _moves(split: Array) -> Array:
    """Splits [C, roles] that differ from `split` by 1, 2, 4, ... or all blocks of a role given to another."""
    found = []
    for giver, taker in itertools.permutations(range(len(split)), 2):
        for size in {int(split[giver]), *(1 << i for i in range(int(split[giver]).bit_length()))} - {0}:
            found.append(split.copy())
            found[-1][[giver, taker]] += -size, size
    return np.array(found)


def _best(loads: Loads, splits: Array, before: Array | None, switching: float) -> tuple[dict[Role, int], float]:
    """The best split found from the best of `splits` by moves that help, and its seconds."""
    best, seconds, found = splits[0], np.inf, splits
    while len(found):
        predicted = _seconds(loads, found, before, switching)
        index = int(predicted.argmin())
        if not predicted[index] < seconds * (1 - 1e-3):
            break
        best, seconds = found[index], float(predicted[index])
        found = _moves(best)
    return {role: int(count) for role, count in zip(loads, best, strict=True)}, float(seconds)


def _row(split: Split, loads: Loads) -> Array:
    return np.array([[split.get(role, 0) for role in loads]], dtype=np.float64)


# --- modes -----------------------------------------------------------------------------------------------------------


def text(loads: Loads, before: Split, now: float, after: Split, then: float, switching: float) -> str:
    """One line for a decision: what was measured, what was predicted, what is done."""
    roles = ", ".join(
        f"{role} has {load.requests} requests of {load.tokens:.0f} tokens"
        + (f" and {load.coming:.0f} coming of {load.length:.0f}" if load.coming >= 1 else "")
        for role, load in loads.items()
    )
    kept = f"{_words(before)} would end in {now:.3g} s" if np.isfinite(now) else f"{_words(before)} would never end"
    return f"{roles}; {kept}, {_words(after)} in {then:.3g} s; switching takes {switching:.2g} s"


def _words(split: Split) -> str:
    return " + ".join(f"{count} {role}" for role, count in split.items())


def _dynamic(given: Split, parameters: Mapping[Role, float]) -> Mode:
    def start(blocks: int, loads: Loads | None, before: Split | None, switching: float) -> Choice:
        if loads is None:
            split = {role: 1 for role in parameters} | {POLICY: blocks - len(parameters) + 1}
            return Choice(split=split, seconds=0.0, why="nothing is measured yet: a block for each judge")
        held = {role: blocks * (role == POLICY) for role in loads}
        splits = np.vstack([_spreads(loads, blocks), _row(held, loads)])
        best, seconds = _best(loads, splits, None, switching)
        if before is None or sum(before.values()) != blocks:
            return Choice(split=best, seconds=seconds, why=text(loads, best, seconds, best, seconds, switching))
        kept = float(_seconds(loads, _row(before, loads), None, switching)[0])
        change = kept - seconds > switching + MARGIN * kept if np.isfinite(kept) else True
        why = text(loads, before, kept, best, seconds, switching)
        return Choice(split=best if change else before, seconds=seconds if change else kept, why=why)

    return Mode(start=start, look=_look)


def _look(split: Split, loads: Loads, switching: float) -> Choice | None:
    """Move blocks where the phase then ends sooner by more than the switching and the margin; where the policy has
    put off giving any away, once waiting gains nothing more."""
    blocks, working = sum(split.values()), _working(loads)
    if blocks < working:
        return _serial(split, loads, switching)
    before = _row(split, loads)
    now = float(_seconds(loads, before, before[0], switching)[0])
    best, seconds = _best(loads, np.vstack([before, _spreads(loads, blocks)]), before[0], switching)
    put_off = working > 1 and split.get(POLICY) == blocks
    if best == dict(split) or (np.isfinite(now) and now - seconds <= (0.0 if put_off else switching + MARGIN * now)):
        return None
    return Choice(split=best, seconds=seconds, why=text(loads, split, now, best, seconds, switching))


def _serial(split: Split, loads: Loads, switching: float) -> Choice | None:
    """One role at a time: who holds the blocks keeps them while anything is at its engines."""
    holder = max(split, key=lambda role: split[role])
    if loads[holder].requests:
        return None
    waiting = {role: _block_seconds(load) for role, load in loads.items() if load.requests}
    judges = [role for role in waiting if role != POLICY]
    if not waiting:
        return None
    taker = max(judges, key=lambda role: waiting[role]) if judges else POLICY
    blocks = sum(split.values())
    after = {role: blocks * (role == taker) for role in split}
    why = f"{holder} has nothing at its engines, {taker} has {loads[taker].requests} requests: all blocks to {taker}"
    return Choice(split=after, seconds=waiting[taker] / blocks, why=why)


def _fixed_split(words: str, choose: Callable[[int], Split]) -> Mode:
    def start(blocks: int, loads: Loads | None, before: Split | None, switching: float) -> Choice:
        split = choose(blocks)
        seconds = 0.0 if loads is None else float(_seconds(loads, _row(split, loads), None, switching)[0])
        return Choice(split=split, seconds=seconds, why=f"{_words(split)}: {words}")

    return Mode(start=start)


def _colocated(given: Split, parameters: Mapping[Role, float]) -> Mode:
    held = _fixed_split("serial phases", lambda blocks: {role: blocks * (role == POLICY) for role in parameters})
    return Mode(start=held.start, look=_serial)


MODES: Mapping[str, Callable[[Split, Mapping[Role, float]], Mode]] = {
    "colocated": _colocated,
    "partial": lambda given, parameters: _fixed_split("as given", lambda blocks: given),
    "weighted": lambda given, parameters: _fixed_split("by parameters", lambda blocks: apportion(blocks, parameters)),
    "dynamic": _dynamic,
    "disaggregated": _dynamic,
}

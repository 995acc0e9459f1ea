"""A rollout and its judging in small: responses end one by one on the blocks that their role holds.

The independent reference of the tests of the policy: every length is drawn, engines of a role share its requests
evenly, blocks that change hands stand still for a while, and what moves to others is read anew.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from yatt.placement.forecast import Load, Loads, Speed, block_seconds
from yatt.placement.plan import POLICY
from yatt.placement.policy import Choice

Look = Callable[[Mapping[str, int], Loads, float], Choice | None]


def lognormal(count: int, median: float, p99: float, seed: int) -> list[float]:
    """Lengths, cut at one and a half times the 99th percentile."""
    drawn = np.random.default_rng(seed).standard_normal(count)
    return np.clip(median * (p99 / median) ** (drawn / 2.3263), 1, 1.5 * p99).tolist()


@dataclass
class Work:
    """What one role has to do: tokens of each response, and tokens read before one is begun."""

    speed: Speed
    lengths: Sequence[float]
    prompt: float = 0.0


@dataclass
class Side:
    """One role's engines. `steps` counts decode steps; a running request ends at a step."""

    work: Work
    blocks: float = 0.0
    waiting: deque[tuple[float, float]] = field(default_factory=deque)  # tokens to sample, tokens to read
    running: list[float] = field(default_factory=list)
    steps: float = 0.0
    reading: float = 0.0  # seconds of one engine

    @property
    def engines(self) -> float:
        return self.blocks * self.work.speed.engines

    def admit(self) -> None:
        while self.waiting and len(self.running) < self.engines * self.work.speed.capacity:
            tokens, read = self.waiting.popleft()
            heapq.heappush(self.running, self.steps + tokens)
            self.reading += read * self.work.speed.prefill

    def step(self) -> float:
        """Seconds of a decode step."""
        batch = max(1.0, len(self.running) / self.engines)
        return self.work.speed.step + self.work.speed.per_request * batch

    def next_end(self) -> float:
        if not self.running or not self.engines:
            return np.inf
        return self.reading / self.engines + max(0.0, self.running[0] - self.steps) * self.step()

    def advance(self, seconds: float) -> int:
        """Requests that have ended after so long, of which at most one length at a time."""
        if not self.engines or not self.running:
            return 0
        read = min(seconds, self.reading / self.engines)
        self.reading = max(0.0, self.reading - read * self.engines)
        self.steps += (seconds - read) / self.step()
        ended = 0
        while self.running and self.running[0] <= self.steps + 1e-6:
            heapq.heappop(self.running)
            ended += 1
        self.admit()
        return ended

    def resize(self, blocks: float) -> None:
        if self.blocks:  # what runs on lost blocks moves, or a share of it to new ones
            moved = len(self.running) * (1 - min(blocks, self.blocks) / max(blocks, self.blocks))
            self.reading += moved * self.work.prompt * self.work.speed.prefill
        self.blocks = blocks
        room = int(self.engines * self.work.speed.capacity)
        random.Random(len(self.running)).shuffle(self.running)
        self.waiting.extendleft((end - self.steps, self.work.prompt) for end in self.running[room:])
        del self.running[room:]
        heapq.heapify(self.running)
        self.admit()


@dataclass
class Measure:
    """How loads are seen: each number off by up to `noise`; `blind` where only the mean length is known, as at a
    director that does not know what a request has still to sample."""

    noise: float = 0.0
    blind: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def _about(self, value: float) -> float:
        return value * (1 + self._random.uniform(-self.noise, self.noise))

    def load(self, work: Work, left: Sequence[float], coming: Sequence[float], unread: float = 0.0) -> Load:
        mean = float(np.mean(work.lengths))
        tokens, longest = float(np.mean(left)) if left else 0.0, max([*left, *coming], default=0.0)
        if self.blind:
            tokens, longest = mean, min(max(work.lengths), 4 * mean)
        speed = replace(work.speed, step=self._about(work.speed.step), per_request=self._about(work.speed.per_request))
        return Load(
            requests=len(left),
            coming=len(coming),
            tokens=self._about(tokens),
            length=self._about(mean),
            longest=self._about(longest),
            prefix=self._about(work.prompt),
            unread=min(self._about(unread), len(left)),
            speed=speed,
        )


def whole(works: Mapping[str, Work], measure: Measure | None = None) -> Loads:
    """The loads of a step before it begins."""
    see = measure or Measure()
    return {
        role: see.load(work, *((work.lengths, []) if role == POLICY else ([], work.lengths)))
        for role, work in works.items()
    }


def play(
    works: Mapping[str, Work],
    split: Mapping[str, int],
    look: Look | None = None,
    *,
    every: float = 1.0,
    switching: float = 0.0,
    measure: Measure | None = None,
) -> tuple[float, list[dict[str, int]]]:
    """Seconds of the whole phase, begun with `split`, and the splits it went through. Raises AssertionError where it
    would never end."""
    see = measure or Measure()
    sides = {role: Side(work, split.get(role, 0)) for role, work in works.items()}
    to_come = {role: list(work.lengths) for role, work in works.items() if role != POLICY}
    per_response = {role: len(works[role].lengths) // len(works[POLICY].lengths) for role in to_come}
    sides[POLICY].waiting.extend((tokens, works[POLICY].prompt) for tokens in works[POLICY].lengths)
    sides[POLICY].admit()
    now, next_look, splits, arriving = 0.0, every, [dict(split)], list[tuple[float, str, int]]()
    while any(side.waiting or side.running for side in sides.values()):
        events = [side.next_end() for side in sides.values()] + [at - now for at, _, _ in arriving]
        seconds = max(0.0, min(events + ([next_look - now] if look else [])))
        assert np.isfinite(seconds) and len(splits) < 1000 and now < 1e7, f"it never ends: {splits[-5:]}"
        now += seconds
        ended = {role: side.advance(seconds) for role, side in sides.items()}
        for role, coming in to_come.items():
            for _ in range(ended[POLICY] * per_response[role]):
                sides[role].waiting.append((coming.pop(), works[role].prompt))
            sides[role].admit()
        for at, role, blocks in [one for one in arriving if one[0] <= now + 1e-9]:
            arriving.remove((at, role, blocks))
            sides[role].resize(sides[role].blocks + blocks)
        if look is None or now < next_look - 1e-9:
            continue
        next_look = now + every
        loads = {}
        for role, side in sides.items():
            left = [end - side.steps for end in side.running] + [tokens for tokens, _ in side.waiting]
            debt = side.reading / (side.work.prompt * side.work.speed.prefill) if side.reading else 0.0
            loads[role] = see.load(side.work, left, to_come.get(role, []), len(side.waiting) + debt)
        choice = None if arriving else look(splits[-1], loads, switching)
        if choice is not None:
            for role, side in sides.items():
                change = choice.split[role] - splits[-1].get(role, 0)
                if change < 0:
                    side.resize(side.blocks + change)
                elif change:
                    arriving.append((now + switching, role, change))
            splits.append(dict(choice.split))
    return now, splits


def bound(loads: Loads, blocks: int) -> float:
    """Seconds that no placement goes below: all work at full batches on all blocks, or the longest response and its
    judgement with an engine for itself."""
    work = sum(block_seconds(load) for load in loads.values()) / blocks
    judged = [_single(load, load.length, load.prefix) for role, load in loads.items() if role != POLICY]
    longest = loads[POLICY].longest
    return max(work, _single(loads[POLICY], longest, 0.0) + max(judged, default=0.0))


def _single(load: Load, tokens: float, read: float) -> float:
    return tokens * (load.speed.step + load.speed.per_request) + read * load.speed.prefill

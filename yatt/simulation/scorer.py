"""Rewards out of a hash, after a while: what rules take, and what judges' engines take to answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from yatt.config.schema import JudgeConfig
from yatt.controller.router import Router
from yatt.simulation.costs import Costs
from yatt.simulation.engine import PROMPT
from yatt.simulation.lengths import uniform
from yatt.types import Request, SampleKey, SamplingParams, Score, Trajectory

OnScored = Callable[[SampleKey, Score], None]


class SimulatedJudge:
    """A judge as one controller asks it: through the router of its engines. It reads its template, the question and the
    response; nothing of what it answers matters but how long it is. `siblings` are the responses of a prompt."""

    def __init__(self, judge: JudgeConfig, router: Router, *, template_tokens: int, siblings: int) -> None:
        self._judge, self._router = judge, router
        self._template, self._siblings = template_tokens, siblings
        self._params = SamplingParams(max_tokens=judge.max_tokens, temperature=judge.temperature)

    async def ask(self, trajectory: Trajectory) -> None:
        """Returns once all judgements of this response are there."""
        tokens = np.full(self._template + len(trajectory.tokens), PROMPT, dtype=np.int32)
        uid = trajectory.prompt.uid * self._siblings + trajectory.sibling
        requests = [
            Request(key=SampleKey(uid, judgement), tokens=tokens, params=self._params, seed=0)
            for judgement in range(self._judge.judgements)
        ]
        async for _ in self._router.generate(requests):
            pass


class SimulatedScorer:
    """Implements `yatt.protocols.Scorer`. All siblings get the same reward in a share `equal_groups` of the
    groups; in the others they differ. A score that hangs is cut off after `timeout`, as the reward workers do, and the
    others of its call are given. `parts` are the names of a reward's parts, each with its value."""

    def __init__(
        self,
        costs: Costs,
        *,
        timeout: float,
        seed: int,
        on_scored: OnScored,
        judges: Sequence[SimulatedJudge] = (),
        parts: Iterable[str] = (),
    ) -> None:
        self._seconds, self._equal = costs.scorer.seconds, costs.workload.equal_groups
        self._timeout, self._seed, self._on_scored, self._judges = timeout, seed, on_scored, judges
        self._parts = tuple(parts)
        self._asking: set[asyncio.Future[Any]] = set()
        self._hangs = self._left = False

    async def score(self, trajectories: Sequence[Trajectory]) -> list[Score]:
        if not trajectories:
            return []
        hung, self._hangs = int(self._hangs), False
        await asyncio.sleep(self._timeout if hung else self._seconds)
        if self._judges and trajectories[hung:]:
            await self._ask(trajectories[hung:])
        scores = [TIMED_OUT] * hung + [self._judge(t) for t in trajectories[hung:]]
        for trajectory, score in zip(trajectories, [] if self._left else scores, strict=False):
            self._on_scored(SampleKey(trajectory.prompt.uid, trajectory.sibling), score)
        return scores

    async def close(self) -> None: ...

    def leave(self) -> None:
        """Its controller is gone: nobody hears what is still being judged, and judges are not asked any more."""
        self._left = True
        for asking in self._asking:
            asking.cancel()

    def hang(self) -> None:
        """The first score of the next call does not come in time."""
        self._hangs = True

    async def _ask(self, trajectories: Sequence[Trajectory]) -> None:
        asking = asyncio.gather(*(judge.ask(t) for t in trajectories for judge in self._judges))
        self._asking.add(asking)
        try:
            await asking
        finally:
            self._asking.discard(asking)

    def _judge(self, trajectory: Trajectory) -> Score:
        uid = trajectory.prompt.uid
        equal = self._equal and uniform(self._seed, "equal", uid) < self._equal
        value = 1.0 if equal else uniform(self._seed, "reward", uid, trajectory.sibling)
        return Score(status="ok", value=value, parts=dict.fromkeys(self._parts, value))


TIMED_OUT = Score(status="timed_out", detail="hung")

"""Rewards out of a hash, after a while."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from yatt.simulation.costs import Costs
from yatt.simulation.lengths import uniform
from yatt.types import SampleKey, Score, Trajectory

OnScored = Callable[[SampleKey, Score], None]


class SimulatedScorer:
    """Implements `yatt.protocols.Scorer`. All siblings get the same reward in a share `equal_groups` of the
    groups; in the others they differ. A score that hangs is cut off after `timeout`, as the reward workers do."""

    def __init__(self, costs: Costs, *, timeout: float, seed: int, on_scored: OnScored) -> None:
        self._seconds, self._equal = costs.scorer.seconds, costs.workload.equal_groups
        self._timeout, self._seed, self._on_scored = timeout, seed, on_scored
        self._hangs = self._left = False

    async def score(self, trajectories: Sequence[Trajectory]) -> list[Score]:
        hangs, self._hangs = self._hangs, False
        await asyncio.sleep(self._timeout if hangs else self._seconds)
        scores = [TIMED_OUT if hangs else self._judge(t) for t in trajectories]
        for trajectory, score in zip(trajectories, [] if self._left else scores, strict=False):
            self._on_scored(SampleKey(trajectory.prompt.uid, trajectory.sibling), score)
        return scores

    async def close(self) -> None: ...

    def leave(self) -> None:
        """Its controller is gone: nobody hears what is still being judged."""
        self._left = True

    def hang(self) -> None:
        """The next call does not come back in time."""
        self._hangs = True

    def _judge(self, trajectory: Trajectory) -> Score:
        uid = trajectory.prompt.uid
        if self._equal and uniform(self._seed, "equal", uid) < self._equal:
            return Score(status="ok", value=1.0)
        return Score(status="ok", value=uniform(self._seed, "reward", uid, trajectory.sibling))


TIMED_OUT = Score(status="timed_out", detail="hung")

"""Conversations of which only the time matters: so many turns, and seconds between them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from yatt.protocols import Clock, Talk
from yatt.simulation.costs import Lengths, Workload
from yatt.simulation.engine import HEARD
from yatt.simulation.lengths import uniform
from yatt.types import Answer, Message, Score, Tools

_NORMAL = NormalDist()


class SimulatedEnvironment:
    """Implements `yatt.protocols.Environment`: it says something after each turn but the last, as long afterwards as a
    tool may take. Its rewards are the run's."""

    def __init__(self, work: Workload, seed: int, clock: Clock) -> None:
        self._work, self._seed, self._clock = work, seed, clock
        self._said = np.full(work.outside_tokens, HEARD, dtype=np.int32)

    async def play(self, talk: Talk) -> Score | None:
        tokens = talk.prompt.tokens
        for turn in range(self._work.turns):
            if turn:
                await self._clock.sleep(self._seconds(talk, turn))
            said = await talk.complete(tokens)  # type: ignore[arg-type]
            tokens = np.concatenate([tokens, said.tokens, self._said])
        return None

    async def close(self) -> None: ...

    def _seconds(self, talk: Talk, turn: int) -> float:
        outside: Lengths | None = self._work.outside
        if outside is None:
            return 0.0
        drawn = uniform(self._seed, "outside", talk.prompt.uid, talk.sibling, turn)
        return outside.median * math.exp(outside.sigma * _NORMAL.inv_cdf(drawn))


class SilentChat:
    """Implements `yatt.protocols.Chat` for tokens that say nothing."""

    def ids(self, tokens: Sequence[int]) -> np.ndarray:
        return np.asarray(tokens, dtype=np.int32)

    def opening(self, messages: Sequence[Message], tools: Tools = ()) -> np.ndarray:
        raise NotImplementedError("simulated conversations have no messages")

    def answer(self, tokens: np.ndarray, tools: Tools = ()) -> Answer:
        return Answer(message={"role": "assistant", "content": ""}, text="")

    def suffix(
        self,
        messages: Sequence[Message],
        answer: Answer,
        sampled: np.ndarray,
        new: Sequence[Message],
        tools: Tools = (),
    ) -> np.ndarray | None:
        raise NotImplementedError("simulated conversations have no messages")

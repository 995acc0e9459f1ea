"""Tasks of reasoning-gym, with more than one attempt."""

from __future__ import annotations

from typing import Any

from yatt.reward.reasoning_gym import reasoning_gym as score


class ReasoningGym:
    """A row of `data.tasks`, with `attempts` at its answer: the policy is told that one is wrong. The reward is the
    task's own score of the best."""

    def __init__(self, attempts: int = 2) -> None:
        self._left, self._best = attempts, 0.0

    def reset(self, **row: Any) -> None:
        self._row = row

    def step(self, answer: str) -> str | None:
        self._best = max(self._best, score(answer, self._row))
        self._left -= 1
        return None if self._best >= 1.0 or not self._left else "That is not right. Try again."

    def reward(self) -> float:
        return self._best

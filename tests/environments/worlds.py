"""Environments of a user's, good and bad ones."""

from __future__ import annotations

import os
import time
from typing import Any


class Sums:
    """A calculator; the reward is whether the answer was found with it."""

    def __init__(self, bonus: float = 0.0) -> None:
        self._bonus, self._results = bonus, [""]

    def reset(self, answer: str) -> None:
        self._wanted = answer

    def add(self, a: int, b: int) -> str:
        """Add two numbers.

        Args:
            a: The first.
            b: The second.
        """
        self._results.append(str(a + b))
        return self._results[-1]

    async def divide(self, a: int, b: int) -> float:
        """Divide two numbers.

        Args:
            a: The first.
            b: The second.
        """
        return a / b

    def crash(self) -> str:
        """Kill the process."""
        os.kill(os.getpid(), 9)
        return ""

    def hang(self) -> str:
        """Never return."""
        time.sleep(1000)
        return ""

    def reward(self) -> float:
        return float(self._results[-1] == self._wanted) + self._bonus


class Echo:
    """Says what the policy said, three times, with a reward for each turn."""

    def reset(self, prompt: str) -> list[dict[str, str]]:
        self._left = 3
        return [{"role": "user", "content": f"say {prompt}"}]

    def step(self, answer: str) -> Any:
        self._left -= 1
        return (f"you said {answer}" if self._left else None), 0.5


class Untyped:
    def tool(self, a) -> str:  # type: ignore[no-untyped-def]
        """Do it."""
        return str(a)


class Undocumented:
    def tool(self, a: int) -> str:
        return str(a)


class Nothing:
    pass


class Numbers:
    def reset(self) -> int:
        return 3

    def step(self, answer: str) -> None:
        return None


class Raises:
    def step(self, answer: str) -> str:
        raise OSError("the sandbox is gone")


async def two(session: Any, greeting: str = "hi") -> dict[str, float]:
    """Two turns, the second in a row of its own."""
    first = await session.chat([{"role": "user", "content": greeting}])
    second = await session.chat([{"role": "user", "content": f"again: {first.content}"}])
    done = await session.complete([5, 6, 7])
    return {"reward": float(len(first.content)), "second": float(len(second.content)), "ids": float(len(done.tokens))}


async def endless(session: Any) -> float:
    messages = [{"role": "user", "content": "go"}]
    while True:
        reply = await session.chat(messages)
        messages += [reply.message, {"role": "user", "content": "on"}]


def plain(session: Any) -> float:
    return 0.0

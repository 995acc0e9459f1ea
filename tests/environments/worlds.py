"""Environments of a user's, good and bad ones."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from typing import Any

from examples.agent.calculator import TOOLS, Products


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


async def mistaken(session: Any) -> float:
    """Asks for what cannot be, and then for what can."""
    wrong: list[Any] = [
        lambda: session.chat("hello"),
        lambda: session.chat([]),
        lambda: session.chat([{"content": "x"}]),
        lambda: session.chat([{"role": "user", "content": 7}]),
        lambda: session.chat([{"role": "user", "content": "x"}], max_tokens=-1),
        lambda: session.complete([]),
        lambda: session.complete([1, 10**9]),
    ]
    caught = 0
    for ask in wrong:
        try:
            await ask()
        except ValueError:
            caught += 1
    await session.chat([{"role": "user", "content": "x"}])
    return float(caught)


async def stubborn(session: Any) -> float:
    """Asks on, whatever it is told."""
    while True:
        with contextlib.suppress(Exception):
            await session.chat([{"role": "user", "content": "go"}])


async def generous(session: Any) -> float:
    """Gives rewards for ever."""
    await session.chat([{"role": "user", "content": "go"}])
    while True:
        session.reward(0.1)
        await asyncio.sleep(0.001)


async def early(session: Any) -> float:
    session.reward(1.0)
    return 0.0


class NoNumber:
    def step(self, answer: str) -> Any:
        return "go on", float("nan")


async def products(session: Any) -> dict[str, float]:
    """The example's task, as a function."""
    world, messages = Products(), list(session.row["messages"])
    world.reset(session.row["answer"])
    while True:
        reply = await session.chat(messages, TOOLS)
        messages.append(reply.message)
        for call in reply.calls:
            said = world.calculate(**call["arguments"])
            messages.append({"role": "tool", "tool_call_id": call["id"], "content": said})
        if not reply.calls:
            world.step(reply.content)
            return world.reward()


BEGUN: set[int] = set()


async def crowd(session: Any) -> float:
    """How many begin at this moment."""
    me = session.row["sibling"]
    BEGUN.add(me)
    here = len(BEGUN)
    await asyncio.sleep(0.2)
    BEGUN.discard(me)
    await session.chat([{"role": "user", "content": "go"}])
    return float(here)

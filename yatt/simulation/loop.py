"""An asyncio event loop whose time jumps to the next timer. No threads, no sockets, no wall clock."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Coroutine
from types import CoroutineType
from typing import Any, TypeVar

from yatt.errors import BackendError

T = TypeVar("T")
NAMED = 12


class Stuck(BackendError):
    """Every task waits for something that nothing will bring about: a deadlock."""


class VirtualLoop(asyncio.BaseEventLoop):
    """Runs what is ready in the order it became so, then moves to the next timer; timers of one moment run in the order
    of the heap, which depends on nothing but the program."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        self._selector = self
        self._clock_resolution = math.ulp(0.0)
        self.set_debug(False)

    def time(self) -> float:
        return self._now

    def select(self, timeout: float | None) -> list[Any]:
        """What BaseEventLoop asks of a selector. Raises Stuck where there is neither a callback nor a timer left."""
        if timeout is None:
            raise Stuck(f"at {self._now:g} s all wait and no timer is left: {', '.join(waiting(self))}")
        if timeout > 0:
            # The timer's own time, not now + timeout: their sum may be off by a rounding, and so miss it.
            self._now = max(self._now, self._scheduled[0].when())
            self._clock_resolution = math.ulp(self._now)
        return []

    def _process_events(self, events: list[Any]) -> None:
        pass

    def _write_to_self(self) -> None:
        pass


class VirtualClock:
    """The time of the running virtual loop, from 0."""

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


def run(main: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run` in virtual time. Raises Stuck where `main` can never end."""
    with asyncio.Runner(loop_factory=VirtualLoop, debug=False) as runner:
        return runner.run(main)


def waiting(loop: asyncio.AbstractEventLoop) -> list[str]:
    """Where the unfinished tasks stand, alike ones counted, in alphabetical order."""
    places = Counter(_place(task.get_coro()) for task in asyncio.all_tasks(loop))
    named = [f"{place} ({count} tasks)" if count > 1 else place for place, count in sorted(places.items())]
    return [*named[:NAMED], *([f"and {len(named) - NAMED} more"] if len(named) > NAMED else [])]


def _place(coroutine: Any) -> str:
    """`Controller.step > Hub.gather, line 40`: the task's own function and the innermost one of this package's."""
    name = getattr(coroutine, "__qualname__", repr(coroutine))
    innermost, line = name, 0
    while isinstance(coroutine, CoroutineType):
        frame = coroutine.cr_frame
        if frame is not None and "asyncio" not in frame.f_code.co_filename:
            innermost, line = coroutine.__qualname__, frame.f_lineno
        coroutine = coroutine.cr_await
    return f"{name} > {innermost}, line {line}" if innermost != name else f"{name}, line {line}"

"""An asyncio event loop whose time jumps to the next timer. No threads, no sockets, no wall clock."""

from __future__ import annotations

import asyncio
import heapq
from collections import Counter, deque
from collections.abc import Callable, Coroutine
from contextvars import Context
from types import CoroutineType
from typing import Any, TypeVar, TypeVarTuple

from yatt.errors import BackendError

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
NAMED = 12


class Stuck(BackendError):
    """Every task waits for something that nothing will bring about: a deadlock."""


class VirtualLoop(asyncio.BaseEventLoop):
    """Runs what is ready in the order it became so; then time moves to the next timer. Timers of one moment run in the
    order they were set."""

    # BaseEventLoop's own.
    _ready: deque[asyncio.Handle]
    _stopping: bool

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._set = 0

    def time(self) -> float:
        return self._now

    def call_at(
        self, when: float, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        self._set += 1
        heapq.heappush(self._timers, (when, self._set, timer))
        return timer

    def _run_once(self) -> None:
        """BaseEventLoop's round, without a selector. Raises Stuck where nothing is ready and no timer is left."""
        ready, timers = self._ready, self._timers
        if not ready:
            while timers and (not ready or timers[0][0] <= self._now):
                when, _, timer = heapq.heappop(timers)
                if not timer.cancelled():
                    self._now = max(self._now, when)
                    ready.append(timer)
            if not ready and not self._stopping:
                raise Stuck(f"at {self._now:g} s all wait and no timer is left: {', '.join(waiting(self))}")
        for _ in range(len(ready)):
            handle = ready.popleft()
            if not handle.cancelled():
                handle._run()

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """It stays in the heap until its time."""

    def _write_to_self(self) -> None:
        """Nobody else is there to be woken up."""


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

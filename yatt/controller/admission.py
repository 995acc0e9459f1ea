"""How many requests each engine is given at once, and the queue of groups that wait for room."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from yatt.controller.fleet import Fleet
from yatt.errors import WaitTimeout
from yatt.types import Request, SampleKey


@dataclass(slots=True, eq=False)
class _Waiting:
    """A group that waits. `admitted` is set to False where it is aborted meanwhile."""

    requests: Sequence[Request]
    admitted: asyncio.Future[bool]


class Admission:
    """Gives each engine at most `limit` requests of this controller at a time. A group that the open engines together
    have no room for waits, first come, first served, for at most `timeout` seconds in which no response ends."""

    def __init__(self, fleet: Fleet, *, limit: int, timeout: float) -> None:
        self._fleet = fleet
        self.limit = limit
        self._timeout = timeout
        self.running = np.zeros(len(fleet), dtype=np.int64)  # [engines] requests sent and not come back
        self._queue: deque[_Waiting] = deque()
        self._promised = 0  # requests of groups that were admitted and have not been sent
        self._ended = 0  # responses, ever

    @property
    def room(self) -> npt.NDArray[np.int64]:
        """[engines] Requests that each may still be given; below 0 where `limit` had to be passed."""
        return self.limit - self.running

    async def admit(self, requests: Sequence[Request]) -> bool:
        """Wait until there is room for this group; False where it was aborted meanwhile. Raises WaitTimeout."""
        if not self._queue and self._fits(requests):
            return True
        waiting = _Waiting(requests, asyncio.get_running_loop().create_future())
        self._queue.append(waiting)
        try:
            while not waiting.admitted.done():
                ended = self._ended
                await asyncio.wait([waiting.admitted], timeout=self._timeout)
                if not waiting.admitted.done() and self._ended == ended:
                    raise WaitTimeout(
                        f"prompt {requests[0].key.uid} waited {self._timeout:g} s for one of {self._fleet.alive} "
                        "generators to have room, and no response ended"
                    )
            return waiting.admitted.result()
        finally:
            if waiting in self._queue:
                self._queue.remove(waiting)
            if waiting.admitted.done() and waiting.admitted.result():
                self._promised -= len(requests)

    def let_in(self) -> None:
        """Admit the groups at the head of the queue that there is room for now."""
        while self._queue and self._fits(self._queue[0].requests):
            waiting = self._queue.popleft()
            if not waiting.admitted.done():
                self._promised += len(waiting.requests)
                waiting.admitted.set_result(True)

    def abort(self, keys: Collection[SampleKey]) -> None:
        """Groups with one of these requests wait no longer, and are not admitted."""
        for waiting in list(self._queue):
            if not waiting.admitted.done() and waiting.requests[0].key in keys:
                waiting.admitted.set_result(False)
                self._queue.remove(waiting)

    def fail(self, error: Exception) -> None:
        """Raise this error in all that wait."""
        for waiting in self._queue:
            if not waiting.admitted.done():
                waiting.admitted.set_exception(error)

    def sent(self, engine: int, requests: int) -> None:
        self.running[engine] += requests

    def came_back(self, engine: int, requests: int) -> None:
        """Requests have left the engine, ended or not: others are let in."""
        self.running[engine] -= requests
        self.let_in()

    def response_ended(self) -> None:
        """Those who wait have reason to go on waiting."""
        self._ended += 1

    def _fits(self, requests: Sequence[Request]) -> bool:
        """Whether the open engines have room for a group, split where it must be; for one that is larger than all they
        may be given, whether nothing is there. Where none is left, it waits for one to come back."""
        if not self._fleet.alive:
            return self._fleet.lost is not None  # its caller is told
        free = int(np.maximum(0, self.room[self._fleet.open]).sum()) - self._promised
        return free >= min(len(requests), self.limit * int(self._fleet.open.sum()))

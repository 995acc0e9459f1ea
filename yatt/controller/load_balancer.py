"""Which engine is given a group: the one that would be done with it first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from yatt.controller.fleet import Fleet
from yatt.types import Request

PREFILL = 1 / 32
"""Work of reading a prompt token, in response tokens."""
UNEVEN = 1.5
"""An engine with so many times its share of the requests gives some of it to others that have woken, and so many times
the mean work is left by the conversations that it has in its cache."""
SLOW = 4.0
"""An engine is slow when others are this many times as fast; it is given work as if that much slower."""

Numbers = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]


class LoadBalancer:
    """Knows the outstanding work of each engine, in response tokens expected, and chooses the engine with the least.

    Equals are tried in an order that begins elsewhere for each controller: at the first engine of the share that
    controller `index` of `controllers` would have of the open ones.
    """

    def __init__(self, fleet: Fleet, *, index: int, controllers: int) -> None:
        self._fleet = fleet
        self._index, self._controllers = index, controllers
        self._work = np.zeros(len(fleet))  # [engines] response tokens
        self._speed = np.ones(len(fleet))  # [engines] 1, or 1 / SLOW
        self._length = 0.0  # mean tokens of the responses so far
        self._ended = 0  # responses, ever
        self.order_ties()

    def choose(self, requests: Sequence[Request], room: Counts, home: int | None = None) -> tuple[int, int]:
        """The engine for the first of these siblings, and how many of them: all, so that their prompt is read once,
        where an open engine has room for all or none has any; else as many as the least busy one has room for. `room`
        [engines] are the requests that each may still be given. A conversation stays at the engine that has its cache,
        its `home`, unless that is so much busier than others that moving pays."""
        finish = (self._work + self.work_of(requests)) / self._speed + self._ties
        if home is not None and self._stays(home, len(requests), finish, room):
            return home, len(requests)
        finish = np.where(self._fleet.open, finish, np.inf)
        if room[self._fleet.open].max() <= 0:
            return int(finish.argmin()), len(requests)
        fits = self._fleet.open & (room >= len(requests))
        if fits.any():
            return int(np.where(fits, finish, np.inf).argmin()), len(requests)
        engine = int(np.where(room > 0, finish, np.inf).argmin())
        return engine, int(room[engine])

    def _stays(self, home: int, requests: int, finish: Numbers, room: Counts) -> bool:
        """Whether so many requests stay at `home`, which would be done with them later than others."""
        here = self._fleet.open
        return bool(here[home] and room[home] >= requests and finish[home] <= UNEVEN * finish[here].mean())

    def sent(self, engine: int, requests: Sequence[Request]) -> None:
        self._work[engine] += self.work_of(requests)

    def came_back(self, engine: int, requests: Sequence[Request], *, idle: bool) -> None:
        """Requests have left the engine, ended or not; it is `idle` where they were its last."""
        # What was added was measured by another mean length: an idle engine has no work, whatever is left of it.
        left = self._work[engine] - self.work_of(requests)
        self._work[engine] = 0.0 if idle else max(0.0, left)

    def response_ended(self, tokens: int) -> None:
        """Learn how long responses are."""
        self._ended += 1
        self._length += (tokens - self._length) / self._ended

    def slow_down(self, slow: Mapping[int, bool]) -> None:
        """Take these engines to be slow, or not any more."""
        for engine, is_slow in slow.items():
            self._speed[engine] = 1 / SLOW if is_slow else 1.0

    def order_ties(self) -> None:
        """Say which engine comes first among equals, as others may be open than before."""
        count = max(1, int(self._fleet.open.sum()))
        place = np.cumsum(self._fleet.open) - 1
        first = self._index * count // self._controllers
        self._ties: Numbers = 1e-6 * ((place - first) % count)  # less than any work

    def overfull(self, running: Counts) -> tuple[list[int], int]:
        """The awake engines with far more than their share of the requests `running` [engines], and that share."""
        share = -(-int(running.sum()) // max(1, int(self._fleet.open.sum())))
        more = self._fleet.awake & self._fleet.up & (running > UNEVEN * share)
        return np.flatnonzero(more).tolist(), share

    def work_of(self, requests: Sequence[Request]) -> float:
        """Expected work of siblings, in response tokens; they are taken to be alike."""
        if not requests:
            return 0.0
        first = requests[0]
        return len(requests) * (1.0 + min(self._length, first.params.max_tokens) + PREFILL * len(first.tokens))

"""The ranks' processes on Ray: all started together, and ended together."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from yatt.cluster.calls import wait_one
from yatt.cluster.hosts import death_of
from yatt.cluster.kinds import Slot
from yatt.cluster.rank import RankHandle
from yatt.config.schema import Config
from yatt.errors import ProcessDied
from yatt.weights import SHARED_MEMORY
from yatt.weights.flat import remove_stale


class RankHosts:
    """The ranks of a run, one on each of `slots`, which are set once they are known. `place` starts a rank's process,
    `start` waits until processes of some names have come up. `deaths` has a task for each, which ends when it dies."""

    def __init__(
        self,
        config: Config,
        weights_dir: str,
        place: Callable[[int, Slot], Any],
        start: Callable[[str, Mapping[str, Any], Mapping[str, Any]], Awaitable[dict[str, Any]]],
    ) -> None:
        self._config = config
        self._weights_dir = weights_dir
        self._place = place
        self._start = start
        self._token = ""  # what the names of their weights begin with
        self.slots: list[Slot] = []
        self.actors: dict[str, Any] = {}
        self.deaths: list[asyncio.Task[ProcessDied]] = []

    def place(self) -> None:
        """Start their processes."""
        self.actors = {f"rank {i}": self._place(i, slot) for i, slot in enumerate(self.slots)}

    async def start(self) -> tuple[RankHandle, ...]:
        """Have them meet, and load their models."""
        if not self.actors:
            return ()
        endpoint = self.actors["rank 0"].endpoint.remote()
        host, port = await wait_one("starting ranks", "rank 0", endpoint, self._config.cluster.start_timeout)
        self._token = f"{os.getpid()}-{secrets.token_hex(4)}"
        calls = {
            name: actor.start.remote(
                host, port, token=f"{self._token}-{i}" if self._writes(i) else None, weights_dir=self._weights_dir
            )
            for i, (name, actor) in enumerate(self.actors.items())
        }
        places = await self._start("ranks", calls, self.actors)
        self.deaths = [asyncio.create_task(death_of(name, actor)) for name, actor in self.actors.items()]
        return tuple(
            RankHandle(actor=actor, name=name, node=slot.node, dp_rank=places[name][0])
            for (name, actor), slot in zip(self.actors.items(), self.slots, strict=True)
        )

    def _writes(self, rank: int) -> bool:
        """Through shared memory the first rank of each node writes weights; on disk rank 0 does."""
        if not self._config.algorithm.recipe.reinforces:
            return False
        nodes = [slot.node for slot in self.slots]
        return rank == 0 if self._config.weights.transport == "disk" else nodes.index(nodes[rank]) == rank

    def leave(self) -> None:
        """What happens to them from now on is no news."""
        for death in self.deaths:
            death.cancel()
        self.deaths = []

    def remove_weights(self) -> None:
        """What ranks that were killed have left on this machine, or on a disk."""
        remove_stale(SHARED_MEMORY)
        for folder in Path(self._weights_dir).glob(f"{self._token}-*") if self._token else ():
            shutil.rmtree(folder, ignore_errors=True)

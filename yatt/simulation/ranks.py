"""Trainer ranks that only spend time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from yatt.errors import ConfigError, ProcessDied
from yatt.placement.plan import TRAINER
from yatt.protocols import EVERY_NODE
from yatt.reports import PhaseSpan, UpdateReport
from yatt.simulation.costs import TrainerCosts
from yatt.simulation.engine import Log
from yatt.simulation.network import Node, Site, until
from yatt.types import Share, WeightManifest

OnTrained = Callable[[int, Share], None]
"""(step, share): called for each share of a step whose updates have all been made."""


class Ranks:
    """All data-parallel ranks. A step's updates begin once each rank has the share of every sender it was told of, and
    the memory for it; an update ends with the slowest rank. A pipeline of `stages` is filled and drained once per
    update: its first micro-batch passes all stages, each as long as the costliest one takes."""

    def __init__(
        self,
        costs: TrainerCosts,
        nodes: Sequence[Node],
        *,
        slots: tuple[int, ...],
        stages: int,
        log: Log,
        on_trained: OnTrained,
    ) -> None:
        self._span = partial(PhaseSpan, actor="ranks", role=TRAINER, slots=slots)
        self.spans: list[PhaseSpan] = []
        self._costs, self.nodes, self._stages, self._log, self._on_trained = costs, nodes, stages, log, on_trained
        self._shares: dict[int, dict[tuple[int, int], Share]] = {}
        self._done: dict[int, asyncio.Future[UpdateReport]] = {}
        self._dead: ProcessDied | None = None
        self._awake = True
        self.busy = 0.0  # seconds of work, added over ranks

    async def train(self, shares: Sequence[Share]) -> UpdateReport:
        """Take one controller's shares of a step in; returns when the step's updates have been made."""
        self.check()
        step = shares[0].step
        held = self._shares.setdefault(step, {})
        held.update({(share.rank, share.controller): share for share in shares})
        if step not in self._done:
            self._done[step] = asyncio.get_running_loop().create_future()
        done = self._done[step]
        if self._awake and self._complete(held):
            self._begin(step)
        return await asyncio.shield(done)

    def _begin(self, step: int) -> None:
        seconds = self._seconds(list(self._shares[step].values()))
        asyncio.get_running_loop().call_later(seconds, self._finish, step, seconds)

    def _complete(self, held: Mapping[tuple[int, int], Share]) -> bool:
        senders = {share.rank: share.senders for share in held.values()}
        return len(senders) == len(self.nodes) and all(
            (rank, sender) in held for rank, theirs in senders.items() for sender in theirs
        )

    def _seconds(self, shares: Sequence[Share]) -> float:
        """The sum over updates of the slowest rank's time."""
        costs, total = self._costs, 0.0
        for update in range(len(shares[0].updates)):
            times = np.zeros((len(self.nodes), len(shares[0].updates[update]))) + costs.per_micro_batch
            for share in shares:
                for micro, samples in enumerate(share.updates[update]):
                    lengths = [len(sequence.tokens) for sample in samples for sequence in sample.sequences]
                    times[share.rank, micro] += costs.per_token * sum(lengths)
                    times[share.rank, micro] += costs.per_token_squared * sum(length**2 for length in lengths)
            own = times.sum(axis=1) + (self._stages - 1) * times.max(axis=1, initial=0.0)
            total += float(own.max()) + costs.per_update
            self.busy += float(times.sum()) + costs.per_update * len(self.nodes)
        return total

    def _finish(self, step: int, seconds: float) -> None:
        done = self._done.pop(step, None)
        shares = self._shares.pop(step, {})
        if done is None or done.done():
            return
        for key in sorted(shares):
            self._on_trained(step, shares[key])
        samples = [s for share in shares.values() for update in share.updates for micro in update for s in micro]
        ranks, tokens = len(self.nodes), sum(len(sequence.tokens) for s in samples for sequence in s.sequences)
        self._note("update", seconds, samples=len(samples) // ranks, tokens=tokens // ranks)
        trained = sum(d.tokens for d in next(iter(shares.values())).denominators)
        self._log("ranks", "trained", step, trained)
        done.set_result(
            UpdateReport(
                loss=0.0, grad_norm=0.0, learning_rate=0.0, trained_tokens=trained, seconds={"update": seconds}
            )
        )

    async def offload(self) -> None:
        self._awake = False
        await self.spend("offload", self._costs.offload)

    async def onload(self) -> None:
        """Updates that waited for it begin."""
        await self.spend("onload", self._costs.onload)
        self._awake = True
        for step, held in self._shares.items():
            if self._complete(held):
                self._begin(step)

    async def spend(self, name: str, seconds: float) -> None:
        self.check()
        await asyncio.sleep(seconds)
        self.check()
        self._note(name, seconds)

    def _note(self, name: str, seconds: float, **counts: int) -> None:
        now = asyncio.get_running_loop().time()
        self.spans.append(self._span(name=name, start=now - seconds, stop=now, counts=counts))

    def check(self) -> None:
        if self._dead is not None:
            raise self._dead

    def die(self, rank: int) -> None:
        """Every open and later call raises ProcessDied: the ranks can only work together."""
        self._dead = ProcessDied(f"rank {rank} died")
        self._log(f"rank {rank}", "died")
        for done in self._done.values():
            if not done.done():
                done.set_exception(self._dead)
                done.exception()  # its waiters may be gone; asyncio is not to complain then

    def revive(self) -> None:
        """All ranks again, with nothing under way."""
        self._dead, self._awake = None, True
        self._shares.clear()
        self._done.clear()


class SimulatedTrainer:
    """Implements `yatt.protocols.Trainer` for one controller."""

    def __init__(self, ranks: Ranks, site: Site, costs: TrainerCosts) -> None:
        self._ranks, self._site, self._costs = ranks, site, costs

    async def update(self, shares: Sequence[Share]) -> UpdateReport | None:
        self._ranks.check()
        per_token = self._site.network.costs.bytes_per_token
        arrived = 0.0
        for share in shares:
            samples = [s for update in share.updates for micro in update for one in micro for s in one.sequences]
            media = {id(one.handle): one for sample in samples for one in sample.media}
            nbytes = round(per_token * sum(len(sample.tokens) for sample in samples))
            arrived = max(arrived, self._site.send(self._ranks.nodes[share.rank], nbytes, tuple(media.values())))
        await until(arrived)
        return await self._ranks.train(shares) if shares else None

    async def evaluate(self, shares: Sequence[Share]) -> UpdateReport | None:
        """Raises ConfigError: nothing that learns from rows is simulated."""
        raise ConfigError("a simulated run has no rows to evaluate on; unset evaluate.path and evaluate.size")

    async def export(self, version: int) -> Mapping[str, WeightManifest]:
        await self._ranks.spend("export", self._costs.export)
        return {EVERY_NODE: WeightManifest(version=version, kind="flat", path="", checksum="")}

    async def offload(self) -> None:
        await self._ranks.offload()

    async def onload(self) -> None:
        await self._ranks.onload()

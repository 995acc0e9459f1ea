"""Trainer ranks that only spend time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any, Literal

import numpy as np

from yatt.errors import ProcessDied, WaitTimeout
from yatt.placement.plan import TRAINER
from yatt.protocols import EVERY_NODE
from yatt.reports import PhaseSpan, UpdateReport
from yatt.simulation.costs import TrainerCosts
from yatt.simulation.engine import Log
from yatt.simulation.network import Node, Site, until
from yatt.types import Pair, Sample, Share, WeightManifest

FORWARD = 1 / 3
"""Of the time that a token takes in an update: a forward pass without the backward one."""
Work = Literal["update", "evaluate", "reference"]
OnTrained = Callable[[int, Share], None]
"""(step, share): called for each share of a step whose updates have all been made."""


class Ranks:
    """All data-parallel ranks. A step's work of one kind begins once each rank has the share of every sender it was
    told of, and the memory for it; an update ends with the slowest rank. A pipeline of `stages` is filled and drained
    once per update: its first micro-batch passes all stages, each as long as the costliest one takes."""

    def __init__(
        self,
        costs: TrainerCosts,
        nodes: Sequence[Node],
        *,
        slots: tuple[int, ...],
        stages: int,
        log: Log,
        on_trained: OnTrained,
        timeout: float,
    ) -> None:
        self._span = partial(PhaseSpan, actor="ranks", role=TRAINER, slots=slots)
        self.spans: list[PhaseSpan] = []
        self._costs, self.nodes, self._stages, self._log, self._on_trained = costs, nodes, stages, log, on_trained
        self._timeout = timeout
        self._shares: dict[tuple[Work, int], dict[tuple[int, int], Share]] = {}
        self._done: dict[tuple[Work, int], asyncio.Future[Any]] = {}
        self._dead: ProcessDied | None = None
        self._awake = True
        self.busy = 0.0  # seconds of work, added over ranks

    async def work(self, work: Work, shares: Sequence[Share]) -> Any:
        """Take one controller's shares of a step in; returns what comes of everyone's. Raises WaitTimeout naming the
        controllers whose shares did not come."""
        self.check()
        key = (work, shares[0].step)
        received = self._shares.setdefault(key, {})
        received.update({(share.rank, share.controller): share for share in shares})
        if key not in self._done:
            self._done[key] = asyncio.get_running_loop().create_future()
        done = self._done[key]
        if self._awake and self._complete(received):
            self._begin(key)
        try:
            return await asyncio.wait_for(asyncio.shield(done), self._timeout)
        except TimeoutError:
            raise WaitTimeout(f"the ranks waited in step {key[1]} for {self._lacking(received)}") from None

    def _begin(self, key: tuple[Work, int]) -> None:
        seconds = self._seconds(key[0], list(self._shares[key].values()))
        asyncio.get_running_loop().call_later(seconds, self._finish, key, seconds)

    def _complete(self, received: Mapping[tuple[int, int], Share]) -> bool:
        return len({rank for rank, _ in received}) == len(self.nodes) and not _missing(received)

    def _lacking(self, received: Mapping[tuple[int, int], Share]) -> str:
        """The reason why they are not done."""
        if missing := _missing(received):
            return f"the shares of controllers {sorted({sender for _, sender in missing})}"
        if empty := sorted(set(range(len(self.nodes))) - {rank for rank, _ in received}):
            return f"a share for ranks {empty}"
        return "their own work" if self._awake else "controller 0 to give them their memory back"

    def _seconds(self, work: Work, shares: Sequence[Share]) -> float:
        """The sum over updates of the slowest rank's time."""
        costs, total = self._costs, 0.0
        updates = work == "update"
        part, per_update = (1.0, costs.per_update) if updates else (FORWARD, 0.0)
        look = costs.images if updates else costs.images_seen
        for update in range(len(shares[0].updates)):
            times = np.zeros((len(self.nodes), len(shares[0].updates[update]))) + costs.per_micro_batch
            for share in shares:
                for micro, samples in enumerate(share.updates[update]):
                    lengths = [len(sequence.tokens) for sample in samples for sequence in sample.sequences]
                    times[share.rank, micro] += part * costs.per_token * sum(lengths)
                    times[share.rank, micro] += part * costs.per_token_squared * sum(length**2 for length in lengths)
                    sequences = (sequence for sample in samples for sequence in sample.sequences)
                    times[share.rank, micro] += look * len({id(image.handle) for s in sequences for image in s.media})
            own = times.sum(axis=1) + (self._stages - 1) * times.max(axis=1, initial=0.0)
            total += float(own.max()) + per_update
            self.busy += float(times.sum()) + per_update * len(self.nodes)
        return total

    def _finish(self, key: tuple[Work, int], seconds: float) -> None:
        work, step = key
        done = self._done.pop(key, None)
        shares = self._shares.pop(key, {})
        if done is None or done.done():
            return
        for place in sorted(shares) if work == "update" else ():
            self._on_trained(step, shares[place])
        every = list(samples_of(shares.values()))
        ranks, tokens = len(self.nodes), sum(len(sequence.tokens) for s in every for sequence in s.sequences)
        self._note(work, seconds, samples=len(every) // ranks, tokens=tokens // ranks)
        if work == "reference":
            done.set_result({sample.key.uid: (0.0, 0.0) for sample in every})
            return
        trained = sum(d.tokens for d in next(iter(shares.values())).denominators)
        self._log("ranks", "trained" if work == "update" else "evaluated", step, trained)
        done.set_result(
            UpdateReport(loss=0.0, grad_norm=0.0, learning_rate=0.0, trained_tokens=trained, seconds={work: seconds})
        )

    async def offload(self) -> None:
        self._awake = False
        await self.spend("offload", self._costs.offload)

    async def onload(self) -> None:
        """Updates that waited for it begin."""
        await self.spend("onload", self._costs.onload)
        self._awake = True
        for key, received in self._shares.items():
            if self._complete(received):
                self._begin(key)

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
        report: UpdateReport | None = await self._send("update", shares)
        return report

    async def evaluate(self, shares: Sequence[Share]) -> UpdateReport | None:
        report: UpdateReport | None = await self._send("evaluate", shares)
        return report

    async def reference(self, shares: Sequence[Share]) -> Mapping[int, tuple[float, float]]:
        """Of everyone's samples: both sequences are certain."""
        return await self._send("reference", shares) or {}

    async def _send(self, work: Work, shares: Sequence[Share]) -> Any:
        """The ranks' answer, once the shares have arrived; None where there are none."""
        self._ranks.check()
        per_token = self._site.network.costs.bytes_per_token
        arrived = 0.0
        for share in shares:
            samples = [one for sample in samples_of([share]) for one in sample.sequences]
            media = {id(one.handle): one for sample in samples for one in sample.media}
            nbytes = round(per_token * sum(len(sample.tokens) for sample in samples))
            arrived = max(arrived, self._site.send(self._ranks.nodes[share.rank], nbytes, tuple(media.values())))
        await until(arrived)
        return await self._ranks.work(work, shares) if shares else None

    async def export(self, version: int) -> Mapping[str, WeightManifest]:
        await self._ranks.spend("export", self._costs.export)
        return {EVERY_NODE: WeightManifest(version=version, kind="flat", path="", checksum="")}

    async def probe(self) -> None:
        """Simulated ranks have no weights."""

    async def offload(self) -> None:
        await self._ranks.offload()

    async def onload(self) -> None:
        await self._ranks.onload()


def _missing(received: Mapping[tuple[int, int], Share]) -> list[tuple[int, int]]:
    """(rank, controller) of the shares that are still to come, as far as those that are there name their senders."""
    senders = {share.rank: share.senders for share in received.values()}
    return [(rank, sender) for rank, theirs in senders.items() for sender in theirs if (rank, sender) not in received]


def samples_of(shares: Iterable[Share]) -> Iterator[Sample | Pair]:
    """Every sample of these shares."""
    return chain.from_iterable(chain(*chain(*share.updates)) for share in shares)

"""A trainer rank in a process of its own, and how controllers reach all of them."""

from __future__ import annotations

import asyncio
import gc
import socket
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal, TypeVar

import ray
from ray import ObjectRef

from yatt.cluster.backends import HostedRank, load
from yatt.cluster.calls import wait_all
from yatt.cluster.media import address, opened
from yatt.cluster.process import Hosted, SlotProcess, settle
from yatt.cluster.wire import ShareColumns, pack_share, read_share
from yatt.config.schema import Config
from yatt.errors import WaitTimeout
from yatt.protocols import EVERY_NODE
from yatt.reports import PhaseSpan, Probed, UpdateReport
from yatt.training.meeting import reserve_port
from yatt.types import Share, WeightManifest
from yatt.weights import WeightWriter, writer_for

T = TypeVar("T")
Collective = Literal["begin_save", "load", "save_folder", "offload", "onload", "forget_reference"]
Work = Literal["update", "evaluate", "reference"]
"""The methods of a rank that take shares."""


@dataclass(slots=True)
class _Delivery:
    """Shares of one step and one kind of work, by their senders, and what comes of them."""

    shares: dict[int, Share]
    report: asyncio.Future[Any]
    task: asyncio.Task[None] | None = None


class RankActor(Hosted):
    """Hosts one rank. Everything that touches the model runs on one thread; an update or an evaluation begins once the
    share of every controller that has one for this rank has come, and the rank has its memory."""

    def __init__(self, process: SlotProcess, config: Config, backend: str, *, rank: int, world_size: int) -> None:
        settle(process)
        self._recorder = process.recorder()
        self._config = config
        self._backend = backend
        self._place = (rank, world_size)
        self._deliveries: dict[tuple[Work, int], _Delivery] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="rank")
        self._hosted: HostedRank | None = None
        self._writer: WeightWriter | None = None
        self._meeting_port: socket.socket | None = None
        self._home = asyncio.Event()  # it has its memory
        self._home.set()

    async def endpoint(self) -> tuple[str, int]:
        """Where rank 0 lets the others meet."""
        self._meeting_port = reserve_port()  # others start meanwhile, and take ports
        return ray.util.get_node_ip_address(), self._meeting_port.getsockname()[1]

    async def start(self, address: str, port: int, *, token: str | None, weights_dir: str) -> tuple[int, int]:
        """Build the model; returns (data-parallel rank, data-parallel size). Collective over ranks. A `token` makes
        this rank the one that writes its node's weights."""
        rank, world_size = self._place
        self._hosted = load(self._backend)(self._config, rank=rank, world_size=world_size, address=address, port=port)
        async with self._recorder.phase("start"):
            await self._run(self._rank.start)
        if self._meeting_port is not None:
            self._meeting_port.close()
        if token is not None:
            kind = self._config.weights.transport
            self._writer = writer_for(kind, weights_dir if kind == "disk" else None, token)
        gc.freeze()
        return self._rank.dp_rank, self._rank.dp_size

    @property
    def _rank(self) -> HostedRank:
        assert self._hosted is not None, "a rank is started first"
        return self._hosted

    async def _run(self, work: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)

    async def update(self, columns: ShareColumns, *images: Any) -> UpdateReport:
        """Collective over the senders that the share names, and over ranks. Every rank answers with the report.
        Raises WaitTimeout naming the controllers whose shares did not come."""
        report: UpdateReport = await self._deliver("update", read_share(columns, opened(images)))
        return report

    async def evaluate(self, columns: ShareColumns, *images: Any) -> UpdateReport:
        """As `update`, but the weights stay as they are."""
        report: UpdateReport = await self._deliver("evaluate", read_share(columns, opened(images)))
        return report

    async def reference(self, columns: ShareColumns, *images: Any) -> dict[int, tuple[float, float]]:
        """As `evaluate`: what the reference says of the samples of this rank."""
        sums: dict[int, tuple[float, float]] = await self._deliver("reference", read_share(columns, opened(images)))
        return sums

    async def _deliver(self, work: Work, share: Share) -> Any:
        loop, key = asyncio.get_running_loop(), (work, share.step)
        delivery = self._deliveries.setdefault(key, _Delivery({}, loop.create_future()))
        delivery.shares[share.controller] = share
        if delivery.shares.keys() >= set(share.senders):
            delivery.task = loop.create_task(self._do(work, share.step, delivery))
        try:
            return await asyncio.wait_for(asyncio.shield(delivery.report), self._config.cluster.step_timeout)
        except TimeoutError:
            missing = sorted(set(share.senders) - delivery.shares.keys())
            own = f"its own {work}" if self._home.is_set() else "controller 0 to give it its memory back"
            whom = f"the shares of controllers {missing}" if missing else own
            raise WaitTimeout(f"rank {self._place[0]} waited in step {share.step} for {whom}") from None

    async def _do(self, work: Work, step: int, delivery: _Delivery) -> None:
        await self._home.wait()  # whoever waits for the report has a deadline
        shares = [delivery.shares[i] for i in sorted(delivery.shares)]
        samples = [sample for share in shares for sample in chain(*chain(*share.updates))]
        tokens = sum(len(sequence.tokens) for sample in samples for sequence in sample.sequences)
        try:
            async with self._recorder.phase(work, samples=len(samples), tokens=tokens):
                report = await self._run(getattr(self._rank, work), shares)
            delivery.report.set_result(report)
        except Exception as error:
            delivery.report.set_exception(error)
        finally:
            del self._deliveries[work, step]

    async def export(self, version: int) -> WeightManifest | None:
        """Collective over ranks. The manifest, from the ranks that write; None from the others."""
        async with self._recorder.phase("export"):
            return await self._run(self._export, version)

    def _export(self, version: int) -> WeightManifest | None:
        if self._writer is not None:
            return self._writer.write(self._rank.export(), version)
        for _ in self._rank.export():
            pass
        return None

    async def probe(self) -> Probed | None:
        """Collective over ranks; only the last pipeline stage answers."""
        return await self._run(self._rank.probe)

    async def call(self, method: Collective, *arguments: Any) -> None:
        """Call a method that takes no samples."""
        if method == "offload":
            self._home.clear()
        async with self._recorder.phase(method):
            await self._run(getattr(self._rank, method), *arguments)
        if method == "onload":
            self._home.set()

    async def end_save(self) -> None:
        """Wait for what `begin_save` began, beside whatever the rank does."""
        await asyncio.to_thread(self._rank.end_save)

    async def take_spans(self) -> tuple[PhaseSpan, ...]:
        """The rank's spans since the last call."""
        return self._recorder.take()

    async def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        if self._hosted is not None:
            await self._run(self._hosted.close)


@dataclass(frozen=True, slots=True, kw_only=True)
class RankHandle:
    """A started rank: its actor, what it is called, and where it stands."""

    actor: Any
    name: str
    node: str
    dp_rank: int


class RemoteTrainer:
    """`Trainer` over the wire: a controller talks directly to the ranks that train its samples."""

    def __init__(self, ranks: Sequence[RankHandle], *, weights_kind: Literal["shm", "disk"], timeout: float) -> None:
        self._ranks = ranks
        self._weights_kind = weights_kind
        self._timeout = timeout

    async def update(self, shares: Sequence[Share]) -> UpdateReport | None:
        """Each share goes to the ranks of its data-parallel group: where they are several, once into the store and by
        reference."""
        return next(iter(await self._send("update", shares)), None)

    async def evaluate(self, shares: Sequence[Share]) -> UpdateReport | None:
        """Sent as in `update`."""
        return next(iter(await self._send("evaluate", shares)), None)

    async def reference(self, shares: Sequence[Share]) -> Mapping[int, tuple[float, float]]:
        """Sent as in `update`; every rank answers for its own samples, and only the last pipeline stage at all."""
        return {uid: sums for answer in await self._send("reference", shares) for uid, sums in answer.items()}

    async def _send(self, work: Work, shares: Sequence[Share]) -> list[Any]:
        """The answers of all ranks that were sent something."""
        calls: dict[str, ObjectRef[Any]] = {}
        for share in shares:
            columns, handles = pack_share(share)
            images = address(handles)
            group = [rank for rank in self._ranks if rank.dp_rank == share.rank]
            stored = ray.put(columns) if len(group) > 1 else columns
            calls |= {rank.name: getattr(rank.actor, work).remote(stored, *images) for rank in group}
        answers = await wait_all(f"{work} of step {shares[0].step}", calls, self._timeout) if calls else {}
        return list(answers.values())

    async def export(self, version: int) -> Mapping[str, WeightManifest]:
        calls = {rank.name: rank.actor.export.remote(version) for rank in self._ranks}
        answers = await wait_all("export", calls, self._timeout)
        manifests = {r.node: answers[r.name] for r in self._ranks if answers[r.name] is not None}
        return manifests if self._weights_kind == "shm" else {EVERY_NODE: next(iter(manifests.values()))}

    async def probe(self) -> Probed | None:
        calls = {rank.name: rank.actor.probe.remote() for rank in self._ranks}
        answers = await wait_all("probe", calls, self._timeout) if calls else {}
        return next((answer for answer in answers.values() if answer is not None), None)

    async def offload(self) -> None:
        await self.on_all("offload")

    async def onload(self) -> None:
        await self.on_all("onload")

    async def end_save(self) -> None:
        """Wait until every rank has written its part of the checkpoint that was begun."""
        calls = {rank.name: rank.actor.end_save.remote() for rank in self._ranks}
        await wait_all("checkpoint", calls, self._timeout)

    async def on_all(self, method: Collective, *arguments: Any) -> None:
        """Call every rank and wait for all."""
        calls = {rank.name: rank.actor.call.remote(method, *arguments) for rank in self._ranks}
        await wait_all(method, calls, self._timeout)

"""The controller: C of these run the same program, each on its own share of the prompts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any, Generic, TypeVar

from yatt.controller.exchange import Exchange
from yatt.controller.recorder import Recorder
from yatt.controller.rollouter import Rollouter
from yatt.controller.stage import Publisher, Stage
from yatt.protocols import Peers, Source, Trainer
from yatt.types import Group, Prompt, RolloutCounts, Sample, StepReport, UpdateReport

T = TypeVar("T", Prompt, Sample)
ToSamples = Callable[[Sequence[Group]], list[Sample]]
OnGroups = Callable[[int, Sequence[Group]], None]


class Desk(Generic[T]):
    """What every kind of controller has: its peers, its share of the data, the way to the ranks, and the version."""

    def __init__(
        self,
        *,
        peers: Peers,
        source: Source[T],
        exchange: Exchange,
        trainer: Trainer,
        recorder: Recorder,
        batch_size: int,
    ) -> None:
        self.peers = peers
        self.source = source
        self.exchange = exchange
        self.trainer = trainer
        self.recorder = recorder
        self.quota = batch_size // peers.count + (peers.index < batch_size % peers.count)
        self.version = 0
        self.bad_rows = 0

    def next_version(self) -> int:
        self.version += 1
        return self.version

    async def close_step(self, step: int, counts: RolloutCounts) -> RolloutCounts:
        """Everyone's draws move the cursor; returns everyone's counts added up. Collective."""
        mine = (self.source.drawn(), counts, self.source.bad_rows)
        gathered = await self.peers.all_gather(f"report/{step}", mine)
        self.source.end_step([drawn for drawn, _, _ in gathered])
        self.bad_rows = sum(bad for _, _, bad in gathered)
        return add_counts([c for _, c, _ in gathered])

    def report(self, step: int, counts: RolloutCounts | None, update: UpdateReport) -> StepReport:
        spans = self.recorder.take()
        phases: Counter[str] = Counter()
        for span in spans:
            phases[span.name] += span.stop - span.start
        return StepReport(
            step=step,
            epoch=self.source.epoch,
            policy_version=self.version,
            controllers=self.peers.count,
            counts=counts,
            update=update,
            phases=dict(phases),
            spans=spans,
            seconds=spans[-1].stop - spans[0].start,
            bad_rows=self.bad_rows,
        )

    def state(self) -> dict[str, Any]:
        return {"policy_version": self.version, "source": self.source.state()}

    def restore(self, state: dict[str, Any]) -> None:
        self.version = state["policy_version"]
        self.source.restore(state["source"])


class Controller:
    """One RLHF controller. All calls are collective: every controller makes them, in the same order."""

    def __init__(
        self,
        *,
        desk: Desk[Prompt],
        rollouter: Rollouter,
        to_samples: ToSamples,
        stage: Stage,
        publisher: Publisher,
        on_groups: OnGroups,
    ) -> None:
        self.desk = desk
        self.rollouter = rollouter
        self.to_samples = to_samples
        self.stage = stage
        self.publisher = publisher
        self.on_groups = on_groups

    async def step(self, step: int) -> StepReport:
        """One step of the loop. The report is the same on every controller, but for its spans."""
        phase = self.desk.recorder.phase
        async with phase("rollout"):
            await self.stage.enter("rollout")
            self.desk.source.begin_step()
            groups, counts = await self.rollouter.collect(self.desk.quota)
        async with phase("balance"):
            shares = await self.desk.exchange.balance(step, self.to_samples(groups))
        async with phase("train"):
            await self.stage.enter("train")
            update = await self.desk.trainer.update(shares)
        async with phase("sync"):
            await self.publisher.publish(self.desk.next_version())
        async with phase("report"):
            self.on_groups(step, groups)
            counts = await self.desk.close_step(step, counts)
        return self.desk.report(step, counts, update)

    async def restore(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint whose weights the ranks have loaded: bring them to the engines."""
        self.desk.restore(state)
        await self.stage.enter("train")
        await self.publisher.publish(self.desk.version)

    async def state(self) -> dict[str, Any]:
        """What a resumed run needs of the controllers, in global terms: the same on all of them. The ranks are awake
        afterwards, so that they can save what they hold."""
        await self.stage.enter("train")
        return self.desk.state()


class SftController:
    """The same program with demonstrations in place of rollouts."""

    def __init__(self, *, desk: Desk[Sample]) -> None:
        self.desk = desk

    async def step(self, step: int) -> StepReport:
        phase = self.desk.recorder.phase
        async with phase("data"):
            self.desk.source.begin_step()
            samples = [s for _ in range(self.desk.quota) if (s := self.desk.source.draw()) is not None]
        async with phase("balance"):
            shares = await self.desk.exchange.balance(step, samples)
        async with phase("train"):
            update = await self.desk.trainer.update(shares)
        self.desk.next_version()
        async with phase("report"):
            await self.desk.close_step(step, RolloutCounts())
        return self.desk.report(step, None, update)

    async def restore(self, state: dict[str, Any]) -> None:
        self.desk.restore(state)

    async def state(self) -> dict[str, Any]:
        return self.desk.state()


def add_counts(counts: Sequence[RolloutCounts]) -> RolloutCounts:
    """The numbers of all controllers together."""
    parts: Counter[str] = Counter()
    for c in counts:
        parts.update(c.part_sums)
    special = {"longest_response", "part_sums"}
    sums = {f.name: sum(getattr(c, f.name) for c in counts) for f in fields(RolloutCounts) if f.name not in special}
    return RolloutCounts(**sums, longest_response=max(c.longest_response for c in counts), part_sums=dict(parts))

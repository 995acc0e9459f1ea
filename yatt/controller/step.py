"""The controller: C of these run the same program, each on its own share of the prompts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any, Generic, TypeVar

from yatt.controller.carry import CarriedGroup, carried_group, restored_group
from yatt.controller.exchange import Exchange
from yatt.controller.fleet import Fleet
from yatt.controller.recorder import Recorder
from yatt.controller.rollouter import Rollouter
from yatt.controller.stage import Publisher, Stage
from yatt.protocols import Peers, Source, Trainer
from yatt.types import Decision, Group, Prompt, RolloutCounts, Sample, StepReport, UpdateReport

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

    async def close_step(
        self, step: int, counts: RolloutCounts, update: UpdateReport | None
    ) -> tuple[RolloutCounts, UpdateReport]:
        """Everyone's draws move the cursor; returns everyone's counts added up, and what the ranks said, which only
        those heard who had something to send. Collective."""
        mine = (self.source.drawn(), self.source.returned(), self.source.bad_rows, counts, update)
        everyones = await self.peers.all_gather(f"report/{step}", mine)
        drawn, returned, bad, counted, updates = zip(*everyones, strict=True)
        self.source.end_step(drawn, [uid for uids in returned for uid in uids])
        self.bad_rows = sum(bad)
        return add_counts(counted), next(update for update in updates if update is not None)

    def report(
        self,
        step: int,
        counts: RolloutCounts | None,
        update: UpdateReport,
        generators: int = 0,
        decisions: tuple[Decision, ...] = (),
    ) -> StepReport:
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
            generators=generators,
            decisions=decisions,
        )

    async def fold(self) -> None:
        """Take positions given back since the last step into the cursor. Collective."""
        everyones = await self.peers.all_gather("returned", self.source.returned())
        self.source.end_step([0] * self.peers.count, [uid for uids in everyones for uid in uids])

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
        fleet: Fleet,
        on_groups: OnGroups,
        responses: int,
    ) -> None:
        self.desk = desk
        self.rollouter = rollouter
        self.to_samples = to_samples
        self.stage = stage
        self.publisher = publisher
        self.fleet = fleet
        self.on_groups = on_groups
        self.responses = responses

    async def step(self, step: int) -> StepReport:
        """One step of the loop. The report is the same on every controller, but for its spans."""
        phase = self.desk.recorder.phase
        async with phase("rollout"):
            await self.stage.enter("rollout", self.responses / self.rollouter.rate.value)
            self.desk.source.begin_step()
            groups, counts = await self.rollouter.collect(self.desk.quota, self.desk.version)
        async with phase("balance"):
            shares = await self.desk.exchange.balance(step, self.to_samples(groups))
        async with phase("train"):
            await self.stage.enter("train")
            update = await self.desk.trainer.update(shares)
        async with phase("sync"):
            await self.publisher.publish(self.desk.next_version())
        async with phase("report"):
            self.on_groups(step, groups)
            counts, update = await self.desk.close_step(step, counts, update)
            self.rollouter.rate.close(counts.groups_accepted, counts.groups_accepted + counts.groups_dropped)
        return self.desk.report(step, counts, update, self.fleet.alive, self.stage.decisions())

    async def state(self) -> tuple[dict[str, Any], list[CarriedGroup]]:
        """What a resumed run needs of the controllers: numbers in global terms, the same on all of them, and the groups
        that this one carries over. The ranks are awake afterwards, so that they can save what they hold. Collective."""
        if self.stage.judges and any(await self.desk.peers.all_gather("resting", self.rollouter.busy)):
            await self.stage.enter("rollout")
        await self.rollouter.rest(self.desk.version)
        await self.desk.fold()
        await self.stage.enter("train")
        carried = [carried_group(group) for group in self.rollouter.carried]
        return self.desk.state() | {"acceptance": self.rollouter.rate.state()}, carried

    async def restore(self, state: dict[str, Any], carried: Sequence[CarriedGroup] = ()) -> None:
        """Go on from a checkpoint whose weights the ranks have loaded: bring them to the engines. `carried` are the
        groups of all controllers there were; each takes its share of them. Collective."""
        self.desk.restore(state)
        self.rollouter.rate.restore(state.get("acceptance", (0.0, 0.0)))
        mine = sorted(carried, key=lambda group: group.uid)[self.desk.peers.index :: self.desk.peers.count]
        self.rollouter.carried = [restored_group(group, self.desk.source.again(group.uid)) for group in mine]
        await self.stage.enter("train")
        await self.publisher.publish(self.desk.version)


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
            _, update = await self.desk.close_step(step, RolloutCounts(), update)
        return self.desk.report(step, None, update)

    async def state(self) -> tuple[dict[str, Any], list[CarriedGroup]]:
        return self.desk.state(), []

    async def restore(self, state: dict[str, Any], carried: Sequence[CarriedGroup] = ()) -> None:
        self.desk.restore(state)


def add_counts(counts: Sequence[RolloutCounts]) -> RolloutCounts:
    """The numbers of all controllers together."""
    parts: Counter[str] = Counter()
    lengths: Counter[int] = Counter()
    for c in counts:
        parts.update(c.part_sums)
        lengths.update(c.response_lengths)
    special = {"longest_response", "part_sums", "response_lengths"}
    sums = {f.name: sum(getattr(c, f.name) for c in counts) for f in fields(RolloutCounts) if f.name not in special}
    sums["longest_response"] = max(c.longest_response for c in counts)
    return RolloutCounts(**sums, part_sums=dict(parts), response_lengths=dict(lengths))

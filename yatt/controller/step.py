"""The controller: C of these run the same program, each on its own share of the prompts."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any, Generic, TypeVar

from yatt.algorithm.rewards import RewardShaper
from yatt.controller.carry import CarriedGroup, carried_group, restored_group
from yatt.controller.exchange import Exchange
from yatt.controller.fleet import Fleet
from yatt.controller.phases import Phases
from yatt.controller.recorder import Recorder
from yatt.controller.rollouter import Rollouter
from yatt.controller.survey import Survey
from yatt.controller.weight_sync import WeightSync
from yatt.intervals import wilson
from yatt.protocols import Peers, Source, Trainer
from yatt.reports import Decision, EvaluationReport, RolloutCounts, StepReport, UpdateReport, add_counts, in_step
from yatt.types import Group, Pair, Prompt, Sample

T = TypeVar("T", Prompt, Sample | Pair)
ToSamples = Callable[..., list[Sample]]
"""Of scored groups, and `version`, the policy's that is going to learn from them."""
OnGroups = Callable[[int, Sequence[Group]], None]
Collected = tuple[list[Group], RolloutCounts]


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
        self, step: int, counts: RolloutCounts, update: UpdateReport | None, *, draws: bool = True
    ) -> tuple[RolloutCounts, UpdateReport]:
        """Everyone's counts added up, and what the ranks said, which only those heard who had something to send. With
        `draws`, everyone's draws move the cursor. Collective."""
        mine = (self.source.drawn(), self.source.returned(), self.source.bad_rows, counts, update)
        everyones = await self.peers.all_gather(f"report/{step}", mine)
        drawn, returned, bad, counted, updates = zip(*everyones, strict=True)
        if draws:
            self._close_source(drawn, returned)
        self.bad_rows = sum(bad)
        return add_counts(counted), next(update for update in updates if update is not None)

    async def close_source(self, tag: str) -> None:
        """Everyone's draws, and what they gave back, move the cursor. Collective."""
        everyones = await self.peers.all_gather(f"drawn/{tag}", (self.source.drawn(), self.source.returned()))
        self._close_source(*zip(*everyones, strict=True))

    def _close_source(self, drawn: Sequence[int], returned: Sequence[Sequence[int]]) -> None:
        self.source.end_step(drawn, [uid for uids in returned for uid in uids])

    def report(
        self,
        step: int,
        counts: RolloutCounts | None,
        update: UpdateReport,
        generators: int = 0,
        decisions: tuple[Decision, ...] = (),
    ) -> StepReport:
        spans = self.recorder.take()
        own, phases = in_step(spans), Counter[str]()
        for span in own:
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
            seconds=max(span.stop for span in own) - min(span.start for span in own),
            bad_rows=self.bad_rows,
            generators=generators,
            decisions=decisions,
        )

    def state(self) -> dict[str, Any]:
        return {"policy_version": self.version, "source": self.source.state()}

    def restore(self, state: dict[str, Any]) -> None:
        self.version = state["policy_version"]
        self.source.restore(state["source"])


class Controller:
    """One RLHF controller. All calls are collective: every controller makes them, in the same order. Where responses
    are drawn ahead of training, `ahead` is the last step, whose successor need not be drawn; else 0."""

    def __init__(
        self,
        *,
        desk: Desk[Prompt],
        rollouter: Rollouter,
        to_samples: ToSamples,
        shaper: RewardShaper,
        phases: Phases,
        weight_sync: WeightSync,
        fleet: Fleet,
        on_groups: OnGroups,
        responses: int,
        ahead: int = 0,
    ) -> None:
        self.desk = desk
        self.rollouter = rollouter
        self.to_samples = to_samples
        self.shaper = shaper
        self.phases = phases
        self.weight_sync = weight_sync
        self.fleet = fleet
        self.on_groups = on_groups
        self.responses = responses
        self.ahead = ahead
        self._next: asyncio.Task[Collected] | None = None

    async def step(self, step: int) -> StepReport:
        """One step of the loop. The report is the same on every controller, but for its spans."""
        phase = self.desk.recorder.phase
        async with phase("rollout"):
            await self.phases.enter("rollout", self.responses / self.rollouter.rate.value)
            groups, counts = await self._collected(step)
        async with phase("balance"):
            samples = self.to_samples(groups, version=self.desk.version)
            counts = replace(counts, masked=sum(len(group.trajectories) for group in groups) - len(samples))
            shares = await self.desk.exchange.balance(step, samples)
        async with phase("train"):
            await self.phases.enter("train")
            update = await self.desk.trainer.update(shares)
        async with phase("sync"), self.phases.still():
            await self.weight_sync.send(self.desk.next_version())
        async with phase("report"):
            self.on_groups(step, groups)
            counts, update = await self.desk.close_step(step, counts, update, draws=not self.ahead)
            self.rollouter.rate.close(counts.groups_accepted, counts.groups_accepted + counts.groups_dropped)
            self.shaper.close(counts.rewards)
        return self.desk.report(step, counts, update, self.fleet.alive, self.phases.decisions(counts.longest_response))

    async def _collected(self, step: int) -> Collected:
        """The groups of a step. Up to step `ahead`, those of the next are begun at once, to be drawn while this one
        trains: they are cut where the version changes, and go on under the new one."""
        groups, counts = await (self._next or self._collect(self.desk.version))
        if self.ahead:
            await self.desk.close_source(str(step))
            self._next = self._collect(self.desk.version + 1) if step < self.ahead else None
        return groups, counts

    def _collect(self, version: int) -> asyncio.Task[Collected]:
        """Begin to collect what the policy of `version` is going to train on."""
        self.desk.source.begin_step()
        return asyncio.create_task(self.rollouter.collect(self.desk.quota, version))

    async def settle(self) -> None:
        """Wait until nothing is being drawn."""
        if self._next is not None:
            await self._next

    async def close(self) -> None:
        """End what is under way."""
        if self._next is not None:
            self._next.cancel()
            await asyncio.gather(self._next, return_exceptions=True)
        await self.phases.close()

    async def state(self) -> tuple[dict[str, Any], list[CarriedGroup]]:
        """What a resumed run needs of the controllers: numbers in global terms, the same on all of them, and the groups
        that this one carries over, those collected ahead among them. The ranks are awake afterwards, so that they can
        save what they hold. Collective."""
        await self.settle()
        if self.phases.judges and any(await self.desk.peers.all_gather("resting", self.rollouter.busy)):
            await self.phases.enter("rollout")
        await self.rollouter.rest(self.desk.version)
        await self.desk.close_source("state")
        await self.phases.enter("train")
        ahead, counts = self._next.result() if self._next else ([], RolloutCounts())
        carried = [carried_group(group) for group in (*ahead, *self.rollouter.carried)]
        unreported = await self.desk.peers.all_gather("unreported", self.rollouter.unreported(counts))
        known = {
            "acceptance": self.rollouter.rate.state(),
            "rewards": self.shaper.state(),
            "unreported": asdict(add_counts(unreported)),
        }
        return self.desk.state() | known, carried

    async def restore(self, state: dict[str, Any], carried: Sequence[CarriedGroup] = ()) -> None:
        """Go on from a checkpoint whose weights the ranks have loaded: bring them to the engines. `carried` are the
        groups of all controllers there were; each takes its share of them. Collective."""
        self.desk.restore(state)
        self.rollouter.rate.restore(state.get("acceptance", (0.0, 0.0)))
        self.shaper.restore(state.get("rewards", {}))
        if self.desk.peers.index == 0:  # they add up over controllers
            self.rollouter.restore(state.get("unreported", {}))
        mine = sorted(carried, key=lambda group: group.uid)[self.desk.peers.index :: self.desk.peers.count]
        self.rollouter.carried = [restored_group(group, self.desk.source.again(group.uid)) for group in mine]
        await self.phases.enter("train")
        await self.weight_sync.send(self.desk.version)


class OfflineController:
    """The same program with rows to learn from in place of rollouts. `held_out` is this controller's share of the rows
    that are evaluated and never trained on. With a `survey`, what the reference says of rows is known beforehand."""

    def __init__(
        self, *, desk: Desk[Sample | Pair], held_out: Sequence[Sample | Pair] = (), survey: Survey | None = None
    ) -> None:
        self.desk = desk
        self.held_out = held_out
        self._survey = survey

    async def prepare(self) -> int:
        """Look at some rows more; returns how many those were, 0 when nothing is left to do. Collective; to be called
        until then, while the ranks have the weights that the run starts from."""
        rows = await self._survey.advance() if self._survey else 0
        if not rows and self._survey:
            self.held_out = self._survey.held_out
        return rows

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

    async def evaluate(self, step: int) -> EvaluationReport:
        """Loss, and accuracy of pairs, on the held-out rows of all controllers. The same report on every controller.
        Collective."""
        shares = await self.desk.exchange.balance(step, self.held_out, work="evaluate")
        mine = (len(self.held_out), await self.desk.trainer.evaluate(shares))
        rows, updates = zip(*await self.desk.peers.all_gather(f"evaluate/{step}", mine), strict=True)
        found: UpdateReport = next(update for update in updates if update is not None)
        accuracy, count = found.numbers.get("pair_accuracy"), sum(rows)
        return EvaluationReport(
            prompts=count,
            accuracy_greedy=None,
            accuracy_sampled=None,
            loss=found.loss,
            pair_accuracy=accuracy,
            intervals={} if accuracy is None else {"pair_accuracy": wilson(accuracy * count, count)},
        )

    async def state(self) -> tuple[dict[str, Any], list[CarriedGroup]]:
        return self.desk.state(), []

    async def restore(self, state: dict[str, Any], carried: Sequence[CarriedGroup] = ()) -> None:
        self.desk.restore(state)

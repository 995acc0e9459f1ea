"""The controller: C of these run the same program, each on its own share of the prompts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

from yatt.algorithm.rewards import RewardShaper
from yatt.controller.carry_over import CarriedGroup, carried_group, restored_group
from yatt.controller.desk import Desk
from yatt.controller.fleet import Fleet
from yatt.controller.phases import Phases
from yatt.controller.rollouter import Rollouter
from yatt.controller.weight_sync import WeightSync
from yatt.reports import RolloutCounts, StepReport, add_counts
from yatt.types import Group, Prompt, Sample

ToSamples = Callable[..., list[Sample]]
"""Of scored groups, and `version`, the policy's that is going to learn from them."""
OnGroups = Callable[[int, Sequence[Group]], None]
Collected = tuple[list[Group], RolloutCounts]


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
            counts, update = await self.desk.close_step(step, counts, update, moves_cursor=not self.ahead)
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
        """The state that a resumed run needs: numbers in global terms, the same on every controller, and the groups
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
        state = self.desk.state() | {
            "acceptance": self.rollouter.rate.state(),
            "rewards": self.shaper.state(),
            "unreported": asdict(add_counts(unreported)),
        }
        return state, carried

    async def restore(self, state: dict[str, Any], carried: Sequence[CarriedGroup] = ()) -> None:
        """Go on from a checkpoint whose weights the ranks have loaded: bring them to the engines. `carried` are the
        groups of all controllers there were; each takes its share of them. Collective."""
        self.desk.restore(state)
        self.rollouter.rate.restore(state.get("acceptance", (0.0, 0.0)))
        self.shaper.restore(state.get("rewards", {}))
        if self.desk.peers.index == 0:  # they add up over controllers
            self.rollouter.restore(state.get("unreported", {}))
        in_order = sorted(carried, key=lambda group: group.uid)
        share = in_order[self.desk.peers.index :: self.desk.peers.count]
        self.rollouter.carried = [restored_group(group, self.desk.source.again(group.uid)) for group in share]
        await self.phases.enter("train")
        await self.weight_sync.send(self.desk.version)

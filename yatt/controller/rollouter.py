"""Collects groups: generate, score, filter, refill, streaming, on this controller's share of the prompts alone."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import ceil
from typing import Any

from yatt.algorithm.filter import AcceptanceRate, Filter
from yatt.config.schema import RolloutConfig
from yatt.controller.carry_over import restored_counts
from yatt.controller.responder import Responder, greedy, sampled
from yatt.controller.tally import Tally, as_group, count, takes_greedy, usable
from yatt.protocols import Source
from yatt.reports import RolloutCounts, add_counts
from yatt.types import Group, Prompt, Trajectory

DROPS = 8
"""Dropped groups that are kept for people to read."""


class Rollouter:
    """Owes `quota` groups a step, and moves between drawing, scoring and refilling on its own.

    While groups are missing it keeps `missing * oversample / acceptance rate` prompts in flight, and draws at most
    `max_refills * quota` beyond the quota; past that, or when no prompt is left, the step goes on with what there is.
    Once the quota is full, what is still being drawn is aborted. A good group that comes later is carried over to a
    step whose version is at most `max_staleness` newer, otherwise wasted. Prompts of aborted and wasted groups are
    offered again. With `refill: one` each dropped group is replaced by one prompt: nothing is drawn in vain, and which
    prompts are drawn depends on the answers, never on their timing.

    `advantage` names the estimator that the groups are for. ReMax (`takes_greedy`) has one response more per prompt,
    the last, drawn greedily: its reward is the group's baseline. It is work like the others and counts as a response,
    but not among the rewards, and is not trained.
    """

    def __init__(
        self, *, source: Source[Prompt], responder: Responder, drop: Filter, config: RolloutConfig, advantage: str
    ) -> None:
        self._source = source
        self._responder = responder
        self._drop = drop
        self._config = config
        self._advantage = advantage
        self._params = [
            *[sampled(config, config.temperature)] * config.n,
            *[greedy(config)] * takes_greedy(advantage),
        ]
        self.rate = AcceptanceRate()
        self.carried: list[Group] = []
        self.dropped: list[Group] = []  # the first ones since somebody took them, to be read
        self._tally = Tally()
        self._earlier = RolloutCounts()  # of a run that this one resumes
        self._running: dict[int, asyncio.Task[None]] = {}  # by uid, those that only wait for scores included
        self._drawing: dict[int, Prompt] = {}
        self._ended: asyncio.Queue[tuple[Prompt, Sequence[Trajectory] | Exception]] = asyncio.Queue()

    async def collect(self, quota: int, version: int) -> tuple[list[Group], RolloutCounts]:
        """The step's groups in prompt order, and the numbers of all that ended since the last step, dropped groups
        included. `version` is the policy's now."""
        tally = self._tally
        self._discard_stale(version)
        tally.kept, self.carried = self.carried[:quota], self.carried[quota:]
        carried = len(tally.kept)
        try:
            while not self._ended.empty():  # scores that came since the last step
                self._settle(quota, version, *self._ended.get_nowait())
            while len(tally.kept) < quota:
                self._draw(quota)
                if not tally.open:
                    break
                self._settle(quota, version, *await self._ended.get())
            await self._stop(quota, version)
        except BaseException:
            for task in self._running.values():
                task.cancel()
            raise
        self._discard_stale(version + 1)
        counts = add_counts([count(tally, quota, carried), self._earlier])
        self._tally, self._earlier = Tally(), RolloutCounts()
        return sorted(tally.kept, key=lambda group: group.prompt.uid), counts

    @property
    def busy(self) -> bool:
        """Whether scores are still to come."""
        return bool(self._running)

    async def rest(self, version: int) -> None:
        """Wait for the scores still to come, so that `carried` is all there is; `version` is the policy's now."""
        while self._running:
            self._settle(0, version, *await self._ended.get())
        self._discard_stale(version)

    def unreported(self, ahead: RolloutCounts) -> RolloutCounts:
        """At rest: the numbers of all that ended since the last report. `ahead` are those of groups collected for a
        step that has not begun: they are carried over, so they count there as surplus does."""
        as_surplus = replace(
            ahead,
            groups=0,
            groups_equal=0,
            groups_missing=0,
            groups_carried=0,
            groups_surplus=ahead.groups_accepted,
        )
        return add_counts([as_surplus, count(self._tally, 0, 0), self._earlier])

    def restore(self, unreported: Mapping[str, Any]) -> None:
        """Report these numbers with the next step's."""
        self._earlier = restored_counts(unreported)

    def _draw(self, quota: int) -> None:
        """Start as many prompts as the groups missing are likely to take."""
        tally, config = self._tally, self._config
        rate = self.rate.value if config.refill == "estimate" else 1.0
        wanted = ceil((quota - len(tally.kept)) * config.oversample / rate - 1e-9)
        bound = quota * (1 + config.max_refills)
        while len(tally.open) < wanted and tally.drawn < bound:
            prompt = self._source.draw()
            if prompt is None:
                return
            tally.drawn += 1
            tally.media_bytes += sum(media.nbytes for media in prompt.media)
            tally.open.add(prompt.uid)
            self._drawing[prompt.uid] = prompt
            self._running[prompt.uid] = asyncio.create_task(self._respond(prompt))

    async def _respond(self, prompt: Prompt) -> None:
        try:
            on_drawn = partial(self._drawing.pop, prompt.uid, None)
            self._ended.put_nowait((prompt, await self._responder.respond(prompt, self._params, on_drawn)))
        except Exception as error:
            self._ended.put_nowait((prompt, error))

    def _settle(self, quota: int, version: int, prompt: Prompt, outcome: Sequence[Trajectory] | Exception) -> None:
        """One group has ended: keep it, drop it, or set it aside. It may have been drawn in an earlier step."""
        del self._running[prompt.uid]
        if isinstance(outcome, Exception):
            raise outcome
        tally = self._tally
        tally.open.discard(prompt.uid)
        group = as_group(prompt, outcome[: self._config.n], *outcome[self._config.n :])
        if any(t.finish == "aborted" for t in group.failures):
            self._waste(group)
            return
        tally.finished.append(group)
        if group.baseline is not None:
            tally.greedy += outcome[self._config.n :]
        enough = usable(group, self._advantage)
        good = enough and not self._drop(group.rewards)
        self.rate.see(good)
        if not good:
            tally.dropped += 1
            self.dropped += [group] * (len(self.dropped) < DROPS)
            tally.unscored += not enough
        elif len(tally.kept) < quota and self._fresh(group, version):
            tally.kept.append(group)
        else:
            tally.surplus += 1
            self.carried.append(group)

    async def _stop(self, quota: int, version: int) -> None:
        """End what is still being drawn. Groups that only wait for scores come in later."""
        if self._drawing:
            await self._responder.abort(list(self._drawing.values()), len(self._params))
        while self._drawing or not self._ended.empty():
            self._settle(quota, version, *await self._ended.get())

    def _fresh(self, group: Group, version: int) -> bool:
        """Whether a step under `version` may train on it."""
        versions = [span.version for t in group.trajectories for span in t.spans]
        oldest = min(versions, default=version)
        return version - oldest <= self._config.max_staleness

    def _discard_stale(self, version: int) -> None:
        """Give up carried groups that a step under `version` may not train on."""
        carried, self.carried = self.carried, []
        for group in carried:
            if self._fresh(group, version):
                self.carried.append(group)
            else:
                self._waste(group)

    def _waste(self, group: Group) -> None:
        self._tally.wasted += 1
        self._tally.tokens_wasted += sum(t.response_tokens for t in (*group.trajectories, *group.failures))
        self._source.give_back(group.prompt.uid)

"""Collects groups: generate, score, filter, refill, streaming, on this controller's share of the prompts alone."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import blake2b
from math import ceil, fsum
from typing import Any

import numpy as np

from yatt.algorithm.filter import AcceptanceRate, Filter, all_equal
from yatt.config.algorithms import LONE
from yatt.config.schema import RolloutConfig
from yatt.controller.router import Router
from yatt.errors import BackendError
from yatt.histogram import histogram
from yatt.moments import Moments
from yatt.protocols import Scorer, Source
from yatt.reports import RolloutCounts, add_counts, first_failures
from yatt.types import Group, Prompt, Request, SampleKey, SamplingParams, Trajectory

Decode = Callable[[np.ndarray], str]


def request_seed(run_seed: int, key: SampleKey, purpose: str) -> int:
    """The seed of one response: a function of the run's seed, the prompt's position and the sibling, nothing else."""
    digest = blake2b(f"{run_seed}/{purpose}/{key.uid}/{key.sibling}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") >> 1


def sampled(config: RolloutConfig, temperature: float) -> SamplingParams:
    """How a response is sampled at this temperature."""
    return SamplingParams(
        max_tokens=config.max_tokens,
        temperature=temperature,
        top_p=config.top_p,
        top_k=config.top_k,
        stop=tuple(config.stop),
    )


def greedy(config: RolloutConfig) -> SamplingParams:
    """How the likeliest response is drawn."""
    return SamplingParams(max_tokens=config.max_tokens, temperature=0.0, stop=tuple(config.stop))


class Responder:
    """Prompt in, scored trajectories out: what rollout and evaluation share."""

    def __init__(self, router: Router, scorer: Scorer, decode: Decode, seed: int, purpose: str) -> None:
        self._router = router
        self._scorer = scorer
        self._decode = decode
        self._seed = seed
        self._purpose = purpose

    async def respond(
        self, prompt: Prompt, params: Sequence[SamplingParams], on_drawn: Callable[[], object] = lambda: None
    ) -> list[Trajectory]:
        """One trajectory per entry of `params`, in that order; each is scored as soon as it ends. `on_drawn` is called
        when the last response has been drawn. Where any was aborted, none has a score."""
        keys = [SampleKey(prompt.uid, sibling) for sibling in range(len(params))]
        requests = [
            Request(
                key=key,
                tokens=prompt.tokens,
                params=p,
                seed=request_seed(self._seed, key, self._purpose),
                media=prompt.media,
            )
            for key, p in zip(keys, params, strict=True)
        ]
        drawn: list[Trajectory] = []
        async with asyncio.TaskGroup() as scoring:
            tasks = []
            async for completions in self._router.generate(requests):
                ended = [Trajectory.single_turn(prompt, c, self._decode(c.tokens)) for c in completions]
                drawn += ended
                if whole := [t for t in ended if t.finish != "aborted"]:
                    tasks.append(scoring.create_task(self._score(whole)))
            on_drawn()
            if aborted := any(t.finish == "aborted" for t in drawn):
                for task in tasks:
                    task.cancel()
        trajectories = drawn if aborted else [t for task in tasks for t in task.result()]
        if len(trajectories) != len(params):
            raise BackendError(
                f"a generator answered {len(trajectories)} of {len(params)} requests of prompt {prompt.uid}"
            )
        return sorted(trajectories, key=lambda t: t.sibling)

    async def abort(self, prompts: Sequence[Prompt], siblings: int) -> None:
        """End what is being drawn for these prompts."""
        await self._router.abort({SampleKey(p.uid, sibling) for p in prompts for sibling in range(siblings)})

    async def _score(self, trajectories: list[Trajectory]) -> list[Trajectory]:
        scores = await self._scorer.score(trajectories)
        return [t.judged(s) for t, s in zip(trajectories, scores, strict=True)]


@dataclass(slots=True)
class _Tally:
    """What has happened since the end of the last step."""

    kept: list[Group] = field(default_factory=list)
    finished: list[Group] = field(default_factory=list)
    greedy: list[Trajectory] = field(default_factory=list)  # scored, of groups in `finished`
    dropped: int = 0
    unscored: int = 0  # of those dropped
    surplus: int = 0
    wasted: int = 0
    tokens_wasted: int = 0
    media_bytes: int = 0
    drawn: int = 0
    open: set[int] = field(default_factory=set)  # uids drawn in this step that have not ended


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
        self._tally = _Tally()
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
        counts = add_counts([_count(tally, quota, carried), self._earlier])
        self._tally, self._earlier = _Tally(), RolloutCounts()
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
        surplus = dict(groups_surplus=ahead.groups_accepted, groups_equal=0, groups_missing=0, groups_carried=0)
        return add_counts([replace(ahead, groups=0, **surplus), _count(self._tally, 0, 0), self._earlier])

    def restore(self, unreported: Mapping[str, Any]) -> None:
        """Report these numbers with the next step's; of a checkpoint, where keys are texts, and tuples lists. Former
        ones have the sum of the rewards' squares."""
        known = {**unreported, "failures": tuple(unreported.get("failures", ()))}
        if (squares := known.pop("reward_square_sum", None)) is not None:
            sums = Moments.of_sums(known["scored"], known["reward_sum"], squares)
            known["reward_deviations"] = sums.deviations
        known.setdefault("part_counts", dict.fromkeys(known.get("part_sums", {}), known.get("scored", 0)))
        lengths = {int(length): count for length, count in known.get("response_lengths", {}).items()}
        self._earlier = RolloutCounts(**{**known, "response_lengths": lengths})

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
        tally.greedy += [t for t in outcome[self._config.n :] if group.baseline is not None]
        enough = usable(group, self._advantage)
        good = enough and not self._drop(group.rewards)
        self.rate.see(good)
        if not good:
            tally.dropped += 1
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
        oldest = min((span.version for t in group.trajectories for span in t.spans), default=version)
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


def takes_greedy(advantage: str) -> bool:
    """Whether a prompt has one greedy response beside the sampled ones."""
    return advantage == "remax"


def as_group(prompt: Prompt, siblings: Sequence[Trajectory], compared: Trajectory | None = None) -> Group:
    """Responses whose score failed are not part of the group; they are counted. `compared` gives the baseline."""
    scored = [t for t in siblings if _scored(t)]
    failed = [t for t in (*siblings, *([compared] if compared else ())) if not _scored(t)]
    baseline = compared.score.value if compared and compared.score else None
    return Group(prompt=prompt, trajectories=tuple(scored), failures=tuple(failed), baseline=baseline)


def _scored(trajectory: Trajectory) -> bool:
    return trajectory.score is not None and trajectory.score.status == "ok"


def usable(group: Group, advantage: str) -> bool:
    """Whether there is enough to learn from: two scored siblings where they are compared, one where each stands alone;
    and the baseline where there is one."""
    least = 1 if advantage in LONE else 2
    return len(group.trajectories) >= least and not (takes_greedy(advantage) and group.baseline is None)


def _count(tally: _Tally, quota: int, carried: int) -> RolloutCounts:
    """The numbers of one controller's rollout; rewards and parts are over every scored sibling, kept or not,
    lengths and failures also over greedy responses."""
    scored = [t for group in tally.finished for t in group.trajectories]
    failed = [t for group in tally.finished for t in group.failures]
    drawn = (*scored, *tally.greedy, *failed)
    lengths = [t.response_tokens for t in drawn]
    rewards = [t.score.value for t in scored if t.score is not None and t.score.value is not None]
    parts: defaultdict[str, list[float]] = defaultdict(list)
    for t in scored:
        for name, value in t.score.parts.items() if t.score is not None else ():
            parts[name].append(value)
    return RolloutCounts(
        groups=len(tally.kept),
        groups_dropped=tally.dropped,
        groups_unscored=tally.unscored,
        groups_equal=sum(all_equal(group.rewards) for group in tally.kept),
        groups_missing=quota - len(tally.kept),
        groups_carried=carried,
        groups_surplus=tally.surplus,
        groups_wasted=tally.wasted,
        tokens_wasted=tally.tokens_wasted,
        media_bytes=tally.media_bytes,
        refills=max(0, tally.drawn - quota),
        reward_failures=len(failed),
        reward_timeouts=sum(t.score is not None and t.score.status == "timed_out" for t in failed),
        responses=len(lengths),
        scored=len(scored),
        truncated=sum(t.finish == "length" for t in drawn),
        response_tokens=sum(lengths),
        prompt_tokens=sum(len(t.prompt.tokens) for t in drawn),
        reward_sum=fsum(rewards),
        reward_deviations=Moments.of(rewards).deviations,
        reward_min=min(rewards, default=None),
        reward_max=max(rewards, default=None),
        longest_response=max(lengths, default=0),
        part_sums={name: fsum(values) for name, values in parts.items()},
        part_counts={name: len(values) for name, values in parts.items()},
        response_lengths=histogram(lengths),
        failures=first_failures(t.score.detail for t in failed if t.score is not None),
    )

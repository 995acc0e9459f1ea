"""Collects groups: generate, score, filter, refill, streaming, on this controller's share of the prompts alone."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from hashlib import blake2b

import numpy as np

from yatt.algorithm.filter import FILTERS
from yatt.config.schema import RolloutConfig
from yatt.controller.router import Router
from yatt.errors import BackendError
from yatt.protocols import Scorer, Source
from yatt.types import Group, Prompt, Request, RolloutCounts, SampleKey, SamplingParams, Trajectory

Decode = Callable[[np.ndarray], str]


def request_seed(run_seed: int, key: SampleKey, purpose: str) -> int:
    """The seed of one response: a function of the run's seed, the prompt's position and the sibling, nothing else."""
    digest = blake2b(f"{run_seed}/{purpose}/{key.uid}/{key.sibling}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") >> 1


class Responder:
    """Prompt in, scored trajectories out: what rollout and evaluation share."""

    def __init__(self, router: Router, scorer: Scorer, decode: Decode, seed: int, purpose: str) -> None:
        self._router = router
        self._scorer = scorer
        self._decode = decode
        self._seed = seed
        self._purpose = purpose

    async def respond(self, prompt: Prompt, params: Sequence[SamplingParams]) -> list[Trajectory]:
        """One scored trajectory per entry of `params`, in that order; each is scored as soon as it ends."""
        keys = [SampleKey(prompt.uid, sibling) for sibling in range(len(params))]
        requests = [
            Request(key=key, tokens=prompt.tokens, params=p, seed=request_seed(self._seed, key, self._purpose))
            for key, p in zip(keys, params, strict=True)
        ]
        async with asyncio.TaskGroup() as scoring:
            tasks = []
            async for completions in self._router.generate(requests):
                ended = [Trajectory.single_turn(prompt, c, self._decode(c.tokens)) for c in completions]
                tasks.append(scoring.create_task(self._score(ended)))
        trajectories = sorted((t for task in tasks for t in task.result()), key=lambda t: t.sibling)
        if len(trajectories) != len(params):
            raise BackendError(
                f"a generator answered {len(trajectories)} of {len(params)} requests of prompt {prompt.uid}"
            )
        return trajectories

    async def _score(self, trajectories: list[Trajectory]) -> list[Trajectory]:
        scores = await self._scorer.score(trajectories)
        return [replace(t, score=s) for t, s in zip(trajectories, scores, strict=True)]


class Rollouter:
    """Owes `quota` groups a step. A dropped group is replaced by the next prompt at once, up to `max_refills * quota`
    times; past that the step goes on with what there is. Which prompts are drawn depends on the answers, never on their
    timing: they are the shortest run of this controller's order that holds the quota, or all that the bound allows."""

    def __init__(self, *, source: Source[Prompt], responder: Responder, config: RolloutConfig) -> None:
        self._source = source
        self._responder = responder
        self._drop = FILTERS[config.filter]
        self._max_refills = config.max_refills
        self._params = [
            SamplingParams(
                max_tokens=config.max_tokens,
                temperature=config.temperature,
                top_p=config.top_p,
                top_k=config.top_k,
                stop=tuple(config.stop),
            )
        ] * config.n

    async def collect(self, quota: int) -> tuple[list[Group], RolloutCounts]:
        """The step's groups in prompt order, and the numbers of all that was generated, dropped groups included."""
        finished: list[Group] = []
        kept: list[Group] = []
        refills = self._max_refills * quota

        async def owe(prompt: Prompt | None, tasks: asyncio.TaskGroup) -> None:
            nonlocal refills
            if prompt is None:
                return
            group = as_group(prompt, await self._responder.respond(prompt, self._params))
            finished.append(group)
            if usable(group) and not self._drop(group.rewards):
                kept.append(group)
            elif refills:
                refills -= 1
                tasks.create_task(owe(self._source.draw(), tasks))

        async with asyncio.TaskGroup() as tasks:
            for _ in range(quota):
                tasks.create_task(owe(self._source.draw(), tasks))
        counts = count(finished, kept, refills=self._max_refills * quota - refills)
        return sorted(kept, key=lambda group: group.prompt.uid), counts


def as_group(prompt: Prompt, trajectories: Sequence[Trajectory]) -> Group:
    """Siblings whose score failed are not part of the group; they are counted."""
    ok = [t.score is not None and t.score.status == "ok" for t in trajectories]
    return Group(
        prompt=prompt,
        trajectories=tuple(t for t, good in zip(trajectories, ok, strict=True) if good),
        failures=tuple(t for t, good in zip(trajectories, ok, strict=True) if not good),
    )


def usable(group: Group) -> bool:
    """A group teaches by comparison: it takes two scored siblings."""
    return len(group.trajectories) >= 2


def count(finished: Sequence[Group], kept: Sequence[Group], *, refills: int) -> RolloutCounts:
    """The numbers of one controller's rollout; rewards and parts are over every scored trajectory, kept or not."""
    scored = [t for group in finished for t in group.trajectories]
    failed = [t for group in finished for t in group.failures]
    lengths = [t.response_tokens for t in (*scored, *failed)]
    rewards = [t.score.value for t in scored if t.score is not None and t.score.value is not None]
    parts: Counter[str] = Counter()
    for t in scored:
        parts.update(t.score.parts if t.score is not None else {})
    return RolloutCounts(
        groups=len(kept),
        groups_dropped=len(finished) - len(kept),
        refills=refills,
        reward_failures=len(failed),
        reward_timeouts=sum(t.score is not None and t.score.status == "timed_out" for t in failed),
        responses=len(lengths),
        scored=len(scored),
        truncated=sum(t.finish == "length" for t in (*scored, *failed)),
        response_tokens=sum(lengths),
        prompt_tokens=sum(len(g.prompt.tokens) * (len(g.trajectories) + len(g.failures)) for g in finished),
        reward_sum=sum(rewards),
        reward_square_sum=sum(r * r for r in rewards),
        longest_response=max(lengths, default=0),
        part_sums=dict(parts),
    )

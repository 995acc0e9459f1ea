"""Draws the responses to one prompt and scores them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from hashlib import blake2b

import numpy as np

from yatt.config.schema import RolloutConfig
from yatt.controller.router import Router
from yatt.errors import BackendError
from yatt.protocols import Scorer
from yatt.types import Prompt, Request, SampleKey, SamplingParams, Trajectory

Decode = Callable[[np.ndarray], str]


def request_seed(run_seed: int, key: SampleKey, purpose: str) -> int:
    """The seed of one response: a function of the run's seed, the prompt's position, the sibling and the turn, nothing
    else."""
    turn = f"/{key.turn}" if key.turn else ""
    digest = blake2b(f"{run_seed}/{purpose}/{key.uid}/{key.sibling}{turn}".encode(), digest_size=4).digest()
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
        """Draw one trajectory per entry of `params`, in that order, and score each as soon as it ends. `on_drawn` is
        called when the last response has been drawn. Where any was aborted, none has a score. Raises BackendError where
        a response is missing."""
        requests = [self._request(prompt, sibling, its_params) for sibling, its_params in enumerate(params)]
        drawn: list[Trajectory] = []
        async with asyncio.TaskGroup() as scoring:
            tasks: list[asyncio.Task[list[Trajectory]]] = []
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

    def _request(self, prompt: Prompt, sibling: int, params: SamplingParams) -> Request:
        key = SampleKey(prompt.uid, sibling)
        seed = request_seed(self._seed, key, self._purpose)
        return Request(key=key, tokens=prompt.tokens, params=params, seed=seed, media=prompt.media)

    async def _score(self, trajectories: list[Trajectory]) -> list[Trajectory]:
        scores = await self._scorer.score(trajectories)
        return [t.judged(s) for t, s in zip(trajectories, scores, strict=True)]

"""Plays conversations with an environment, and scores them: prompt in, trajectories of many turns out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from yatt.controller.conversation import Conversation, Limits
from yatt.controller.responder import Decode, Responder, request_seed
from yatt.controller.router import Router
from yatt.errors import BackendError, ConversationEnded
from yatt.protocols import Chat, Clock, Environment, Scorer
from yatt.types import Completion, Prompt, Request, SamplingParams, Score, Trajectory

PART = "environment"
"""The name of the environment's part of a score, where rewards are added to it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What conversations are played in, and how they are read. One that fails is played anew, `retries` times at most.
    With `judged`, the run's rewards score a conversation too, beside the environment."""

    environment: Environment
    chat: Chat
    limits: Limits
    retries: int
    judged: bool


class Player(Responder):
    """A responder whose responses are conversations."""

    def __init__(
        self, router: Router, scorer: Scorer, decode: Decode, seed: int, purpose: str, *, setting: Setting, clock: Clock
    ) -> None:
        super().__init__(router, scorer, decode, seed, purpose)
        self._setting, self._clock = setting, clock
        self._playing: dict[tuple[int, int], tuple[Conversation, asyncio.Future[Score | None]]] = {}

    async def respond(
        self, prompt: Prompt, params: Sequence[SamplingParams], on_drawn: Callable[[], object] = lambda: None
    ) -> list[Trajectory]:
        drawn: list[Trajectory] = []
        async with asyncio.TaskGroup() as work:
            plays = [work.create_task(self._play(prompt, sibling, one)) for sibling, one in enumerate(params)]
            tasks: list[asyncio.Task[Trajectory]] = []
            for play in asyncio.as_completed(plays):
                trajectory, score = await play
                drawn.append(trajectory)
                if trajectory.finish != "aborted":
                    tasks.append(work.create_task(self._judge(trajectory, score)))
            on_drawn()
            if aborted := any(t.finish == "aborted" for t in drawn):
                for task in tasks:
                    task.cancel()
        return sorted(drawn if aborted else [task.result() for task in tasks], key=lambda t: t.sibling)

    async def abort(self, prompts: Sequence[Prompt], siblings: int) -> None:
        uids = {prompt.uid for prompt in prompts}
        for (uid, _), (talk, play) in self._playing.items():
            if uid in uids:
                talk.aborted = True
                play.cancel()

    async def _play(self, prompt: Prompt, sibling: int, params: SamplingParams) -> tuple[Trajectory, Score | None]:
        """One conversation, and the environment's score of it."""
        setting, key = self._setting, (prompt.uid, sibling)
        for attempt in range(setting.retries + 1):
            talk = Conversation(
                prompt=prompt,
                sibling=sibling,
                params=params,
                limits=setting.limits,
                ask=self._ask,
                chat=setting.chat,
                seed_of=lambda key: request_seed(self._seed, key, self._purpose),
                clock=self._clock,
            )
            play = asyncio.ensure_future(setting.environment.play(talk))
            self._playing[key] = talk, play
            try:
                score = await play
            except ConversationEnded:
                score = None
            except asyncio.CancelledError:
                if not talk.aborted:  # we are cancelled ourselves
                    play.cancel()
                    raise
                score = None
            finally:
                del self._playing[key]
            whole = score is None or score.status == "ok"
            if talk.aborted or whole or attempt == setting.retries:
                break
        return talk.trajectory(), with_turns(score, talk.trajectory())

    async def _judge(self, trajectory: Trajectory, score: Score | None) -> Trajectory:
        """The trajectory with its score: the environment's, the rewards', or the sum of both."""
        if not trajectory.turns:
            detail = score.detail if score and score.detail else "the conversation ended before the policy had a turn"
            return trajectory.judged(Score(status="failed", detail=detail))
        if score is not None and (score.status != "ok" or not self._setting.judged):
            return trajectory.judged(score)
        if not self._setting.judged:
            return trajectory.judged(Score(status="failed", detail="the environment gave no reward"))
        (judged,) = await self._score([trajectory])
        return judged if score is None else judged.judged(_sum(score, judged.score))

    async def _ask(self, request: Request) -> Completion:
        async for completions in self._router.generate([request]):
            return completions[0]
        raise BackendError(f"a generator did not answer request {request.key}")


def with_turns(score: Score | None, trajectory: Trajectory) -> Score | None:
    """The environment's score with the rewards that it gave for turns."""
    early = [turn.reward for row in trajectory.rows for turn in row.turns if turn.reward is not None]
    if not early or (score is not None and score.value is None):
        return score
    last = score or Score(status="ok", value=0.0)
    return replace(last, value=(last.value or 0.0) + sum(early), parts={**last.parts, "turns": sum(early)})


def _sum(environment: Score, judged: Score | None) -> Score:
    if judged is None or judged.status != "ok" or judged.value is None or environment.value is None:
        return judged or environment
    parts = {**environment.parts, PART: environment.value, **judged.parts}
    return replace(judged, value=environment.value + judged.value, parts=parts)

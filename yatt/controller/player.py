"""Plays conversations with an environment, and scores them: prompt in, trajectories of many turns out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import aclosing
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
class ConversationSetup:
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
        self,
        router: Router,
        scorer: Scorer,
        decode: Decode,
        seed: int,
        purpose: str,
        *,
        setup: ConversationSetup,
        clock: Clock,
    ) -> None:
        super().__init__(router, scorer, decode, seed, purpose)
        self._setup, self._clock = setup, clock
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
        setup, key = self._setup, (prompt.uid, sibling)
        for attempt in range(setup.retries + 1):
            talk = Conversation(
                prompt=prompt,
                sibling=sibling,
                params=params,
                limits=setup.limits,
                ask=self._ask,
                home=self._router.talks.home,
                chat=setup.chat,
                seed_of=lambda key: request_seed(self._seed, key, self._purpose),
                clock=self._clock,
            )
            play = asyncio.ensure_future(setup.environment.play(talk))
            self._playing[key] = talk, play
            self._router.talks.begin(*key)
            outside: float | None = None
            try:
                score = await play
                outside = talk.outside
            except ConversationEnded:
                score, outside = None, talk.outside
            except asyncio.CancelledError:
                if not talk.aborted:  # we are cancelled ourselves
                    play.cancel()
                    raise
                score = None
            finally:
                del self._playing[key]
                self._router.talks.end(*key, outside)
            whole = score is None or score.status == "ok"
            if talk.aborted or whole or attempt == setup.retries:
                break
        trajectory = talk.trajectory()
        return trajectory, with_turns(score, trajectory)

    async def _judge(self, trajectory: Trajectory, score: Score | None) -> Trajectory:
        """The trajectory with its score: the environment's, the rewards', or the sum of both."""
        if not trajectory.turns:
            detail = score.detail if score and score.detail else "the conversation ended before the policy had a turn"
            status = score.status if score and score.status != "ok" else "failed"
            return trajectory.judged(Score(status=status, detail=detail))
        if score is not None and (score.status != "ok" or not self._setup.judged):
            return trajectory.judged(score)
        if not self._setup.judged:
            return trajectory.judged(Score(status="failed", detail="the environment gave no reward"))
        (judged,) = await self._score([trajectory])
        return judged if score is None else judged.judged(_sum(score, judged.score))

    async def _ask(self, request: Request) -> Completion:
        async with aclosing(self._router.generate([request])) as answers:  # it forgets the request now, not some day
            async for completions in answers:
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

"""Records one trajectory of many turns: what the policy sampled, token by token, and what was said in between.

A row is a text that grows: what is said to the policy is added behind what it sampled. Messages that do not go on from
those of any row, and those that the chat template writes anew, begin another row of the same trajectory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from yatt.errors import BackendError, ConversationEnded
from yatt.protocols import Chat, Clock
from yatt.types import (
    Answer,
    Completion,
    Finish,
    Media,
    Message,
    Prompt,
    Request,
    Row,
    SampleKey,
    SamplingParams,
    Span,
    Tools,
    Trajectory,
    Turn,
)

Ask = Callable[[Request], Awaitable[Completion]]
"""Draws one response."""
Home = Callable[[SampleKey], int | None]
"""The engine that drew the last turn of a conversation."""
SeedOf = Callable[[SampleKey], int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How long a conversation may become: turns of the policy's; tokens that it samples in all its turns together, None
    for no limit; tokens of a row."""

    turns: int
    tokens: int | None
    context: int


class Said(NamedTuple):
    """What is said to the policy: the tokens behind those of a row, and the messages that they are of."""

    tokens: np.ndarray
    messages: Sequence[Message] = ()


class OpenRow:
    """A row that may go on. While the policy has a turn in it, it is `taken`, and nothing of the turn is in it yet."""

    def __init__(self) -> None:
        self.tokens = np.zeros(0, dtype=np.int32)
        self.mask = np.zeros(0, dtype=bool)
        self.logprobs = np.zeros(0, dtype=np.float32)
        self.spans: tuple[Span, ...] = ()
        self.turns: list[Turn] = []
        self.messages: list[Message] = []
        self.media: tuple[Media, ...] = ()
        self.text = ""  # of the last turn
        self.answer: Answer | None = None  # of the last turn, where messages may go on from it
        self.engine: int | None = None  # that drew the last turn
        self.taken = False

    @property
    def sampled(self) -> np.ndarray:
        """The tokens of the last turn."""
        last = self.turns[-1]
        return self.tokens[last.start : last.stop]

    def hear(self, said: Said) -> None:
        """Add what the policy did not say."""
        self._extend(said.tokens, np.zeros(len(said.tokens), dtype=np.float32), sampled=False)
        self.messages += said.messages

    def say(self, completion: Completion, answer: Answer, *, seconds: float, waited: float, cached: bool) -> None:
        """Add a turn of the policy's."""
        start = len(self.tokens)
        first = self.turns[0].start if self.turns else start
        shift = start - first
        self.spans += tuple(replace(s, start=s.start + shift, stop=s.stop + shift) for s in completion.spans)
        self._extend(completion.tokens, completion.rollout_logprobs, sampled=True)
        self.turns.append(
            Turn(
                start=start,
                stop=len(self.tokens),
                calls=len(answer.calls) + len(answer.mistakes),
                failed=len(answer.mistakes),
                seconds=seconds,
                waited=waited,
                cached=cached,
            )
        )
        self.messages.append(answer.message)
        self.text = answer.text

    def closed(self) -> Row:
        """The row as it is trained: up to the last token that the policy sampled."""
        stop = self.turns[-1].stop
        return Row(
            tokens=self.tokens[:stop],
            loss_mask=self.mask[:stop],
            rollout_logprobs=self.logprobs[:stop],
            spans=self.spans,
            turns=tuple(self.turns),
            media=self.media,
        )

    def _extend(self, tokens: np.ndarray, logprobs: np.ndarray, *, sampled: bool) -> None:
        self.tokens = np.concatenate([self.tokens, tokens]).astype(np.int32)
        self.mask = np.concatenate([self.mask, np.full(len(tokens), sampled)])
        self.logprobs = np.concatenate([self.logprobs, logprobs]).astype(np.float32)


class Conversation:
    """One trajectory as it is played. Several turns may be under way at once, each in a row of its own.

    `forks` counts the rows that were begun because the chat template wrote the past anew."""

    def __init__(
        self,
        *,
        prompt: Prompt,
        sibling: int,
        params: SamplingParams,
        limits: Limits,
        ask: Ask,
        home: Home,
        chat: Chat,
        seed_of: SeedOf,
        clock: Clock,
    ) -> None:
        self.prompt, self.sibling = prompt, sibling
        self._params, self._limits = params, limits
        self._ask, self._home, self._chat, self._seed_of, self._clock = ask, home, chat, seed_of, clock
        self._rows: list[OpenRow] = []
        self._asked = self._drawn = 0
        self._promised = 0  # tokens that turns under way may sample
        self._under_way: dict[SampleKey, asyncio.Future[None]] = {}
        self._outside_since = clock.now()
        self.forks = 0
        self.truncated = ""
        self.aborted = False
        self._finish: Finish = "stop"

    async def chat(self, messages: Sequence[Message], tools: Tools = (), max_tokens: int | None = None) -> Answer:
        """The policy's answer to all that was said, `messages`. It goes on in the row that they go on from; in another
        one, where the policy has a turn in that row. Raises ConversationEnded where a limit is reached, and BadRow
        where the chat template refuses the messages."""
        row = self._row_of(messages)
        if row is not None and row.answer is not None:
            new = messages[len(row.messages) :]
            suffix = self._chat.suffix(row.messages[:-1], row.answer, row.sampled, new, tools)
            if suffix is not None:
                return await self._turn(row, Said(suffix, new), tools, max_tokens)
        answer = await self._turn(OpenRow(), Said(self._chat.opening(messages, tools), messages), tools, max_tokens)
        self.forks += row is not None
        return answer

    async def complete(self, tokens: Sequence[int], max_tokens: int | None = None) -> Completion:
        """The policy's completion of token ids, which are all there is: a longer row, where one begins them. Raises
        ConversationEnded where a limit is reached, and BadRow for ids that the tokenizer has not."""
        ids = self._chat.ids(tokens)
        known = [row for row in self._rows if not row.taken and _begins(row.tokens, ids)]
        row = max(known, key=lambda one: len(one.tokens), default=None) or OpenRow()
        answer = await self._turn(row, Said(ids[len(row.tokens) :]), (), max_tokens)
        last = row.turns[-1]
        return Completion(
            key=SampleKey(self.prompt.uid, self.sibling, self._asked - 1),
            tokens=row.sampled,
            rollout_logprobs=row.logprobs[last.start : last.stop],
            spans=(),
            finish=answer.finish,
        )

    @property
    def outside(self) -> float:
        """Seconds between its turns."""
        return sum(turn.waited for row in self._rows for turn in row.turns)

    def reward(self, value: float) -> None:
        """What the environment gives for the last turn."""
        row = self._rows[-1]
        row.turns[-1] = replace(row.turns[-1], reward=value + (row.turns[-1].reward or 0.0))

    def failed_call(self) -> None:
        """A tool that the last turn called has raised."""
        row = self._rows[-1]
        row.turns[-1] = replace(row.turns[-1], failed=row.turns[-1].failed + 1)

    def trajectory(self) -> Trajectory:
        """What was recorded. Before the first turn it has the prompt alone."""
        rows = [row.closed() for row in self._rows if row.turns]
        finish: Finish = "aborted" if self.aborted else "length" if self.truncated else self._finish
        if not rows:
            empty = Completion(
                key=SampleKey(self.prompt.uid, self.sibling),
                tokens=np.zeros(0, dtype=np.int32),
                rollout_logprobs=np.zeros(0, dtype=np.float32),
                spans=(),
                finish=finish,
            )
            return replace(Trajectory.single_turn(self.prompt, empty, ""), truncated=self.truncated)
        *earlier, last = rows
        newest = self._rows[-1]
        return Trajectory(
            prompt=replace(self.prompt, tokens=last.tokens[: last.turns[0].start], media=last.media),
            sibling=self.sibling,
            tokens=last.tokens,
            loss_mask=last.loss_mask,
            rollout_logprobs=last.rollout_logprobs,
            spans=last.spans,
            finish=finish,
            text=newest.text,
            turns=last.turns,
            earlier=tuple(earlier),
            messages=tuple(newest.messages),
            truncated=self.truncated,
            forks=self.forks,
        )

    async def _turn(self, row: OpenRow, said: Said, tools: Tools, max_tokens: int | None) -> Answer:
        """One turn of the policy's at the end of a row, once this was said. The row has all of it afterwards, or where
        an error is raised nothing."""
        request = await self._request(np.concatenate([row.tokens, said.tokens]).astype(np.int32), max_tokens, row.media)
        waited = self._clock.now() - self._outside_since if not self._under_way else 0.0
        began = self._clock.now()
        ended = self._under_way[request.key] = asyncio.get_running_loop().create_future()
        self._promised += request.params.max_tokens
        row.taken = True
        try:
            completion = await self._ask(request)
            self._drawn += len(completion.tokens)
        finally:
            row.taken = False
            self._promised -= request.params.max_tokens
            del self._under_way[request.key]
            ended.set_result(None)
            self._outside_since = self._clock.now()
        answer = self._chat.answer(completion.tokens, tools)
        if len(completion.tokens):
            row.hear(said)
            engine = self._home(request.key)
            cached = row.turns and row.engine == engine and row.spans[-1].version == completion.spans[0].version
            row.engine = engine
            row.say(completion, answer, seconds=self._clock.now() - began, waited=waited, cached=bool(cached))
            row.answer = answer if said.messages else None  # bare tokens are no messages, from which others could go on
            if row in self._rows:  # the row that spoke last is the trajectory's own
                self._rows.remove(row)
            self._rows.append(row)
        self._finish = completion.finish
        self.aborted = self.aborted or completion.finish == "aborted"
        if self.aborted:
            raise ConversationEnded("aborted")
        if not len(completion.tokens):
            raise BackendError(f"request {request.key} was answered without a token")
        return replace(answer, finish=completion.finish, read=len(request.tokens), said=len(completion.tokens))

    async def _request(self, tokens: np.ndarray, max_tokens: int | None, media: tuple[Media, ...]) -> Request:
        """The request for the turn that follows these tokens. Where turns under way may yet take all that is left of
        the limit on sampled tokens, waits for one of them. Raises ConversationEnded where a limit is reached."""
        while (most := self._left(max_tokens)) < 1 and self._under_way and not self.aborted:
            await asyncio.wait(self._under_way.values(), return_when=asyncio.FIRST_COMPLETED)
        if self.aborted:
            raise ConversationEnded("aborted")
        room = self._limits.context - len(tokens)
        self.truncated = (
            "turns" if self._asked >= self._limits.turns else "context" if room < 1 else "tokens" if most < 1 else ""
        )
        if self.truncated:
            raise ConversationEnded(self.truncated)
        key = SampleKey(self.prompt.uid, self.sibling, self._asked)
        self._asked += 1
        params = replace(self._params, max_tokens=min(most, room))
        return Request(key=key, tokens=tokens, params=params, seed=self._seed_of(key), media=media)

    def _left(self, max_tokens: int | None) -> int:
        """Tokens that a turn may sample, but for what its row has room for."""
        most = min(self._params.max_tokens, max_tokens or self._params.max_tokens)
        return most if self._limits.tokens is None else min(most, self._limits.tokens - self._drawn - self._promised)

    def _row_of(self, messages: Sequence[Message]) -> OpenRow | None:
        """The longest row that says how the messages begin; None where the policy has a turn in it."""
        best: OpenRow | None = None
        for row in self._rows:
            said = len(row.messages)
            goes_on = said < len(messages) and all(map(_same, row.messages, messages))
            if row.answer is not None and goes_on and (best is None or said > len(best.messages)):
                best = row
        return None if best is None or best.taken else best


def _same(one: Message, other: Message) -> bool:
    """Whether two messages say the same: clients leave fields out, and add some."""
    return _said(one) == _said(other)


def _said(message: Message) -> tuple[object, ...]:
    calls = [(call["function"]["name"], call["function"].get("arguments")) for call in message.get("tool_calls") or ()]
    return message.get("role"), message.get("content") or "", calls


def _begins(start: np.ndarray, tokens: np.ndarray) -> bool:
    return len(start) < len(tokens) and bool(np.array_equal(start, tokens[: len(start)]))

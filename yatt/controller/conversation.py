"""Records one trajectory of many turns: what the policy sampled, token by token, and what was said in between.

A row is a text that grows: what is said to the policy is added behind what it sampled. Messages that do not go on from
those of any row, and those that the chat template writes anew, begin another row of the same trajectory.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

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
SeedOf = Callable[[SampleKey], int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How long a conversation may become: turns of the policy's; tokens that it samples in all its turns together, None
    for no limit; tokens of a row."""

    turns: int
    tokens: int | None
    context: int


class OpenRow:
    """A row that may go on."""

    def __init__(self, tokens: np.ndarray, messages: Sequence[Message] = (), media: tuple[Media, ...] = ()) -> None:
        self.tokens = tokens
        self.mask = np.zeros(len(tokens), dtype=bool)
        self.logprobs = np.zeros(len(tokens), dtype=np.float32)
        self.spans: tuple[Span, ...] = ()
        self.turns: list[Turn] = []
        self.messages = list(messages)
        self.media = media
        self.answer: Answer | None = None

    @property
    def sampled(self) -> np.ndarray:
        """The tokens of the last turn."""
        last = self.turns[-1]
        return self.tokens[last.start : last.stop]

    def hear(self, tokens: np.ndarray, messages: Sequence[Message]) -> None:
        """Add what the policy did not say."""
        self._extend(tokens, np.zeros(len(tokens), dtype=np.float32), sampled=False)
        self.messages += messages

    def say(self, completion: Completion, answer: Answer, *, seconds: float, waited: float) -> None:
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
            )
        )
        self.messages.append(answer.message)
        self.answer = answer

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
        chat: Chat,
        seed_of: SeedOf,
        clock: Clock,
    ) -> None:
        self.prompt, self.sibling = prompt, sibling
        self._params, self._limits = params, limits
        self._ask, self._chat, self._seed_of, self._clock = ask, chat, seed_of, clock
        self._rows: list[OpenRow] = []
        self._asked = self._drawn = self._under_way = 0
        self._outside_since = clock.now()
        self.forks = 0
        self.truncated = ""
        self.aborted = False
        self._finish: Finish = "stop"

    async def chat(self, messages: Sequence[Message], tools: Tools = (), max_tokens: int | None = None) -> Answer:
        """The policy's answer to all that was said, `messages`. It goes on in the row that they go on from. Raises
        ConversationEnded where a limit is reached, and BadRow where the chat template refuses the messages."""
        row, new = self._row_of(messages, tools)
        if row is not None and row.answer is not None:
            suffix = self._chat.suffix(row.messages[:-1], row.answer, row.sampled, new, tools)
            if suffix is None:
                self.forks += 1
                row = None
            else:
                row.hear(suffix, new)
        if row is None:
            row = OpenRow(self._chat.opening(messages, tools), messages)
        return await self._turn(row, tools, max_tokens)

    async def complete(self, tokens: np.ndarray, max_tokens: int | None = None) -> Completion:
        """The policy's completion of token ids, which are all there is: a longer row, where one begins them."""
        known = [row for row in self._rows if row.turns and _begins(row.tokens, tokens)]
        if known:
            row = max(known, key=lambda one: len(one.tokens))
            row.hear(tokens[len(row.tokens) :], ())
        else:
            row = OpenRow(np.asarray(tokens, dtype=np.int32))
        await self._turn(row, (), max_tokens)
        last = row.turns[-1]
        return Completion(
            key=SampleKey(self.prompt.uid, self.sibling, self._asked - 1),
            tokens=row.sampled,
            rollout_logprobs=row.logprobs[last.start : last.stop],
            spans=(),
            finish=self._finish,
        )

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
            text=newest.answer.text if newest.answer else "",
            turns=last.turns,
            earlier=tuple(earlier),
            messages=tuple(newest.messages),
            truncated=self.truncated,
            forks=self.forks,
        )

    async def _turn(self, row: OpenRow, tools: Tools, max_tokens: int | None) -> Answer:
        """One turn of the policy's at the end of a row."""
        request = self._request(row, max_tokens)
        waited = self._clock.now() - self._outside_since if not self._under_way else 0.0
        began = self._clock.now()
        self._under_way += 1
        try:
            completion = await self._ask(request)
        finally:
            self._under_way -= 1
            self._outside_since = self._clock.now()
        self._drawn += len(completion.tokens)
        if completion.finish == "aborted":
            self.aborted = True
        answer = self._chat.answer(completion.tokens, tools)
        if len(completion.tokens):
            row.say(completion, answer, seconds=self._clock.now() - began, waited=waited)
            if row in self._rows:  # the row that spoke last is the trajectory's own
                self._rows.remove(row)
            self._rows.append(row)
        self._finish = completion.finish
        if self.aborted:
            raise ConversationEnded("aborted")
        if not len(completion.tokens):
            raise BackendError(f"request {request.key} was answered without a token")
        read, said = len(request.tokens), len(completion.tokens)
        return replace(answer, finish=completion.finish, read=read, said=said)

    def _request(self, row: OpenRow, max_tokens: int | None) -> Request:
        limits, key = self._limits, SampleKey(self.prompt.uid, self.sibling, self._asked)
        if self.aborted:
            raise ConversationEnded("aborted")
        most = min(self._params.max_tokens, max_tokens or self._params.max_tokens, limits.context - len(row.tokens))
        if limits.tokens is not None:
            most = min(most, limits.tokens - self._drawn)
        if self._asked >= limits.turns:
            self.truncated = "turns"
        elif limits.context <= len(row.tokens):
            self.truncated = "context"
        elif most < 1:
            self.truncated = "tokens"
        if self.truncated:
            raise ConversationEnded(self.truncated)
        self._asked += 1
        return Request(
            key=key,
            tokens=row.tokens,
            params=replace(self._params, max_tokens=most),
            seed=self._seed_of(key),
            media=row.media,
        )

    def _row_of(self, messages: Sequence[Message], tools: Tools) -> tuple[OpenRow | None, list[Message]]:
        """The longest row that says how the messages begin, and what is new behind it."""
        best: OpenRow | None = None
        for row in self._rows:
            said = len(row.messages)
            goes_on = said < len(messages) and all(map(_same, row.messages, messages))
            if row.answer is not None and goes_on and (best is None or said > len(best.messages)):
                best = row
        return best, list(messages[len(best.messages) :]) if best else list(messages)


def _same(one: Message, other: Message) -> bool:
    """Whether two messages say the same: clients leave fields out, and add some."""
    return _said(one) == _said(other)


def _said(message: Message) -> tuple[object, ...]:
    calls = [(call["function"]["name"], call["function"].get("arguments")) for call in message.get("tool_calls") or ()]
    return message.get("role"), message.get("content") or "", calls


def _begins(start: np.ndarray, tokens: np.ndarray) -> bool:
    return len(start) < len(tokens) and bool(np.array_equal(start, tokens[: len(start)]))

"""From a row to a response to imitate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerFast

from yatt.config.algorithms import Rows
from yatt.config.schema import DataConfig
from yatt.data.columns import missing
from yatt.data.images import Found, ImagePlaces
from yatt.data.masks import AssistantMask
from yatt.data.prompts import PromptEncoder, as_messages, tokenize
from yatt.data.rows import Row
from yatt.data.turns import Messages, Turn
from yatt.errors import BadRow
from yatt.types import Media, Sample, SampleKey


class Asked(NamedTuple):
    """A prompt with marks in the places of its images, these images, and the number of its row."""

    prompt: Any
    images: list[Found]
    row: int


class Encoded(NamedTuple):
    """A prompt and a response to it: tokens [T] int32, the loss mask [T], and the prompt's images."""

    tokens: np.ndarray
    mask: np.ndarray
    media: tuple[Media, ...] = ()


class ResponseEncoder:
    """Encodes a prompt and a response to it as one sequence.

    Tokens are those of the prompt as `PromptEncoder` makes it, then those of the response and of its end: what the chat
    template ends the assistant's turns with, or the tokenizer's eos_token where there is no template, or none that an
    engine could stop at. The loss is on the response and its end, so that what is learned is what a rollout would have
    to sample, and to stop at. With `scored`, a turn ends as in the rendered talk that a classifier judge reads: its
    score is that of the last token.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        data: DataConfig,
        context_length: int,
        *,
        scored: bool = False,
        images: ImagePlaces | None = None,
    ) -> None:
        self._tokenizer, self._data, self._length = tokenizer, data, context_length
        self._prompts = PromptEncoder(tokenizer, data, context_length, 1, images=images)
        self._turn, self._scored = Turn(tokenizer), scored
        self._assistant = AssistantMask(tokenizer, self._turn)
        self.layout = self._prompts.layout

    def __call__(self, asked: Asked, response: str, *, what: str = "response", every_turn: bool = False) -> Encoded:
        """The prompt and the response as one sequence. With `every_turn` the loss is on the assistant's turns in the
        prompt too. Raises BadRow as `PromptEncoder` does, and where the response is empty, goes on after an end, or
        both do not fit the context."""
        prompt = asked.prompt
        text, head = self._prompts.encode(prompt, len(asked.images))
        if self._prompts.templated(prompt):
            body = self._turn.body(self._prompts.opened(as_messages(prompt)), text, response)
            after = self._turn.rest if self._scored else self._turn.end
        else:
            body, after = response, ""
        read = partial(self._behind, text, head, special=not self._prompts.templated(prompt))
        tail = self._ended(read, body, after, what)
        tokens = np.concatenate([head, tail])
        mask = np.arange(len(tokens)) >= len(head)
        if every_turn and any(message["role"] == "assistant" for message in as_messages(prompt)):
            mask[: len(head)] = self._assistant(self._prompts.opened(as_messages(prompt)))
        media = self._prompts.read(asked.images, head, asked.row)
        if self._prompts.images is not None:
            media, (tokens, mask) = self._prompts.images.place(media, tokens, mask)
        if len(tokens) > self._length:
            raise BadRow(
                f"prompt and {what} have {len(tokens)} tokens; the most is model.context_length={self._length}"
            )
        return Encoded(tokens, mask, media)

    def hold(self, media: Sequence[Media]) -> tuple[Media, ...]:
        """The images of a row, in the store."""
        return () if self._prompts.images is None else self._prompts.images.hold(media)

    def asked(self, prompt: Any, row: Row, index: int) -> Asked:
        """The prompt of row `index`, with its images."""
        return Asked(*self._prompts.marked(prompt, row), index)

    def _ended(self, read: Callable[[str], np.ndarray], body: str, after: str, what: str) -> np.ndarray:
        """Tokens of a response, and of what comes `after` it where it has no end of its own: an eos_token for "".
        Raises BadRow where there are none, or they go on after an end: no rollout would sample them."""
        tail, stops = read(body), self._turn.stops
        if not len(tail):
            raise BadRow(f"the {what} is empty")
        ends = np.flatnonzero(np.isin(tail, stops))
        if not len(ends):
            return read(body + after) if after else np.append(tail, np.int32(self._tokenizer.eos_token_id))
        left = [token for token in tail[ends[0] :].tolist() if token not in stops]
        if str(self._tokenizer.decode(left)).strip():
            end = self._tokenizer.decode([int(tail[ends[0]])])
            raise BadRow(f"the {what} goes on after {end!r}, at which a response ends; cut it there")
        return tail[: ends[0] + 1]

    def _behind(self, prompt: str, head: np.ndarray, text: str, *, special: bool) -> np.ndarray:
        """Tokens of a text behind those of the prompt, which stay as they are. Some tokenizers write the first word of
        a text with a space before it, so it is read behind the prompt, or behind a line break where that would change
        the prompt's last token, or else alone."""
        whole = tokenize(self._tokenizer, prompt + text, special=special)
        if np.array_equal(whole[: len(head)], head):
            return whole[len(head) :]
        with suppress(BadRow):
            line, whole = (tokenize(self._tokenizer, "\n" + after, special=False) for after in ("", text))
            if np.array_equal(whole[: len(line)], line):
                return whole[len(line) :]
        return tokenize(self._tokenizer, text, special=False)

    def split(self, row: Row, index: int, kind: Rows = "demonstrations") -> tuple[Asked, str, bool]:
        """The prompt of row `index`, its response, and whether both come from one talk, under the prompt's column,
        `messages` or `conversations`, that ends with the assistant's turn. Raises BadRow where there is neither that
        nor a column of each."""
        data, given = self._data, row
        row = self.layout.demonstration(row)
        if row.get(data.prompt_key) is not None and row.get(data.response_key) is not None:
            response = row[data.response_key]
            if not isinstance(response, str):
                raise BadRow(f"column {data.response_key!r} holds a {type(response).__name__}; it must be text")
            return self.asked(row[data.prompt_key], row, index), response, False
        talk = row.get(data.prompt_key)
        if not isinstance(talk, list):
            raise BadRow(missing(given, data, kind, *_lacking(row, data)))
        asked = self.asked(talk, row, index)
        messages = as_messages(asked.prompt)
        if messages[-1]["role"] != "assistant" or len(messages) < 2:
            raise BadRow("the messages do not end with the assistant's turn; there is nothing to imitate")
        prompt, response = last_turn(messages)
        return asked._replace(prompt=prompt), response, True


class DemonstrationEncoder:
    """Encodes rows as samples to imitate: a prompt and a response column, or chat messages whose last is the
    assistant's. Of a talk, every turn of the assistant's is imitated."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        data: DataConfig,
        context_length: int,
        images: ImagePlaces | None = None,
    ) -> None:
        self._responses = ResponseEncoder(tokenizer, data, context_length, images=images)

    def __call__(self, row: Row, uid: int, index: int) -> Sample:
        """Raises BadRow as `ResponseEncoder` does, ConfigError where a talk's template has no assistant mask."""
        asked, response, talk = self._responses.split(row, index)
        tokens, mask, media = self._responses(asked, response, every_turn=talk)
        return Sample(key=SampleKey(uid, 0), tokens=tokens, loss_mask=mask, media=self._responses.hold(media))


def _lacking(row: Row, data: DataConfig) -> list[str]:
    roles = ("prompt_key", "response_key")
    return [role for role in roles if row.get(getattr(data, role)) is None] or [*roles]


def last_turn(messages: Messages) -> tuple[Messages, str]:
    """The messages before the last one, and its text. Raises BadRow where it says more than its text."""
    if more := [name for name in ("tool_calls", "function_call", "reasoning_content") if messages[-1].get(name)]:
        raise BadRow(f"the last turn has {more[0]!r} beside its text, which would not be trained; write it in the text")
    return messages[:-1], messages[-1]["content"]

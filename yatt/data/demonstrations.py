"""From a row to a response to imitate."""

from __future__ import annotations

from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from yatt.config.algorithms import Rows
from yatt.config.schema import DataConfig
from yatt.data.columns import missing
from yatt.data.masks import AssistantMask, Messages
from yatt.data.prompts import PromptEncoder, as_messages, tokenize
from yatt.data.rows import BadRow, Row
from yatt.types import Sample, SampleKey


class ResponseEncoder:
    """Encodes a prompt and a response to it as one sequence.

    Tokens are those of the prompt as `PromptEncoder` makes it, then those of the response and the end-of-text token;
    the loss is on the response and its end, so that what is learned is what a rollout would have to sample.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, data: DataConfig, context_length: int) -> None:
        self._tokenizer, self._data, self._length = tokenizer, data, context_length
        self._prompts = PromptEncoder(tokenizer, data, context_length, 1)
        self._assistant = AssistantMask(tokenizer)
        self.layout = self._prompts.layout

    def __call__(
        self, prompt: Any, response: str, *, what: str = "response", every_turn: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Tokens [T] int32 and loss mask [T]. With `every_turn` the loss is on the assistant's turns in the prompt too.
        Raises BadRow as `PromptEncoder` does, and where the response is empty or both do not fit the context."""
        _, head = self._prompts.encode(prompt)
        tail, end = tokenize(self._tokenizer, response, special=False), self._tokenizer.eos_token_id
        if not len(tail):
            raise BadRow(f"the {what} is empty")
        if tail[-1] != end:
            tail = np.append(tail, np.int32(end))
        tokens = np.concatenate([head, tail])
        if len(tokens) > self._length:
            raise BadRow(
                f"prompt and {what} have {len(tokens)} tokens; the most is model.context_length={self._length}"
            )
        mask = np.arange(len(tokens)) >= len(head)
        if every_turn and any(message["role"] == "assistant" for message in as_messages(prompt)):
            mask[: len(head)] = self._assistant(self._prompts.opened(as_messages(prompt)))
        return tokens, mask

    def split(self, row: Row, kind: Rows = "demonstrations") -> tuple[Any, str, bool]:
        """A row's prompt, its response, and whether both come from one talk, under the prompt's column, `messages` or
        `conversations`, that ends with the assistant's turn. Raises BadRow where there is neither that nor a column of
        each."""
        data, given = self._data, row
        row = self.layout.demonstration(row)
        if data.prompt_key in row and data.response_key in row:
            response = row[data.response_key]
            if not isinstance(response, str):
                raise BadRow(f"column {data.response_key!r} holds a {type(response).__name__}; it must be text")
            return row[data.prompt_key], response, False
        talk = row.get(data.prompt_key)
        if not isinstance(talk, list):
            raise BadRow(missing(given, data, kind, *_lacking(row, data)))
        messages = as_messages(talk)
        if messages[-1]["role"] != "assistant" or len(messages) < 2:
            raise BadRow("the messages do not end with the assistant's turn; there is nothing to imitate")
        return *last_turn(messages), True


class DemonstrationEncoder:
    """Encodes rows as samples to imitate: a prompt and a response column, or chat messages whose last is the
    assistant's. Of a talk, every turn of the assistant's is imitated."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, data: DataConfig, context_length: int) -> None:
        self._responses = ResponseEncoder(tokenizer, data, context_length)

    def __call__(self, row: Row, uid: int, index: int) -> Sample:
        """Raises BadRow as `ResponseEncoder` does, ConfigError where a talk's template has no assistant mask."""
        prompt, response, talk = self._responses.split(row)
        tokens, mask = self._responses(prompt, response, every_turn=talk)
        return Sample(key=SampleKey(uid, 0), tokens=tokens, loss_mask=mask)


def _lacking(row: Row, data: DataConfig) -> list[str]:
    roles = ("prompt_key", "response_key")
    return [role for role in roles if row.get(getattr(data, role)) is None] or [*roles]


def last_turn(messages: Messages) -> tuple[Messages, str]:
    """What comes before the last message, and its text."""
    return messages[:-1], messages[-1]["content"]

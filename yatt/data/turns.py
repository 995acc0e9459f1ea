"""The text around a response: how the chat template opens the assistant's turn and ends it, the tokens at which an
engine stops, and the text of sampled tokens."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from yatt.errors import BadRow, ConfigError
from yatt.text import one_line
from yatt.types import Tools

Messages = list[dict[str, Any]]
MARK = "\ufdd0"
"""The place of an image in a message's text. It is no character: no text of others has it."""
_PROBE = "Yes, 1 + 1 is 2."
_OPENING = re.compile(r"^|(?<=[\n>\]])|(?=[<\[])")
"""Where a piece of an opened turn may begin: a line, or a tag such as `<think>`."""
_LONGEST = 1000
"""Characters of the longest piece that is looked for."""


def render(tokenizer: PreTrainedTokenizerFast, messages: Messages, *, opened: bool, tools: Tools = ()) -> str:
    """The messages in the chat template, which tells of `tools`, with `opened` up to where the assistant goes on.
    Raises BadRow where the template refuses them, whatever it raises."""
    try:
        shown = with_parts(messages)
        schemas: list[Any] | None = [dict(tool) for tool in tools] or None
        return str(tokenizer.apply_chat_template(shown, tools=schemas, tokenize=False, add_generation_prompt=opened))
    except Exception as error:  # a template raises whatever its expressions raise
        raise BadRow(f"the chat template refuses the messages: {one_line(error)}") from None


def with_parts(messages: Messages) -> Messages:
    """The messages as a chat template takes them: text with images in it as parts. The assistant's has none."""
    seen = [message["role"] != "assistant" and MARK in message["content"] for message in messages]
    return [
        {**message, "content": _parts(message["content"])} if sees else message
        for message, sees in zip(messages, seen, strict=True)
    ]


def _parts(text: str) -> list[dict[str, str]]:
    first, *others = [[{"type": "text", "text": words}] if words else [] for words in text.split(MARK)]
    return [*first, *(part for words in others for part in ({"type": "image"}, *words))]


class Turn:
    """How a tokenizer's chat template writes a turn of the assistant's.

    `rest` is what follows the text of a last turn; `end` is the part of it up to its first added token, such as
    `<|im_end|>`: what a response ends with. Both are empty without a template, and `end` also where the template ends
    turns with ordinary text, at which no engine could stop: then a response ends with the tokenizer's eos_token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer
        self.rest, self.end = self._probe() if tokenizer.chat_template is not None else ("", "")

    def _probe(self) -> tuple[str, str]:
        talk = [{"role": "user", "content": "Is 1 + 1 = 2?"}, {"role": "assistant", "content": _PROBE}]
        try:
            _, seen, rest = render(self._tokenizer, talk, opened=False).rpartition(_PROBE)
        except BadRow:
            return "", ""
        if not seen or not rest:
            return "", ""
        read = self._tokenizer(rest, add_special_tokens=False, return_offsets_mapping=True)
        added = self._tokenizer.added_tokens_decoder
        ends = (
            stop for token, (_, stop) in zip(read["input_ids"], read["offset_mapping"], strict=True) if token in added
        )
        return rest, rest[: next(ends, 0)]

    @cached_property
    def stops(self) -> tuple[int, ...]:
        """The tokens at which an engine stops: those that generation_config.json (else config.json) names, the
        tokenizer's eos_token, and the one that ends the template's turns. Raises ConfigError where a file is torn."""
        ids = [*named_ends(self._tokenizer.name_or_path), int(self._tokenizer.eos_token_id)]
        if self.end:
            ids.append(self._tokenizer(self.end, add_special_tokens=False)["input_ids"][-1])
        return tuple(dict.fromkeys(ids))

    def body(self, messages: Messages, prompt: str, response: str) -> str:
        """The response as it stands behind the rendered prompt: without the part that the prompt has already opened,
        and with the blanks around it that the template gives it."""
        expected = self.unopened(messages, prompt, response)
        try:
            whole = render(self._tokenizer, [*messages, {"role": "assistant", "content": response}], opened=False)
        except BadRow:
            return expected
        shown = whole.removeprefix(prompt).removesuffix(self.rest)
        fits = whole.startswith(prompt) and whole.endswith(self.rest) and shown.strip() == expected.strip()
        return shown if fits else expected

    def unopened(self, messages: Messages, prompt: str, response: str) -> str:
        """The response without what the rendered prompt ends with: a generation prompt may open a thought that the
        response opens again."""
        if not _said_again(prompt[-_LONGEST:], response):
            return response
        opened = self._opened(messages, prompt)
        again, blanks = _said_again(opened, response), opened[len(opened.rstrip()) :]
        if not again:
            return response
        rest = response.lstrip().removeprefix(again)
        begun = rest[: len(rest) - len(rest.lstrip())]
        return rest.lstrip() if blanks.startswith(begun) else rest.removeprefix(blanks)

    def _opened(self, messages: Messages, prompt: str) -> str:
        """The text that the rendered prompt adds to its messages."""
        try:
            closed = render(self._tokenizer, messages, opened=False)
        except BadRow:
            closed = ""
        if closed and prompt != closed and prompt.startswith(closed):
            return prompt[len(closed) :]
        last = str(messages[-1]["content"]).rpartition(MARK)[2].strip()
        return prompt.rpartition(last)[2] if last and last in prompt else ""


def _said_again(opened: str, response: str) -> str:
    """The longest piece of text that `opened` ends with and `response` begins with, blanks aside; "" for none."""
    shown, said = opened.rstrip(), response.lstrip()
    pieces = (shown[place.start() :] for place in _OPENING.finditer(shown))
    return next((piece for piece in pieces if piece and said.startswith(piece)), "")


def named_ends(folder: str) -> tuple[int, ...]:
    """The end-of-sequence tokens that a folder's generation_config.json names, or without one its config.json."""
    for name in ("generation_config.json", "config.json") if folder else ():
        path = Path(folder) / name
        if not path.is_file():
            continue
        try:
            ids = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
        except (OSError, ValueError, AttributeError) as error:
            raise ConfigError(f"{path} cannot be read: {one_line(error)}") from None
        if ids is None:
            continue
        ids = ids if isinstance(ids, list) else [ids]
        if not all(type(one) is int for one in ids):
            raise ConfigError(f"{path}: eos_token_id={ids!r} is not a token id or a list of them; mend it")
        return tuple(ids)
    return ()


class ResponseText:
    """The text of sampled tokens: every token's, special ones too, as it stands behind a prompt. Nothing is cleaned up.
    Only the tokens that end it, and padding there, are left out."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer
        self._tail = {*Turn(tokenizer).stops, tokenizer.pad_token_id}
        # Some decoders take a space off the first token: it is decoded behind another one.
        self._before = [tokenizer.eos_token_id]
        self._anchor = self._decode([])

    def __call__(self, tokens: Sequence[int] | np.ndarray) -> str:
        ids = np.asarray(tokens).tolist()
        while ids and ids[-1] in self._tail:
            ids.pop()
        return self._decode(ids).removeprefix(self._anchor)

    def whole(self, tokens: Sequence[int] | np.ndarray) -> str:
        """The text of every token, of those that end it too."""
        return self._decode(np.asarray(tokens).tolist()).removeprefix(self._anchor)

    def _decode(self, ids: list[int]) -> str:
        decoded = self._tokenizer.decode(
            [*self._before, *ids], skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return str(decoded)

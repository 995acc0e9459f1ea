"""From a row to a prompt to respond to."""

from __future__ import annotations

from typing import Any

import numpy as np
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerFast

from yatt.config.schema import DataConfig
from yatt.data.answers import answer_text
from yatt.data.columns import column_names, missing
from yatt.data.layouts import Layout
from yatt.data.masks import Messages
from yatt.data.media import read_media
from yatt.data.rows import BadRow, Row
from yatt.errors import ConfigError
from yatt.protocols import MediaStore
from yatt.types import Media, Prompt


class PromptEncoder:
    """Encodes rows as prompts.

    Chat messages, and text where the tokenizer has a chat template and `data.chat_template` allows it, go through the
    template with its generation prompt; other text is tokenised as it stands, with the tokenizer's own special tokens.
    `data.system_prompt` opens every chat that brings no system message of its own. Images go into `store`; without one
    they are only looked at.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        data: DataConfig,
        context_length: int,
        max_tokens: int,
        store: MediaStore | None = None,
    ) -> None:
        self._tokenizer, self._data, self._store = tokenizer, data, store
        self._template = data.chat_template == "auto" and tokenizer.chat_template is not None
        self.layout = Layout(data, chat=self._template)
        room = context_length - max_tokens
        self._limit = room if data.max_prompt_tokens is None else min(room, data.max_prompt_tokens)
        self._rule = (
            "data.max_prompt_tokens"
            if self._limit != room
            else f"model.context_length={context_length} less {max_tokens} for the response"
        )
        if data.system_prompt is not None and not self._template:
            why = "the tokenizer has no chat template" if data.chat_template == "auto" else "data.chat_template=never"
            raise ConfigError(f"data.system_prompt={data.system_prompt!r} would go unused, for {why}; unset it")

    def __call__(self, row: Row, uid: int, index: int) -> Prompt:
        """Raises BadRow where a column is missing or of the wrong type, or the prompt is empty or too long."""
        given, row = row, self.layout.prompt(row)
        if self._data.prompt_key not in row:
            raise BadRow(missing(given, self._data, "prompts", "prompt_key"))
        text, tokens = self.encode(row[self._data.prompt_key])
        return Prompt(
            uid=uid,
            row=index,
            text=text,
            tokens=tokens,
            question=_question(row[self._data.prompt_key]),
            answer=answer_text(row.get(self._data.answer_key), self._data.answer_key, self._data.answer_after),
            metadata=self._metadata(row),
            media=self._media(row),
        )

    def encode(self, prompt: Any) -> tuple[str, np.ndarray]:
        """The prompt as the policy reads it: text, and token ids [P] int32."""
        if prompt == "":
            raise BadRow("the prompt is empty")
        if isinstance(prompt, str) and not self._template:
            text, special = prompt, True
        else:
            text, special = self._render(as_messages(prompt)), False
        tokens = tokenize(self._tokenizer, text, special=special)
        if not len(tokens):
            raise BadRow("the prompt has no tokens")
        if len(tokens) > self._limit:
            raise BadRow(f"the prompt has {len(tokens)} tokens; the most is {self._limit} ({self._rule})")
        return text, tokens

    def _render(self, messages: Messages) -> str:
        if not self._template:
            raise BadRow("the prompt is chat messages, but no chat template is in use; give text")
        if messages[-1]["role"] == "assistant":
            raise BadRow("the last message is the assistant's; a prompt ends with what it responds to")
        try:
            opened = self.opened(messages)
            return str(self._tokenizer.apply_chat_template(opened, tokenize=False, add_generation_prompt=True))
        except (TemplateError, TypeError) as error:
            raise BadRow(f"the chat template refuses the messages: {error}") from None

    def opened(self, messages: Messages) -> Messages:
        """The messages as they go through the template: begun by the system prompt, where there is one."""
        system = self._data.system_prompt
        if system is None or messages[0]["role"] == "system":
            return messages
        return [{"role": "system", "content": system}, *messages]

    def _media(self, row: Row) -> tuple[Media, ...]:
        key = self._data.media_key
        if key is None:
            return ()
        if key not in row:
            raise BadRow(f"no column {key!r} (it has {column_names(row)}); see data.media_key")
        images = read_media(row[key], key)
        return () if self._store is None else self._store.hold(images)

    def _metadata(self, row: Row) -> dict[str, Any]:
        data = self._data
        if data.metadata_keys is None:
            taken = (data.prompt_key, data.answer_key, data.media_key)
            return {key: value for key, value in row.items() if key not in taken}
        for key in data.metadata_keys:
            if key not in row:
                raise BadRow(f"no column {key!r} (it has {column_names(row)}); see data.metadata_keys")
        return {key: row[key] for key in data.metadata_keys}


def load_tokenizer(path: str, setting: str = "model.path") -> PreTrainedTokenizerFast:
    """The fast tokenizer of a Hugging Face folder. Raises ConfigError where it is missing or has no eos_token."""
    try:
        # Not AutoTokenizer: importing it costs seconds in every process, and tokenizer.json says everything.
        tokenizer = PreTrainedTokenizerFast.from_pretrained(path, local_files_only=True)
    except Exception as error:  # transformers raises whatever its parts raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"{setting}={path!r}: its tokenizer cannot be loaded: {reason}") from None
    if not tokenizer.is_fast:
        raise ConfigError(f"{setting}={path!r} has no fast tokenizer; add its tokenizer.json")
    if tokenizer.eos_token_id is None:
        raise ConfigError(f"{setting}={path!r}: the tokenizer has no eos_token; name one in tokenizer_config.json")
    return tokenizer


def tokenize(tokenizer: PreTrainedTokenizerFast, text: str, *, special: bool) -> np.ndarray:
    """Token ids [T] int32 of a text; `special` adds the tokenizer's own (such as a beginning of text)."""
    return np.asarray(tokenizer(text, add_special_tokens=special)["input_ids"], dtype=np.int32)


def as_messages(prompt: Any) -> Messages:
    """The prompt as chat messages: text is one message of the user's."""
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    if not isinstance(prompt, list) or not prompt:
        raise BadRow(f"the prompt is {type(prompt).__name__} {prompt!r:.40}; it must be text or chat messages")
    for number, message in enumerate(prompt, start=1):
        if not isinstance(message, dict) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
            raise BadRow(f"message {number} has no text under 'role' and 'content'")
    return prompt


def _question(prompt: Any) -> str:
    """What a judge is told was asked: the text, the only message, or the turns of a talk; no system message."""
    turns = [message for message in as_messages(prompt) if message["role"] != "system"]
    if len(turns) == 1:
        return str(turns[0]["content"])
    return "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in turns)

"""From a row to a prompt to respond to."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from transformers import PreTrainedTokenizerFast

from yatt.config.schema import DataConfig
from yatt.data.answers import answer_text
from yatt.data.columns import column_names, media_column, missing
from yatt.data.images import TAG, Found, ImagePlaces
from yatt.data.layouts import Layout
from yatt.data.media import listed_media, read_image
from yatt.data.rows import Row
from yatt.data.turns import MARK, Messages, render
from yatt.data.values import without_nulls
from yatt.errors import BadRow, ConfigError
from yatt.protocols import MediaStore
from yatt.text import one_line
from yatt.types import Media, Prompt

T = TypeVar("T", str, str | None)
_SURROGATE = re.compile("[\ud800-\udfff]")


class PromptEncoder:
    """Encodes rows as prompts.

    Chat messages, and text where the tokenizer has a chat template and `data.chat_template` allows it, go through the
    template with its generation prompt; other text is tokenised as it stands, with the tokenizer's own special tokens.
    `data.system_prompt` opens every chat that brings no system message of its own. `images` puts the images of rows in
    their places, for a model that sees; the rows of another carry what `data.media_key` names into `store`, as it is.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        data: DataConfig,
        context_length: int,
        max_tokens: int,
        store: MediaStore | None = None,
        images: ImagePlaces | None = None,
    ) -> None:
        self._tokenizer, self._data, self._store, self.images = tokenizer, data, store, images
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
        data, given, row = self._data, row, self.layout.prompt(row)
        if data.prompt_key not in row:
            raise BadRow(missing(given, data, "prompts", "prompt_key"))
        prompt, found = self.marked(row[data.prompt_key], row)
        text, tokens = self.encode(prompt, len(found))
        media = self.read(found, tokens, index)
        if self.images is None:
            media = self._carried(row)
        else:
            media, (tokens,) = self.images.place(media, tokens)
            media = self.images.hold(media)
        answer = answer_text(row.get(data.answer_key), data.answer_key, data.answer_after)
        return Prompt(
            uid=uid,
            text=text,
            tokens=tokens,
            question=encodable(_question(prompt), data.prompt_key),
            answer=encodable(answer, data.answer_key),
            metadata=self._metadata(row),
            media=media,
            messages=tuple(self.opened(as_messages(prompt))),
        )

    def marked(self, prompt: Any, row: Row) -> tuple[Any, list[Found]]:
        """The prompt with a mark in the place of each image, and the row's images in that order; for a model that sees
        none, as it is."""
        if self.images is None:
            return prompt, []
        return self.images.marked(prompt, row, templated=self.templated(prompt))

    def encode(self, prompt: Any, images: int = 0) -> tuple[str, np.ndarray]:
        """The prompt as the policy reads it: text, and token ids [P] int32, one in the place of each image. Raises
        BadRow where it has not so many."""
        if prompt == "":
            raise BadRow("the prompt is empty")
        templated = self.templated(prompt)
        text = self._render(as_messages(prompt)) if templated else prompt
        if self.images is not None and not templated:
            text = self.images.written(text)
        tokens = tokenize(self._tokenizer, text, special=not templated)
        if not len(tokens):
            raise BadRow("the prompt has no tokens")
        if self.images is not None:
            self.images.check_places(tokens, images)
        self._check_length(len(tokens))
        return text, tokens

    def read(self, found: Sequence[Found], tokens: np.ndarray, index: int) -> tuple[Media, ...]:
        """The images of row `index`, looked at; `tokens` are the prompt's, which with all of theirs must fit. Raises
        BadRow: an image is never cut."""
        if self.images is None or not found:
            return ()
        images = self.images.read(found, index)
        self._check_length(len(tokens) - len(images) + sum(image.tokens for image in images), images)
        return tuple(images)

    def _check_length(self, length: int, images: Sequence[Media] = ()) -> None:
        if length <= self._limit:
            return
        shares = f", {sum(image.tokens for image in images)} of them of {len(images)} image(s)" if images else ""
        remedy = "; a lower data.max_pixels makes images smaller" if images else ""
        raise BadRow(f"the prompt has {length} tokens{shares}; the most is {self._limit} ({self._rule}){remedy}")

    def templated(self, prompt: Any) -> bool:
        """Whether a prompt goes through the chat template."""
        return self._template or not isinstance(prompt, str)

    def _render(self, messages: Messages) -> str:
        if not self._template:
            raise BadRow("the prompt is chat messages, but no chat template is in use; give text")
        if messages[-1]["role"] == "assistant":
            raise BadRow("the last message is the assistant's; a prompt ends with what it responds to")
        return render(self._tokenizer, self.opened(messages), opened=True)

    def opened(self, messages: Messages) -> Messages:
        """The messages as they go through the template: begun by the system prompt, where there is one."""
        system = self._data.system_prompt
        if system is None or messages[0]["role"] == "system":
            return messages
        return [{"role": "system", "content": system}, *messages]

    def _carried(self, row: Row) -> tuple[Media, ...]:
        """The images of a model that sees none, as they are."""
        key = self._data.media_key
        if key is None:
            return ()
        if key not in row:
            raise BadRow(f"no column {key!r} (it has {column_names(row)}); see data.media_key")
        images = [read_image(one, f"column {key!r}") for one in listed_media(row[key])]
        if self._store is None or not images:
            return ()
        return self._store.hold([Media(handle=image, nbytes=image.nbytes) for image in images])

    def _metadata(self, row: Row) -> dict[str, Any]:
        data = self._data
        if data.metadata_keys is None:
            media_key = media_column(row, data.media_key, sees=self.images is not None)
            taken = (data.prompt_key, data.answer_key, media_key)
            return {key: value for key, value in row.items() if key not in taken and value is not None}
        for key in data.metadata_keys:
            if key not in row:
                raise BadRow(f"no column {key!r} (it has {column_names(row)}); see data.metadata_keys")
        return {key: row[key] for key in data.metadata_keys}


def load_tokenizer(path: str, setting: str = "model.path") -> PreTrainedTokenizerFast:
    """The fast tokenizer of a Hugging Face folder. Raises ConfigError where it is missing, or has no eos_token that the
    model could sample."""
    try:
        # Not AutoTokenizer: importing it costs seconds in every process, and tokenizer.json says everything.
        tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(path, local_files_only=True)
    except Exception as error:  # transformers raises whatever its parts raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"{setting}={path!r}: its tokenizer cannot be loaded: {reason}") from None
    if not tokenizer.is_fast:
        raise ConfigError(f"{setting}={path!r} has no fast tokenizer; add its tokenizer.json")
    if tokenizer.eos_token_id is None:
        raise ConfigError(f"{setting}={path!r}: the tokenizer has no eos_token; name one in tokenizer_config.json")
    rows = _vocabulary(path)
    if rows is not None and tokenizer.eos_token_id >= rows:
        raise ConfigError(
            f"{setting}={path!r}: eos_token={tokenizer.eos_token!r} is none of the model's {rows} tokens; name one of "
            "them in tokenizer_config.json"
        )
    return tokenizer


def _vocabulary(path: str) -> int | None:
    """The vocabulary size of a folder's config.json; None where it has none: others say what is wrong with it."""
    try:
        rows = json.loads((Path(path) / "config.json").read_text(encoding="utf-8")).get("vocab_size")
    except (OSError, ValueError, AttributeError):
        return None
    return rows if isinstance(rows, int) else None


def tokenize(tokenizer: PreTrainedTokenizerFast, text: str, *, special: bool, closed: bool = False) -> np.ndarray:
    """Token ids [T] int32 of a text; `special` adds those that the tokenizer puts before every text (a beginning of
    text), where the text does not begin with them itself, and with `closed` those that it puts after it too. Raises
    BadRow where the tokenizer cannot read the text, whatever it raises."""
    try:
        read = tokenizer(text, add_special_tokens=special, return_special_tokens_mask=special)
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":  # as Rust's are called
            raise
        raise BadRow(_unreadable(tokenizer, text, error)) from None
    tokens = np.asarray(read["input_ids"], dtype=np.int32)
    if not special:
        return tokens
    own = np.flatnonzero(np.asarray(read["special_tokens_mask"]) == 0)
    if not len(own):
        return tokens
    before, inside = tokens[: own[0]], tokens[own[0] : own[-1] + 1]
    if np.array_equal(before, inside[: len(before)]):
        before = before[:0]
    return np.concatenate([before, inside, tokens[own[-1] + 1 :] if closed else tokens[:0]])


def _unreadable(tokenizer: PreTrainedTokenizerFast, text: str, error: BaseException) -> str:
    """Why a tokenizer raised an error at a text."""
    if _SURROGATE.search(text):
        return _half(text)
    unknown = [character for character in sorted(set(text)) if not _reads(tokenizer, character)]
    if unknown:  # one is named, so that the same reason reads the same in most rows
        return f"the tokenizer has no token for {unknown[0]!r}{' and others' if len(unknown) > 1 else ''}"
    return f"the tokenizer refuses the text: {one_line(error)}"


def _reads(tokenizer: PreTrainedTokenizerFast, text: str) -> bool:
    try:
        tokenizer(text, add_special_tokens=False)
    except Exception:
        return False
    return True


def _half(text: str) -> str:
    surrogates = _SURROGATE.findall(text)
    return f"holds a lone surrogate ({surrogates[0]!r}), half a character, as text that was cut; mend or remove it"


def encodable(text: T, column: str) -> T:
    """The same text, or None. Raises BadRow where it holds a lone surrogate: no response can say it, and no file or
    judge can be given it."""
    if text is not None and not text.isascii() and _SURROGATE.search(text):
        raise BadRow(f"column {column!r} {_half(text)}")
    return text


def as_messages(prompt: Any) -> Messages:
    """The prompt as chat messages, without fields that hold null: a table has every field in every row. Text is one
    message of the user's."""
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    if not isinstance(prompt, list) or not prompt:
        raise BadRow(f"the prompt is {type(prompt).__name__} {prompt!r:.40}; it must be text or chat messages")
    messages: list[Any] = without_nulls(prompt)
    for number, message in enumerate(messages, start=1):
        if isinstance(message, dict) and message.get("tool_calls"):
            message.setdefault("content", "")  # a turn that only calls tools may have none
        if isinstance(message, dict) and isinstance(message.get("content"), list) and message.get("role"):
            raise BadRow(f"message {number} has parts other than text, and the model sees no images; give text")
        if not isinstance(message, dict) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
            raise BadRow(f"message {number} has no text under 'role' and 'content'")
    return messages


def _question(prompt: Any) -> str:
    """The question for a judge to read: the text, the only message, or the turns of a talk; no system message."""
    turns = [message for message in as_messages(prompt) if message["role"] != "system"]
    if len(turns) == 1:
        return str(turns[0]["content"]).replace(MARK, TAG)
    return "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in turns).replace(MARK, TAG)

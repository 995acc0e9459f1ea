"""The layouts of rows that are in use, brought to the one that encoders read: text or chat messages, in columns of the
names that the settings give."""

from __future__ import annotations

import ast
import json
import re
from typing import Any

import numpy as np

from yatt.config.columns import ABSENT, find_column
from yatt.config.schema import DataConfig
from yatt.errors import BadRow

TALKS = ("messages", "conversations")
"""Columns that hold a whole talk."""
ROLES = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "bot", "model", "assistant", "function_call"), "assistant"),
    "system": "system",
    **dict.fromkeys(("tool", "observation", "function_response"), "tool"),
}
"""Speakers of a ShareGPT talk -> the role that chat templates know."""
_MESSAGES_AS_TEXT = re.compile(r"""\s*\[\s*\{\s*['"](role|content|from|value)['"]\s*:""")
_SPEAKER = re.compile(r"(?:\A|\n\n)(Human|Assistant):")
_TURNS = {"Human": "user", "Assistant": "assistant"}


def named(row: dict[str, Any], *names: str | None) -> dict[str, Any]:
    """The row, with the values that dotted names lead to under those names."""
    inner = {name: find_column(row, name, ABSENT) for name in names if name is not None and name not in row}
    return {**row, **{name: value for name, value in inner.items() if value is not ABSENT}}


class Layout:
    """Brings rows to one layout. `chat` says whether text goes through a chat template.

    Messages may be a ShareGPT talk (from, value), JSON text, or Human: / Assistant: text (where `chat` is false that
    stays text). `instruction` takes a column `input` behind it. The column `data.system_key` opens the messages.
    Methods raise BadRow where a value looks like one of these and is none.
    """

    def __init__(self, data: DataConfig, *, chat: bool) -> None:
        self._data, self._chat = data, chat

    def prompt(self, row: dict[str, Any]) -> dict[str, Any]:
        """A row to respond to. A column that holds whole talks may end with the assistant's turn: then the prompt is
        what comes before it."""
        data = self._data
        row = named(row, data.prompt_key, data.answer_key, data.media_key, *(data.metadata_keys or ()))
        row = self._with_prompt(row)
        prompt: Any = row.get(data.prompt_key)
        talk = data.prompt_key.rpartition(".")[2] in TALKS and isinstance(prompt, list) and len(prompt) > 1
        if talk and isinstance(prompt[-1], dict) and prompt[-1].get("role") == "assistant":
            row[data.prompt_key] = prompt[:-1]
        return row

    def demonstration(self, row: dict[str, Any]) -> dict[str, Any]:
        """A row with a prompt and a response as text; or with a whole talk as the prompt, and no response."""
        data = self._data
        row = named(row, data.prompt_key, data.response_key, data.media_key)
        response = self._messages(row.get(data.response_key), data.response_key)
        if response is not None and row.get(data.prompt_key) is not None:
            return {**self._with_prompt(row), data.response_key: _reply(response, data.response_key)}
        row = {key: value for key, value in row.items() if key != data.response_key or response is not None}
        whole = row.get(data.prompt_key)
        if isinstance(whole, str) and not self._chat and _is_spoken(whole):
            prompt, reply = _cut(whole)
            return {**row, data.prompt_key: prompt, data.response_key: reply}
        talks = (self._messages(row[key], key) for key in (data.prompt_key, *TALKS) if row.get(key) is not None)
        talk = next((talk for talk in talks if isinstance(talk, list)), None)
        return row if talk is None else {**row, data.prompt_key: self._opened(talk, row)}

    def pair(self, row: dict[str, Any]) -> dict[str, Any]:
        """A row with two texts or two lists of messages, and the prompt before them where they do not begin with it."""
        data = self._data
        keys = (data.chosen_key, data.rejected_key)
        row = named(row, data.prompt_key, *keys, data.margin_key, data.media_key)
        row |= {key: self._messages(row[key], key) for key in keys if key in row}
        if row.get(data.prompt_key) is None and not self._chat and all(_is_spoken(row.get(key)) for key in keys):
            (before, better), (other, worse) = (_cut(row[key]) for key in keys)
            if before != other:
                raise BadRow("chosen and rejected differ before their last turn; give both the same prompt")
            return {**row, data.prompt_key: before, data.chosen_key: better, data.rejected_key: worse}
        replies = [isinstance(row.get(key), str) or _begins(row.get(key), "assistant") for key in keys]
        if row.get(data.prompt_key) is None and any(replies):
            talk = next((row[name] for name in TALKS if row.get(name) is not None), None)
            row = row if talk is None else {**row, data.prompt_key: talk}
        row = self._with_prompt(row)
        prompt: Any = row.get(data.prompt_key)
        for key, reply in zip(keys, replies, strict=True):
            if reply and isinstance(row[key], list) and len(row[key]) > 1 and prompt:
                opening = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
                row[key] = [*opening, *row[key]]
            elif not reply and isinstance(row.get(key), list):
                row[key] = self._opened(row[key], row)
        return row

    def _with_prompt(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row, with its prompt as the policy is to read it."""
        key = self._data.prompt_key
        prompt = self._messages(row.get(key), key)
        if key.rpartition(".")[2] == "instruction" and isinstance(prompt, str):
            prompt = "\n".join(part for part in (prompt, self._input(row)) if part)
        if isinstance(prompt, str | list) and prompt:
            prompt = self._opened(prompt, row)
        return row if key not in row else {**row, key: prompt}

    def _input(self, row: dict[str, Any]) -> str:
        """The text that an Alpaca row's instruction is about."""
        data = self._data
        name = data.prompt_key.removesuffix("instruction") + "input"
        taken = (data.response_key, data.answer_key, data.chosen_key, data.rejected_key)
        value = find_column(row, name)
        return value if isinstance(value, str) and value.strip() and name not in taken else ""

    def _opened(self, prompt: str | list[Any], row: dict[str, Any]) -> str | list[Any]:
        """The prompt, begun by the row's own system message where it has one."""
        key = self._data.system_key
        system = None if key in (None, self._data.prompt_key) else find_column(row, key)
        if not isinstance(system, str) or not system.strip():
            return prompt
        unset = "set data.system_key=null to leave it out"
        if not self._chat:
            raise BadRow(f"column {key!r} holds a system message, but no chat template is in use; {unset}")
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        if not _begins(messages, "system"):
            return [{"role": "system", "content": system}, *messages]
        if messages[0].get("content") != system:
            raise BadRow(f"column {key!r} is another system message than the one the chat begins with; {unset}")
        return messages

    def _messages(self, value: Any, key: str) -> Any:
        """Messages with role and content, where the value is a talk in another form; any other value as it is."""
        if isinstance(value, np.ndarray):
            value = value.tolist()
        if isinstance(value, str) and _MESSAGES_AS_TEXT.match(value):
            value = _parsed(value, key)
        if isinstance(value, str) and self._chat and _is_spoken(value):
            return _spoken(value)
        if isinstance(value, dict) and {"role", "from"} & set(value):
            value = [value]
        return [_message(item, key) for item in value] if isinstance(value, list) else value


def _message(item: Any, key: str) -> Any:
    if not isinstance(item, dict):
        return item
    content = item.get("content") if item.get("content") is not None else item.get("value")
    if isinstance(content, list) and content and all(_is_text_part(part) for part in content):
        content = "".join(part["text"] for part in content)
    elif item.get("from") is None and item.get("value") is None:
        return item
    role = item.get("role")
    if role is None and item.get("from") is not None:
        role = ROLES.get(str(item["from"]).lower())
        if role is None:
            raise BadRow(f"column {key!r} has a turn from {item['from']!r}; it must be one of {', '.join(ROLES)}")
    others = {name: value for name, value in item.items() if name not in ("role", "from", "content", "value")}
    return {"role": role, "content": content, **others}


def _is_text_part(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type", "text") == "text" and isinstance(part.get("text"), str)


def _parsed(text: str, key: str) -> Any:
    """Messages that were written into a column of text: as JSON, or as Python shows them."""
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    raise BadRow(f"column {key!r} looks like chat messages as text, but is not JSON; write it as JSON")


def _reply(value: Any, key: str) -> Any:
    """The text of a response that is given as the assistant's message; other values as they are."""
    if not isinstance(value, list):
        return value
    if len(value) == 1 and _begins(value, "assistant"):
        return value[0]["content"]
    raise BadRow(f"column {key!r} holds {len(value)} messages; give the assistant's one, and the others in the prompt")


def _begins(messages: Any, role: str) -> bool:
    return (
        isinstance(messages, list)
        and bool(messages)
        and isinstance(messages[0], dict)
        and (messages[0].get("role") == role)
    )


def _is_spoken(text: Any) -> bool:
    """Whether a text is a talk as the hh-rlhf data have it."""
    return isinstance(text, str) and text.lstrip().startswith("Human:") and "\n\nAssistant:" in text


def _spoken(text: str) -> list[dict[str, str]]:
    """Its turns; without a last one of the assistant's that is still to be written."""
    _, *parts = _SPEAKER.split(text.lstrip())
    turns = [{"role": _TURNS[who], "content": said.strip()} for who, said in zip(parts[::2], parts[1::2], strict=True)]
    return turns[:-1] if turns[-1] == {"role": "assistant", "content": ""} else turns


def _cut(text: str) -> tuple[str, str]:
    """The text before the assistant's last words, and these. Raises BadRow where they are not the end."""
    before, mark, reply = text.rpartition("\n\nAssistant:")
    if "\n\nHuman:" in reply:
        raise BadRow("the text does not end with the assistant's turn")
    return before + mark, reply

"""Tool calls in the text of a response, in the formats in which model families write them. Light."""

from __future__ import annotations

import json
import re
from typing import Any, Protocol

from yatt.errors import ConfigError
from yatt.types import Call
from yatt.user_functions import nearest

Read = tuple[str, list[Call], list[str]]
"""The text before the calls, the calls, and what is wrong with those that cannot be read."""


class CallFormat(Protocol):
    """How a model family writes calls."""

    def read(self, text: str) -> Read:
        """The calls in a response."""
        ...

    def before_calls(self, text: str) -> str:
        """The part of a response that is no call."""
        ...


class Tagged:
    """Calls between two tags, each an object with a name and arguments: Hermes, Qwen2.5, Qwen3."""

    _OPEN, _CLOSE = "<tool_call>", "</tool_call>"

    def read(self, text: str) -> Read:
        said, opened, rest = text.partition(self._OPEN)
        calls: list[Call] = []
        mistakes: list[str] = []
        while opened:
            body, closed, rest = rest.partition(self._CLOSE)
            if closed:
                _add(body, calls, mistakes)
            else:
                mistakes.append(f"{self._OPEN} is not closed by {self._CLOSE}")
            _, opened, rest = rest.partition(self._OPEN)
        return said.strip() if calls or mistakes else text, calls, mistakes

    def before_calls(self, text: str) -> str:
        return text.partition(self._OPEN)[0]


class Bare:
    """A response that is one object, with a name and parameters, and nothing else: Llama 3."""

    _PYTHON = "<|python_tag|>"

    def read(self, text: str) -> Read:
        body = text.strip().removeprefix(self._PYTHON).strip()
        if not body.startswith("{") or not re.search(r'"(name|parameters|arguments)"\s*:', body):
            return text, [], []
        calls: list[Call] = []
        mistakes: list[str] = []
        for part in _objects(body):
            _add(part, calls, mistakes)
        return "", calls, mistakes

    def before_calls(self, text: str) -> str:
        said, calls, mistakes = self.read(text)
        return said if calls or mistakes else text


class Listed:
    """A list of objects behind a mark: Mistral. Newer ones write NAME[ARGS]{...} behind each mark."""

    _MARK, _ARGS = "[TOOL_CALLS]", "[ARGS]"

    def read(self, text: str) -> Read:
        said, *parts = text.split(self._MARK)
        calls: list[Call] = []
        mistakes: list[str] = []
        for part in parts:
            name, args, body = part.strip().partition(self._ARGS)
            if args:
                _add_named(name.strip(), body, calls, mistakes)
                continue
            try:
                listed = json.loads(part)
            except ValueError as error:
                mistakes.append(f"no JSON list of calls: {error}")
                continue
            for one in listed if isinstance(listed, list) else [listed]:
                _take(one, calls, mistakes)
        return said.strip() if parts else text, calls, mistakes

    def before_calls(self, text: str) -> str:
        return text.partition(self._MARK)[0]


class Fields:
    """Calls between two tags, the name first and then each argument in tags of its own: GLM-4.5."""

    _CALL = re.compile(r"<tool_call>\s*([^\n<]*)(.*?)</tool_call>", re.DOTALL)
    _ARGUMENT = re.compile(r"<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>", re.DOTALL)

    def read(self, text: str) -> Read:
        calls: list[Call] = []
        mistakes: list[str] = []
        for name, body in self._CALL.findall(text):
            arguments = {key.strip(): _value(value) for key, value in self._ARGUMENT.findall(body)}
            if name.strip():
                calls.append(Call(name=name.strip(), arguments=arguments, id=str(len(calls))))
            else:
                mistakes.append("a call names no tool")
        if text.count("<tool_call>") > len(calls) + len(mistakes):
            mistakes.append("<tool_call> is not closed by </tool_call>")
        return self.before_calls(text).strip() if calls or mistakes else text, calls, mistakes

    def before_calls(self, text: str) -> str:
        return text.partition("<tool_call>")[0]


FORMATS: dict[str, CallFormat] = {"hermes": Tagged(), "llama3": Bare(), "mistral": Listed(), "glm": Fields()}
"""The formats of calls by name."""


def call_format(name: str, template: str) -> CallFormat:
    """The format of that name; of `auto` the one whose marks are in the chat template, else that of Hermes. Raises
    ConfigError for another name."""
    if name == "auto":
        marks = {"[TOOL_CALLS]": "mistral", "<arg_key>": "glm", "<tool_call>": "hermes", "<|python_tag|>": "llama3"}
        found = next((format for mark, format in marks.items() if mark in template), None)
        name = found or ("llama3" if '"parameters"' in template and "<|eot_id|>" in template else "hermes")
    if name not in FORMATS:
        raise ConfigError(
            f"environment.calls={name} is no format of tool calls{nearest(name, FORMATS)}; use auto or one of "
            f"{', '.join(FORMATS)}"
        )
    return FORMATS[name]


def _add(body: str, calls: list[Call], mistakes: list[str]) -> None:
    try:
        _take(json.loads(body), calls, mistakes)
    except ValueError as error:
        mistakes.append(f"no JSON object: {error}")


def _add_named(name: str, body: str, calls: list[Call], mistakes: list[str]) -> None:
    try:
        _take({"name": name, "arguments": json.loads(body)}, calls, mistakes)
    except ValueError as error:
        mistakes.append(f"the arguments of {name} are no JSON object: {error}")


def _take(one: Any, calls: list[Call], mistakes: list[str]) -> None:
    """An object that may be a call."""
    name = one.get("name") if isinstance(one, dict) else None
    if not isinstance(name, str) or not name:
        mistakes.append("a call is an object with a name and arguments")
        return
    arguments = one.get("arguments", one.get("parameters", {}))
    if isinstance(arguments, str):  # some models write them as text again
        try:
            arguments = json.loads(arguments)
        except ValueError:
            arguments = None
    if isinstance(arguments, dict):
        calls.append(Call(name=name, arguments=arguments, id=str(len(calls))))
    else:
        mistakes.append(f"the arguments of {name} are no object")


def _objects(text: str) -> list[str]:
    """The objects that a text is made of, one after another, perhaps with ; between them; what does not parse is the
    last."""
    decoder, at = json.JSONDecoder(), 0
    parts: list[str] = []
    while at < len(text):
        try:
            _, end = decoder.raw_decode(text, at)
        except ValueError:
            return [*parts, text[at:]]
        parts.append(text[at:end])
        at = end + len(text[end:]) - len(text[end:].lstrip("; \n\t"))
    return parts


def _value(text: str) -> Any:
    """An argument: JSON where it is, else the text."""
    try:
        return json.loads(text)
    except ValueError:
        return text.strip()

"""Messages as others write them, in the form that chat templates read: what is asked of the policy from outside is
checked here, whichever way it came."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from yatt.data.turns import MARK
from yatt.types import Message


def read_request(asked: Any) -> tuple[list[Message], list[Mapping[str, Any]], int | None]:
    """Messages, tools and the most tokens of a request in the form of OpenAI's API. How tokens are sampled, the run
    says. Raises ValueError saying what is wrong."""
    if not isinstance(asked, Mapping) or not isinstance(asked.get("messages"), list) or not asked["messages"]:
        raise ValueError("messages must be a list of at least one")
    if asked.get("n") not in (None, 1):
        raise ValueError(f"n={asked['n']} is not supported; the run draws siblings of a conversation itself")
    tools = [] if asked.get("tool_choice") == "none" else asked.get("tools") or []
    if not isinstance(tools, list):
        raise ValueError("tools must be a list of JSON schemas")
    messages = [_message(number, one) for number, one in enumerate(asked["messages"])]
    _name_results(messages)
    return messages, [_tool(number, one) for number, one in enumerate(tools)], read_most(asked)


def read_most(asked: Mapping[str, Any]) -> int | None:
    """The most tokens that a request asks for; None where it does not say. Raises ValueError."""
    name = "max_completion_tokens" if asked.get("max_completion_tokens") is not None else "max_tokens"
    most: int | None = asked.get(name)
    if most is not None and (not isinstance(most, int) or isinstance(most, bool) or most < 1):
        raise ValueError(f"{name}={most!r} must be a whole number above 0")
    return most


def _message(number: int, given: Any) -> Message:
    """A message as chat templates read it: content as text, arguments of calls as objects."""
    if not isinstance(given, Mapping) or not isinstance(given.get("role"), str):
        raise ValueError(f"messages[{number}] has no role")
    content = given.get("content")
    if isinstance(content, list):
        if any(not isinstance(part, Mapping) or not isinstance(part.get("text"), str) for part in content):
            raise ValueError(f"messages[{number}] has a part that is no text, and the policy is given text alone")
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str | None):
        raise ValueError(f"messages[{number}] has content that is neither text nor a list of parts")
    if content and MARK in content:
        raise ValueError(f"messages[{number}] holds {MARK!r}, which is no character; remove it")
    message: Message = {"role": given["role"], "content": content or ""}
    message |= {name: given[name] for name in ("name", "tool_call_id") if given.get(name)}
    calls = given.get("tool_calls")
    if calls and not isinstance(calls, list):
        raise ValueError(f"messages[{number}] has tool_calls that are no list")
    if calls:
        message["tool_calls"] = [_call(number, call) for call in calls]
    return message


def _name_results(messages: Sequence[Message]) -> None:
    """Give what a tool said the tool's name, which templates may write: clients tell the id of the call alone."""
    names: dict[Any, str] = {}
    for message in messages:
        names |= {call["id"]: call["function"]["name"] for call in message.get("tool_calls", ())}
        if message["role"] == "tool" and message.get("tool_call_id") in names:
            message.setdefault("name", names[message["tool_call_id"]])


def _call(number: int, call: Any) -> dict[str, Any]:
    try:
        arguments = call["function"].get("arguments") or "{}"
        parsed = json.loads(arguments) if isinstance(arguments, str) else arguments
        function = {"name": str(call["function"]["name"]), "arguments": dict(parsed)}
    except (KeyError, TypeError, ValueError, AttributeError):
        raise ValueError(f"messages[{number}] has a tool call without a name and arguments in JSON") from None
    return {"type": "function", "id": call.get("id", ""), "function": function}


def _tool(number: int, given: Any) -> Mapping[str, Any]:
    function = given.get("function") if isinstance(given, Mapping) else None
    if not isinstance(given, Mapping) or not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise ValueError(f'tools[{number}] is not of the form {{"type": "function", "function": {{"name": ...}}}}')
    return given

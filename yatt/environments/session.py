"""A conversation as the user's code has it, in a worker: `Session`; and how a class with tools is played in one."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from yatt.environments.tools import MISTAKES, call_tool, tool_schemas
from yatt.errors import ConversationEnded
from yatt.reward.function import BadResult, as_number, shown
from yatt.user_functions import describe

Message = dict[str, Any]
Send = Callable[[str, Mapping[str, Any]], Awaitable[Any]]
"""Asks the controller something about this conversation, and waits for its answer."""
Tell = Callable[[str, Any], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What the policy said: `message` as chat messages are, its text `content`, and the calls in it, each a dict with
    `name`, `arguments` and `id`. `mistakes` say what is wrong with calls that could not be read. `finish` is "stop" or
    "length"."""

    message: Message
    content: str
    calls: list[dict[str, Any]]
    mistakes: list[str]
    finish: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Continuation:
    """Token ids that the policy sampled, and their log-probabilities. `finish` is "stop" or "length"."""

    tokens: list[int]
    logprobs: list[float]
    finish: str


class Session:
    """One conversation with the policy. `row` is the data's: prompt, messages, answer, and the row's other columns.

    Both ways to talk raise ConversationEnded where a limit of the run is reached: what was said until then is trained,
    and a play that lets the error through is scored as one that returned nothing."""

    def __init__(self, row: Mapping[str, Any], send: Send, tell: Tell) -> None:
        self.row = dict(row)
        self.endpoint: dict[str, str] = self.row.pop("endpoint", {})
        self._send, self._tell = send, tell
        self._turns = 0

    async def chat(
        self, messages: Sequence[Message], tools: Sequence[Any] = (), max_tokens: int | None = None
    ) -> Reply:
        """The policy's answer to all that was said. Messages that go on from those of an earlier call, its answer among
        them, go on in the same row; others begin another row of the same trajectory. `tools` are JSON schemas."""
        asked = {"messages": list(messages), "tools": list(tools), "max_tokens": max_tokens}
        reply = Reply(**await self._send("chat", asked))
        self._turns += 1
        return reply

    async def complete(self, tokens: Sequence[int], max_tokens: int | None = None) -> Continuation:
        """The policy's completion of token ids, which are all there is."""
        asked = {"tokens": [int(token) for token in tokens], "max_tokens": max_tokens}
        completion = Continuation(**await self._send("complete", asked))
        self._turns += 1
        return completion

    def reward(self, value: float) -> None:
        """Give a reward for the last turn. It is part of the conversation's reward. Raises BadResult for what is no
        number, and before the first turn."""
        if not self._turns:
            raise BadResult("gave a reward for a turn before the policy had one")
        self._tell("reward", as_number(value, "gave a turn the reward"))

    def failed_call(self) -> None:
        """Count a call of the last turn that came to nothing."""
        self._tell("failed_call", None)


async def in_thread(function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """Run a function in a thread of its own: one that never returns keeps no other from running."""
    loop, done = asyncio.get_running_loop(), asyncio.get_running_loop().create_future()

    def settle(set_result: Callable[[Any], None], value: Any) -> None:
        if not done.done():
            set_result(value)

    def run() -> None:
        try:
            outcome: tuple[Callable[[Any], None], Any] = done.set_result, function(*arguments, **named)
        except StopIteration as error:  # which no future can hold
            outcome = done.set_exception, RuntimeError(f"StopIteration: {error}")
        except BaseException as error:
            outcome = done.set_exception, error
        loop.call_soon_threadsafe(settle, *outcome)

    threading.Thread(target=run, daemon=True).start()
    return await done


async def play_class(kind: type, told: str, arguments: Mapping[str, Any], session: Session) -> Any:
    """Play a conversation of a class: `reset` says how it begins, its other public methods are the policy's tools,
    `step` answers what calls no tool, and `reward` judges at the end. All but the tools may be left out."""
    tools = tool_schemas(kind, told)
    instance = await in_thread(kind, **arguments)
    begun = await _call(instance, "reset", _taken(instance.reset, session.row)) if hasattr(kind, "reset") else None
    messages = _opening(begun, session.row)
    try:
        while True:
            reply = await session.chat(messages, tools)
            messages.append(reply.message)
            if reply.calls or reply.mistakes:
                messages += [await _answer(instance, call, session) for call in reply.calls]
                messages += [_unread(mistake) for mistake in reply.mistakes]
                continue
            said = await _call(instance, "step", {"answer": reply.content}) if hasattr(kind, "step") else None
            if isinstance(said, tuple) and len(said) == 2:
                said, reward = said
                session.reward(reward)
            if said is None:
                break
            messages += _messages(said, "step")
    except ConversationEnded as error:
        if error.reason == "aborted":
            raise
    finally:
        if hasattr(kind, "close"):
            await _call(instance, "close", {})
    return await _call(instance, "reward", {}) if hasattr(kind, "reward") else None


async def _call(instance: Any, name: str, arguments: Mapping[str, Any]) -> Any:
    method = getattr(instance, name)
    return await method(**arguments) if inspect.iscoroutinefunction(method) else await in_thread(method, **arguments)


async def _answer(instance: Any, call: Mapping[str, Any], session: Session) -> Message:
    """The message with what a tool says to a call."""
    try:
        said = await call_tool(instance, call["name"], call["arguments"], in_thread)
    except MISTAKES as error:
        session.failed_call()
        said = f"error: {describe(error).partition(' (')[0]}"
    return {"role": "tool", "name": call["name"], "tool_call_id": call["id"], "content": said}


def _unread(mistake: str) -> Message:
    return {"role": "tool", "name": "error", "content": f"error: the call cannot be read: {mistake}"}


def _opening(begun: Any, row: Mapping[str, Any]) -> list[Message]:
    """How a conversation begins: as its row says, or as `reset` does. A text takes the place of the last message."""
    messages = [dict(message) for message in row["messages"]]
    if begun is None:
        return messages
    if isinstance(begun, str):
        return [*messages[:-1], {"role": "user", "content": begun}]
    return _messages(begun, "reset")


def _messages(said: Any, method: str) -> list[Message]:
    """What the environment says: text, or messages."""
    if isinstance(said, str):
        return [{"role": "user", "content": said}]
    if isinstance(said, Mapping):
        said = [said]
    whole = isinstance(said, Sequence) and said and all(isinstance(one, Mapping) and "role" in one for one in said)
    if not whole:
        raise BadResult(f"{method} returned {shown(said)}; it returns text, messages, or None")
    return [dict(one) for one in said]


def _taken(function: Callable[..., Any], row: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a row that a function names."""
    parameters = inspect.signature(function).parameters.values()
    if any(p.kind == p.VAR_KEYWORD for p in parameters):
        return dict(row)
    return {p.name: row.get(p.name) for p in parameters if p.name in row or p.default is p.empty}

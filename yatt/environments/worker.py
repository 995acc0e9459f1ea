"""A worker of environments: `main` in a process of its own, which plays many conversations at once until its socket
closes. It reads the function that is configured, says "" or what is wrong with it, and then plays what it is asked to.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple

from yatt.environments.frames import Link
from yatt.environments.session import Session, in_thread, play_class
from yatt.environments.tools import tool_schemas
from yatt.errors import ConfigError, ConversationEnded
from yatt.keeper import keep
from yatt.reward.function import BadResult, as_number, shown
from yatt.user_functions import describe, find

BUILTINS = {
    "calculator": "yatt.environments.builtin.calculator:Calculator",
    "python": "yatt.environments.builtin.interpreter:Python",
    "guess": "yatt.environments.builtin.games:Guess",
    "reasoning_gym": "yatt.environments.builtin.reasoning:ReasoningGym",
    "gymnasium": "yatt.environments.builtin.games:Gymnasium",
}
LONGEST_DETAIL = 500

Play = Callable[[Session], Awaitable[Any]]


def main() -> None:
    end = socket.socket(fileno=int(sys.argv[1]))
    keep(end.close)
    end.set_inheritable(False)  # what an environment starts must not hold our socket open
    with contextlib.suppress(EOFError, OSError):
        asyncio.run(_serve(end))
    os._exit(0)  # threads that an environment left behind would be waited for


async def _serve(end: socket.socket) -> None:
    link = await Link.over(end)
    asked = await link.receive()
    try:
        command = asked["command"]
        played = _command(command) if command else _play_of(asked["reference"], asked["arguments"])
    except ConfigError as error:
        return link.send({"wrong": _clean(str(error))})
    link.send({"wrong": "", "tools": played.tools, "endpoint": played.endpoint})
    worker = Worker(link, played.play)
    while True:
        worker.hear(await link.receive())


class Worker:
    """The conversations that are being played, by number."""

    def __init__(self, link: Link, play: Play) -> None:
        self._link, self._play = link, play
        self._plays: dict[int, asyncio.Task[None]] = {}
        self._waiting: dict[tuple[int, int], asyncio.Future[Any]] = {}

    def hear(self, message: Mapping[str, Any]) -> None:
        """Do what the controller asks, or hand on what it answers."""
        number: int = message["number"]
        match message["kind"]:
            case "play":
                self._plays[number] = asyncio.create_task(self._run(number, message["row"]))
            case "cancel" if number in self._plays:
                self._plays[number].cancel()
            case "answer":
                waiting = self._waiting.pop((number, message["call"]), None)
                if waiting is None or waiting.done():
                    return
                if "ended" in message:
                    waiting.set_exception(ConversationEnded(message["ended"]))
                elif "wrong" in message:
                    waiting.set_exception(ValueError(message["wrong"]))
                else:
                    waiting.set_result(message["value"])

    async def _run(self, number: int, row: Mapping[str, Any]) -> None:
        calls = 0

        async def send(kind: str, asked: Mapping[str, Any]) -> Any:
            nonlocal calls
            calls += 1
            waiting = self._waiting[number, calls] = asyncio.get_running_loop().create_future()
            self._link.send({"number": number, "kind": kind, "call": calls, **asked})
            return await waiting

        def tell(kind: str, value: Any) -> None:
            self._link.send({"number": number, "kind": kind, "value": value})

        try:
            result = _result(await self._play(Session(row, send, tell)))
        except ConversationEnded:
            result = {"status": "ok", "value": None, "parts": {}, "detail": ""}
        except asyncio.CancelledError:
            return
        except BaseException as error:  # SystemExit too: one conversation that fails must not end the others
            said = str(error) if isinstance(error, BadResult) else describe(error)
            result = {"status": "failed", "value": None, "parts": {}, "detail": _clean(said)}
        finally:
            self._plays.pop(number, None)
            for key in [key for key in self._waiting if key[0] == number]:
                del self._waiting[key]
        self._link.send({"number": number, "kind": "done", **result})


class Played(NamedTuple):
    """How one conversation is played; whether the policy is given tools of ours, and whether the endpoint is asked."""

    play: Play
    tools: bool = False
    endpoint: bool = False


def _play_of(reference: str, arguments: Mapping[str, Any]) -> Played:
    """How a conversation of a user's class or function is played. Raises ConfigError."""
    told = f"environment.function={reference}"
    function = find("environment.function", reference, BUILTINS)
    if inspect.isclass(function):
        schemas = tool_schemas(function, told)
        if not schemas and not hasattr(function, "step"):
            raise ConfigError(f"{told} has neither tools, its public methods, nor `step`; give it one of them")
        return Played(lambda session: play_class(function, told, arguments, session), tools=bool(schemas))
    named = inspect.signature(function).parameters
    asks = "session" in named and inspect.iscoroutinefunction(function)
    if not asks and not {"base_url", "api_key"} <= named.keys():
        raise ConfigError(
            f"{told} is neither a class, nor an async function of `session`, nor a function of `base_url` and "
            "`api_key`; make it one of them"
        )
    wrong = [name for name in arguments if name not in named]
    if wrong:
        raise ConfigError(f"{told} takes no argument {wrong[0]!r}; it takes {', '.join(named)}")

    async def play(session: Session) -> Any:
        known = {"row": session.row, "session": session, **session.endpoint}
        given = {name: value for name, value in known.items() if name in named}
        if inspect.iscoroutinefunction(function):
            return await function(**given, **arguments)
        return await in_thread(function, **given, **arguments)

    return Played(play, endpoint=not asks)


def _command(command: str) -> Played:
    """A program that is started for each conversation, and asks the endpoint."""

    async def play(session: Session) -> Any:
        where = {"OPENAI_BASE_URL": session.endpoint["base_url"], "OPENAI_API_KEY": session.endpoint["api_key"]}
        process = await asyncio.create_subprocess_shell(
            command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, **where},
            start_new_session=True,
        )
        try:
            said, _ = await process.communicate(json.dumps(session.row).encode())
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
        if process.returncode:
            raise RuntimeError(f"the agent ended with status {process.returncode}")
        lines = said.decode(errors="replace").strip().splitlines()
        with contextlib.suppress(ValueError):
            last = json.loads(lines[-1]) if lines else None
            return last if isinstance(last, int | float | dict) else None
        return None

    return Played(play, endpoint=True)


def _result(returned: Any) -> dict[str, Any]:
    """The score of what a play returned: nothing, a number, or a dict of numbers with "reward"."""
    if returned is None:
        return {"status": "ok", "value": None, "parts": {}, "detail": ""}
    named = dict(returned) if isinstance(returned, Mapping) else {"reward": returned}
    if "reward" not in named:
        raise BadResult(f"returned {shown(returned)}, a dict without 'reward'")
    numbers = {str(name): as_number(value, f"returned {name} =") for name, value in named.items()}
    return {"status": "ok", "value": numbers.pop("reward"), "parts": numbers, "detail": ""}


def _clean(text: str) -> str:
    text = " ".join(text.encode("utf-8", "backslashreplace").decode().split())
    return text if len(text) <= LONGEST_DETAIL else text[: LONGEST_DETAIL - 3] + "..."

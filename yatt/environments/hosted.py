"""Environments of the user's, played in worker processes: what they do can be killed, and is given a time limit."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import time
from collections.abc import Coroutine, Mapping, Sequence
from itertools import count
from typing import Any, TypeVar

from yatt.config.schema import EnvironmentConfig
from yatt.environments.endpoint import Endpoint
from yatt.environments.frames import Link
from yatt.environments.messages import read_most, read_request
from yatt.errors import BackendError, BadRow, ConfigError, ConversationEnded
from yatt.protocols import Talk
from yatt.types import Answer, Message, Score, Tools
from yatt.user_processes import ask_to_end, end, ending, spawn

R = TypeVar("R")

IMPORT_SECONDS = 180.0
END_SECONDS = 10.0
GRACE_SECONDS = 1.0
BEGINNING = 32
"""So many conversations begin at once in a worker; a next one when one of them has said something. What a process does
for hundreds at once would take each of them longer than its time limit."""


class HostedEnvironment:
    """An Environment whose conversations are played in worker processes, many in each. `start` it first.

    What is done between two turns has `environment.timeout` seconds: then the conversation is "timed_out", and its
    worker is given no more; it is killed when its last conversation ends. Conversations whose worker dies are "failed";
    played anew, each has a worker for itself, so that the one that killed it kills no others again. Raises BackendError
    once workers no longer start."""

    def __init__(self, config: EnvironmentConfig) -> None:
        self._config = config
        self._workers: list[_Worker] = []
        self._retired: set[_Worker] = set()
        self._suspects: set[tuple[int, int]] = set()
        self._starting = asyncio.Lock()
        self._endpoint: Endpoint | None = None
        self._closed = False

    async def start(self) -> None:
        """Returns once every worker has imported the environment. Raises BackendError saying what is wrong with it."""
        starting = (_Worker.started(self._config) for _ in range(self._config.workers))
        self._workers = list(await asyncio.gather(*starting))
        if self._workers[0].endpoint:
            self._endpoint = Endpoint()
            await self._endpoint.start()

    async def play(self, talk: Talk) -> Score | None:
        key = talk.prompt.uid, talk.sibling
        worker = await (self._own() if key in self._suspects else self._free())
        self._suspects.discard(key)
        try:
            score = await worker.play(talk, self._config.timeout, self._endpoint)
            if worker.dead:
                self._suspects.add(key)
            return score
        finally:
            if worker.tainted and not worker.busy:
                self._retired.discard(worker)
                await worker.end()

    async def close(self) -> None:
        self._closed = True
        await asyncio.gather(*(worker.end() for worker in (*self._workers, *self._retired)))
        self._workers, self._retired = [], set()
        if self._endpoint is not None:
            await self._endpoint.close()

    async def _own(self) -> _Worker:
        """A worker for one conversation."""
        worker = await _Worker.started(self._config)
        worker.tainted = True
        self._retired.add(worker)
        return worker

    async def _free(self) -> _Worker:
        """The worker with the fewest conversations; those that are dead or tainted are replaced."""
        async with self._starting:
            for place, worker in enumerate(self._workers):
                if worker.tainted:
                    if worker.busy:
                        self._retired.add(worker)
                    if self._closed:
                        raise BackendError("the environment's workers are closed")
                    self._workers[place] = await _Worker.started(self._config)
            return min(self._workers, key=lambda worker: worker.busy)


class _Worker:
    """One worker process, and the conversations that it plays."""

    def __init__(self, process: subprocess.Popen[bytes], link: Link, *, tools: bool, endpoint: bool) -> None:
        self._process, self._link = process, link
        self.tools, self.endpoint = tools, endpoint
        self._numbers = count()
        self._plays: dict[int, _Play] = {}
        self._beginning = asyncio.Semaphore(BEGINNING)
        self._reading = asyncio.create_task(self._read())
        self.tainted = self.dead = False
        self._how = ""

    @classmethod
    async def started(cls, config: EnvironmentConfig) -> _Worker:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with theirs:
            process = await asyncio.to_thread(spawn, "yatt.environments.worker:main", theirs)
        link = await Link.over(ours)
        name = f"environment.function={config.function}" if config.function else f"environment.command={config.command}"
        link.send({"reference": config.function, "command": config.command, "arguments": dict(config.arguments)})
        try:
            said = await asyncio.wait_for(link.receive(), IMPORT_SECONDS)
        except TimeoutError:
            said = {"wrong": f"{name} does not import within {IMPORT_SECONDS:g} s"}
        except EOFError:
            said = {"wrong": f"{name}: its process died while starting ({ending(process, GRACE_SECONDS)})"}
        if said["wrong"]:
            link.close()
            await asyncio.to_thread(end, process, END_SECONDS)
            raise BackendError(said["wrong"])
        return cls(process, link, tools=said["tools"], endpoint=said["endpoint"])

    @property
    def busy(self) -> int:
        return len(self._plays)

    async def play(self, talk: Talk, timeout: float, endpoint: Endpoint | None) -> Score | None:
        """Play one conversation: answer what it asks of the policy, until it is done."""
        number, play = next(self._numbers), _Play(talk, timeout, self._beginning)
        self._plays[number] = play
        row, key = _row(talk), ""
        if endpoint is not None:
            key = endpoint.admit(play.chat)
            row["endpoint"] = {"base_url": endpoint.address, "api_key": key}
        try:
            await play.admitted()
            self._link.send({"number": number, "kind": "play", "row": row})
            while (message := await play.next()) is not None:
                match message["kind"]:
                    case "done":
                        return _score(message)
                    case "reward":
                        talk.reward(message["value"])
                    case "failed_call":
                        talk.failed_call()
                    case _:
                        play.begin(self._answer(number, message, play))
            how = self._how or "its socket was closed"
            return Score(status="failed", detail=f"the environment's process died ({how})")
        except TimeoutError:
            self.tainted = True
            return Score(status="timed_out", detail=f"between two turns the environment took over {timeout:g} s")
        finally:
            del self._plays[number]
            play.end()
            if endpoint is not None:
                endpoint.dismiss(key)
            self._link.send({"number": number, "kind": "cancel"})

    async def end(self) -> None:
        self._reading.cancel()
        self._link.close()
        await asyncio.to_thread(end, self._process, END_SECONDS)

    async def _answer(self, number: int, asked: Mapping[str, Any], play: _Play) -> None:
        """Have the policy say what it was asked for, and tell the worker."""
        answer: dict[str, Any]
        try:
            if asked["kind"] == "chat":
                answer = {"value": _reply(await play.answered(play.talk.chat(*read_request(asked))))}
            else:
                answer = {"value": await _complete(play, asked)}
        except ConversationEnded as error:
            answer = {"ended": error.reason}
        except (BadRow, ValueError) as error:
            answer = {"wrong": str(error)}
        self._link.send({"number": number, "kind": "answer", "call": asked["call"], **answer})

    async def _read(self) -> None:
        """Hand what the worker says to the conversation that it is about."""
        try:
            while True:
                message = await self._link.receive()
                if play := self._plays.get(message["number"]):
                    play.inbox.put_nowait(message)
        except (EOFError, KeyError, TypeError, ValueError):  # it died, or something else wrote into its socket
            self.tainted = self.dead = True
            ask_to_end(self._process)
            self._how = await asyncio.to_thread(ending, self._process, GRACE_SECONDS)
            for play in self._plays.values():
                play.inbox.put_nowait(None)


class _Play:
    """One conversation under way: what its worker says, and the turns of the policy's that are asked for."""

    def __init__(self, talk: Talk, timeout: float, beginning: asyncio.Semaphore) -> None:
        self.talk, self._timeout, self._beginning = talk, timeout, beginning
        self._begins = False
        self.inbox: asyncio.Queue[Mapping[str, Any] | None] = asyncio.Queue()
        self._turns: set[asyncio.Task[Any]] = set()
        self._since = time.monotonic()

    async def admitted(self) -> None:
        """Returns once it may begin; its time counts from then on."""
        await self._beginning.acquire()
        self._begins, self._since = True, time.monotonic()

    def begun(self) -> None:
        """It has said something, or it is over: another one may begin."""
        if self._begins:
            self._begins = False
            self._beginning.release()

    def begin(self, turn: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Let the policy have a turn, beside others."""
        self.begun()
        task = asyncio.create_task(turn)
        self._turns.add(task)
        return task

    async def chat(self, messages: Sequence[Message], tools: Tools, max_tokens: int | None) -> Answer:
        """A turn that came from elsewhere than the worker's socket."""
        answer: Answer = await self.begin(self.answered(self.talk.chat(messages, tools, max_tokens)))
        return answer

    async def answered(self, turn: Coroutine[Any, Any, R]) -> R:
        """A turn of the policy's. When it has ended, and only then, the environment has all its time again: one that
        goes on asking where nothing is answered any more comes to its end."""
        said = await turn
        self._since = time.monotonic()
        return said

    async def next(self) -> Mapping[str, Any] | None:
        """The next message; None where the process has died. Raises TimeoutError where the time limit is over, which
        counts from the policy's last answer, and not while it has something to answer; and what broke a turn."""
        message = asyncio.ensure_future(self.inbox.get())
        try:
            while True:
                left = None if self._turns else self._since + self._timeout - time.monotonic()
                if left is not None and left <= 0 and not (message.done() and _is_last(message.result())):
                    raise TimeoutError
                done, _ = await asyncio.wait({message, *self._turns}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
                for turn in done & self._turns:
                    self._turns.discard(turn)
                    if not turn.cancelled() and not isinstance(turn.exception(), ConversationEnded | BadRow | None):
                        turn.result()
                if message in done:
                    return message.result()
        finally:
            message.cancel()

    def end(self) -> None:
        self.begun()
        for turn in self._turns:
            turn.cancel()


def _is_last(message: Mapping[str, Any] | None) -> bool:
    return message is None or message["kind"] == "done"


def _reply(answer: Answer) -> dict[str, Any]:
    """An answer as a worker is told it."""
    return {
        "message": dict(answer.message),
        "content": answer.message["content"],
        "calls": [{"name": call.name, "arguments": dict(call.arguments), "id": call.id} for call in answer.calls],
        "mistakes": list(answer.mistakes),
        "finish": answer.finish,
    }


async def _complete(play: _Play, asked: Mapping[str, Any]) -> dict[str, Any]:
    done = await play.answered(play.talk.complete(asked["tokens"], read_most(asked)))
    return {"tokens": done.tokens.tolist(), "logprobs": done.rollout_logprobs.tolist(), "finish": done.finish}


def _row(talk: Talk) -> dict[str, Any]:
    """What an environment is told of a row."""
    prompt = talk.prompt
    return {
        **prompt.metadata,
        "prompt": prompt.text,
        "messages": [dict(message) for message in prompt.messages],
        "answer": prompt.answer,
        "uid": prompt.uid,
        "sibling": talk.sibling,
    }


def _score(message: Mapping[str, Any]) -> Score | None:
    status, value = message["status"], message["value"]
    if status == "ok" and value is None:
        return None
    return Score(status=status, value=value, parts=message["parts"], detail=message["detail"])


def check_environment(config: EnvironmentConfig, knows_tools: bool) -> None:
    """Import the environment once, in a process of its own. Raises ConfigError naming what is wrong with it, or that
    the policy's chat template would tell it of no tools."""

    async def tools() -> bool:
        worker = await _Worker.started(config)
        await worker.end()
        return worker.tools

    try:
        lacking = asyncio.run(tools()) and not knows_tools
    except BackendError as error:
        raise ConfigError(str(error)) from None
    if lacking:
        raise ConfigError(
            f"environment.function={config.function} has tools, and the tokenizer's chat template tells the model of "
            "none; use a model whose template does, or an environment without tools"
        )

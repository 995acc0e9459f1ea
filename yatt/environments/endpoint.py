"""Conversations with the policy over HTTP, in the form that clients of OpenAI's API speak: for agents that know nothing
of this program. Each conversation has a key of its own; without one nothing is answered."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from yatt.environments.messages import read_request
from yatt.errors import BadRow, ConversationEnded, WaitTimeout
from yatt.types import Answer, Message

START_SECONDS = 30.0
NO_KEY = "no conversation has this key; use the one that the agent was given"
MODEL = "policy"
"""The name under which the policy is listed; requests may name any other."""

Chat = Callable[[Sequence[Message], Sequence[Mapping[str, Any]], int | None], Awaitable[Answer]]


class _Server(uvicorn.Server):
    """A server that leaves signals to the process that it is in."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Endpoint:
    """The server of one controller, on the loopback interface, in the controller's own loop. `start` it first."""

    def __init__(self) -> None:
        self._talks: dict[str, Chat] = {}
        routes = [
            Route("/v1/chat/completions", self._complete, methods=["POST"]),
            Route("/v1/models", self._models, methods=["GET"]),
        ]
        settings = uvicorn.Config(Starlette(routes=routes), log_level="error", lifespan="off")
        self._server = _Server(settings)
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._serving: asyncio.Task[None] | None = None
        self.address = ""

    async def start(self) -> None:
        """Returns once it listens; `address` is then what clients call base_url. Waits START_SECONDS at most."""
        self._serving = asyncio.create_task(self._server.serve([self._socket]))
        deadline = time.monotonic() + START_SECONDS
        while not self._server.started:
            if self._serving.done() or time.monotonic() > deadline:
                raise WaitTimeout(f"the environments' endpoint does not listen after {START_SECONDS:g} s")
            await asyncio.sleep(0.02)
        self.address = "http://{}:{}/v1".format(*self._socket.getsockname())

    def admit(self, chat: Chat) -> str:
        """The key of a new conversation."""
        key = f"yatt-{secrets.token_urlsafe(24)}"
        self._talks[key] = chat
        return key

    def dismiss(self, key: str) -> None:
        """The conversation is over: its key is worth nothing any more."""
        self._talks.pop(key, None)

    async def close(self) -> None:
        self._server.should_exit = self._server.force_exit = True
        if self._serving is not None:
            with contextlib.suppress(asyncio.CancelledError):
                await self._serving

    def _chat(self, request: Request) -> Chat | None:
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        return self._talks.get(key.strip()) if scheme.lower() == "bearer" else None

    async def _models(self, request: Request) -> Response:
        if self._chat(request) is None:
            return _refused(401, NO_KEY, "invalid_api_key")
        return JSONResponse({"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": "yatt"}]})

    async def _complete(self, request: Request) -> Response:
        chat = self._chat(request)
        if chat is None:
            return _refused(401, NO_KEY, "invalid_api_key")
        try:
            asked = await request.json()
            messages, tools, most = read_request(asked)
        except ValueError as error:
            return _refused(400, str(error), "invalid_request")
        try:
            answer = await chat(messages, tools, most)
        except ConversationEnded as error:
            return _refused(400, str(error), "conversation_ended")
        except BadRow as error:
            return _refused(400, str(error), "invalid_request")
        whole = completion(answer)
        if not asked.get("stream"):
            return JSONResponse(whole)
        return StreamingResponse(_streamed(whole), media_type="text/event-stream")


def completion(answer: Answer) -> dict[str, Any]:
    """An answer as the API gives it."""
    message: Message = {"role": "assistant", "content": answer.message["content"]}
    calls = answer.message.get("tool_calls") or ()
    if calls:
        message["tool_calls"] = [
            call | {"function": call["function"] | {"arguments": json.dumps(call["function"]["arguments"])}}
            for call in calls
        ]
    finish = "tool_calls" if calls else answer.finish
    return {
        "id": f"chatcmpl-{secrets.token_hex(8)}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": MODEL,
        "choices": [{"index": 0, "message": message, "finish_reason": finish}],
        "usage": {
            "prompt_tokens": answer.read,
            "completion_tokens": answer.said,
            "total_tokens": answer.read + answer.said,
        },
    }


async def _streamed(whole: Mapping[str, Any]) -> AsyncIterator[str]:
    """The answer in the form of a stream. It comes at once: what was sampled is recorded when it is whole."""
    choice = whole["choices"][0]
    calls = choice["message"].get("tool_calls", ())
    delta = choice["message"] | (
        {"tool_calls": [{"index": i, **call} for i, call in enumerate(calls)]} if calls else {}
    )
    head = {name: whole[name] for name in ("id", "created", "model")} | {"object": "chat.completion.chunk"}
    for part, finish in ((delta, None), ({}, choice["finish_reason"])):
        chunk = head | {"choices": [{"index": 0, "delta": part, "finish_reason": finish}]}
        yield f"data: {json.dumps(chunk)}\n\n"
    yield "data: [DONE]\n\n"


def _refused(status: int, why: str, code: str) -> JSONResponse:
    return JSONResponse({"error": {"message": why, "type": "invalid_request_error", "code": code}}, status_code=status)

"""A request in an engine: its tokens so far, what ends it, and the way back to its caller."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from yatt.generation.engine import Image
from yatt.types import Completion, Finish, Request, Span


class Stream:
    """Completions, or what went wrong, on their way from the engine's thread to one caller of `generate`."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Queue[list[Completion] | Exception] = asyncio.Queue()

    def put(self, ended: list[Completion] | Exception) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._ended.put_nowait, ended)

    async def get(self) -> list[Completion]:
        ended = await self._ended.get()
        if isinstance(ended, Exception):
            raise ended
        return ended


@dataclass(slots=True)
class Running:
    """A request in the engine: its tokens so far, and where each policy version began."""

    request: Request
    stream: Stream
    versions: list[tuple[int, int]]
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    stops: StopStrings | None = None
    reads: int = 0  # tokens of a prompt that is read for it; its siblings find them in the cache
    images: Sequence[Image] = ()

    def completion(self, finish: Finish, logit: float | None = None) -> Completion:
        ends = [start for start, _ in self.versions[1:]] + [len(self.tokens)]
        spans = [Span(start=s, stop=e, version=v) for (s, v), e in zip(self.versions, ends, strict=True) if e > s]
        return Completion(
            key=self.request.key,
            tokens=np.array(self.tokens, dtype=np.int32),
            rollout_logprobs=np.array(self.logprobs, dtype=np.float32),
            spans=tuple(spans),
            finish=finish,
            logit=logit,
        )


def same_prompt(one: Request, other: Request) -> bool:
    """Whether two requests read the same."""
    digests = ([image.digest for image in request.media] for request in (one, other))
    return np.array_equal(one.tokens, other.tokens) and next(digests) == next(digests)


class StopStrings:
    """Looks for stop strings in a growing response, special tokens included."""

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], stop: tuple[str, ...]) -> None:
        self._tokenizer = tokenizer
        self._stream = DecodeStream(ids=list(prompt), skip_special_tokens=False)
        self._stop = stop
        self._keep = max(map(len, stop)) - 1
        self._text = ""

    def found(self, token: int) -> bool:
        """Whether the response, with this token, now contains a stop string."""
        text = self._text + (self._stream.step(self._tokenizer, token) or "")
        self._text = text[-self._keep :] if self._keep else ""
        return any(stop in text for stop in self._stop)

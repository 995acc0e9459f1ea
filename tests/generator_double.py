"""A `Generator` that only spends time: deterministic tokens, on any clock. Also the shortest adapter to read."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import xxhash

from yatt.errors import BackendError
from yatt.protocols import Clock
from yatt.types import Completion, Finish, Pulse, Request, SampleKey, Span, WeightManifest
from yatt.weights import verify


@dataclass(eq=False)
class Drawing:
    """A request being drawn: its tokens so far, the version of each, and how it ended."""

    request: Request
    answers: asyncio.Queue[Completion]
    tokens: list[int] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    finish: Finish | None = None


class DoubleGenerator:
    """Implements `yatt.protocols.Generator`.

    Token t of a response is a hash of (prompt, images, seed unless greedy, version, t), uniform over `vocabulary`, and
    takes `seconds_per_token`. Temperatures above 0, truncation and stop strings change nothing. A manifest with an
    empty path stands for weights of which only the version is of interest.
    """

    def __init__(
        self,
        *,
        clock: Clock,
        vocabulary: int = 64,
        seconds_per_token: float = 0.0,
        context_length: int = 2048,
        kv_cache_bytes: int = 1 << 20,
        stop_token_ids: tuple[int, ...] = (),
    ) -> None:
        self._clock = clock
        self._vocabulary = vocabulary
        self._seconds = seconds_per_token
        self._context_length = context_length
        self._kv_cache_bytes = kv_cache_bytes
        self._stop_token_ids = frozenset(stop_token_ids)
        self._drawings: dict[Drawing, asyncio.Task[None]] = {}
        self._going = asyncio.Event()
        self._going.set()
        self._asleep = False
        self._closed = False
        self._version = 0
        self._ended = 0
        self._steps = self._cached = 0
        self.tokens_sampled = 0

    async def start(self) -> None:
        """Nothing to load."""

    async def generate(self, requests: Sequence[Request]) -> AsyncIterator[list[Completion]]:
        self._check_open()
        for request in requests:
            if len(request.tokens) >= self._context_length:
                raise BackendError(f"request {request.key}: its prompt fills the context of {self._context_length}")
        answers: asyncio.Queue[Completion] = asyncio.Queue()
        drawings = [Drawing(request, answers) for request in requests]
        for drawing in drawings:
            self._drawings[drawing] = asyncio.create_task(self._draw(drawing))
        pending = len(drawings)
        try:
            while pending:
                ended = [await answers.get()]
                while not answers.empty():
                    ended.append(answers.get_nowait())
                pending -= len(ended)
                yield ended
        finally:
            self._end(drawings)

    async def abort(self, keys: Sequence[SampleKey]) -> None:
        self._end([drawing for drawing in self._drawings if drawing.request.key in keys])

    async def pause(self) -> None:
        self._check_open()
        self._going.clear()

    async def resume(self) -> None:
        self._check_open()
        if self._asleep:
            raise BackendError("a sleeping generator cannot resume; wake it first")
        self._going.set()

    async def load(self, manifest: WeightManifest) -> int:
        self._check_open()
        if self._going.is_set():
            raise BackendError("weights can only be loaded into a paused generator; pause it first")
        if manifest.path:
            verify(manifest)
        self._version = manifest.version
        return self._version

    async def sleep(self) -> int:
        await self.pause()
        freed, self._asleep = 0 if self._asleep else self._kv_cache_bytes, True
        return freed

    async def wake(self) -> None:
        self._check_open()
        self._asleep = False

    async def pulse(self) -> Pulse:
        return Pulse(
            running=len(self._drawings),
            tokens=self.tokens_sampled,
            ended=self._ended,
            steps=self._steps,
            seconds=self._steps * self._seconds,
            cached=self._cached,
        )

    async def close(self) -> None:
        self._end(list(self._drawings))
        self._closed = True

    def _check_open(self) -> None:
        if self._closed:
            raise BackendError("the double generator is closed")

    async def _draw(self, drawing: Drawing) -> None:
        request = drawing.request
        limit = min(request.params.max_tokens, self._context_length - len(request.tokens))
        stops = self._stop_token_ids | set(request.params.stop_token_ids)
        while drawing.finish is None:
            await self._clock.sleep(self._seconds)
            while not self._going.is_set():
                await self._going.wait()
            token = self._token(request, len(drawing.tokens))
            self._cached += len(drawing.tokens) + (0 if request.key.sibling else len(request.tokens))
            drawing.tokens.append(token)
            drawing.versions.append(self._version)
            self.tokens_sampled += 1
            self._steps += drawing is next(iter(self._drawings))  # all draw a token in the time that the oldest does
            if token in stops:
                drawing.finish = "stop"
            elif len(drawing.tokens) == limit:
                drawing.finish = "length"
        self._ended += 1
        self._answer(drawing)

    def _token(self, request: Request, position: int) -> int:
        seed = request.seed if request.params.temperature > 0 else 0
        words = np.array([seed % (1 << 62), self._version, position, *request.tokens], dtype=np.int64)
        images = "".join(image.digest for image in request.media).encode()
        return xxhash.xxh3_64_intdigest(words.tobytes() + images) % self._vocabulary

    def _end(self, drawings: Sequence[Drawing]) -> None:
        for drawing in drawings:
            task = self._drawings.get(drawing)
            if task is not None:
                task.cancel()
                drawing.finish = "aborted"
                self._answer(drawing)

    def _answer(self, drawing: Drawing) -> None:
        del self._drawings[drawing]
        changes = [i for i in range(1, len(drawing.versions)) if drawing.versions[i] != drawing.versions[i - 1]]
        starts = [0, *changes] if drawing.versions else []
        ends = [*starts[1:], len(drawing.versions)]
        drawing.answers.put_nowait(
            Completion(
                key=drawing.request.key,
                tokens=np.array(drawing.tokens, dtype=np.int32),
                rollout_logprobs=np.full(len(drawing.tokens), -math.log(self._vocabulary), dtype=np.float32),
                spans=tuple(
                    Span(start=s, stop=e, version=drawing.versions[s]) for s, e in zip(starts, ends, strict=False)
                ),
                finish=drawing.finish,
            )
        )

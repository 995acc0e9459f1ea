"""The `Generator` of every engine: one `Engine` of this process, stepped by a thread of ours.

Since nobody else steps the engine, "after pause no token is sampled" holds by construction, weights are loaded between
two steps, and the tokens so far of an aborted request are known here.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tokenizers import Tokenizer

from yatt.config.schema import EngineName, RolloutConfig
from yatt.data.prompts import load_tokenizer
from yatt.data.turns import Turn, named_ends
from yatt.errors import BackendError, ConfigError, WaitTimeout, YattError
from yatt.generation.engine import Engine, Image, Read, Sampled
from yatt.generation.facts import served_facts
from yatt.generation.kind import Device
from yatt.generation.running import Running, StopStrings, Stream, same_prompt
from yatt.generation.table import ENGINES
from yatt.types import Completion, Finish, Pulse, Request, SampleKey, WeightManifest

if TYPE_CHECKING:
    from yatt.generation.images import ImageQueue

R = TypeVar("R")

# Seconds a command may wait for the engine's thread: far beyond the longest step or load.
PATIENCE = 1800.0
# Imported only for a model that sees.
IMAGES = "yatt.generation.images"


class SteppedGenerator:
    """Implements `yatt.protocols.Generator` on any engine of the table.

    Logprobs are those of the distribution a token was drawn from: temperature, top-k and top-p applied. A greedy token
    (temperature 0) comes from a distribution that is all on it; its logprob is instead the model's own, at
    temperature 1. A response ends with one of `stop_token_ids` (by default `end_tokens`), as its request asks, or at
    the context length. The same seed gives the same tokens up to round-off, which depends on
    what else is running.

    A request with images waits, running, until their patches are made; others are stepped meanwhile.
    """

    classifies = False

    def __init__(
        self,
        *,
        model: str,
        config: RolloutConfig,
        context_length: int,
        dtype: str,
        device: Device,
        seed: int,
        stop_token_ids: tuple[int, ...] = (),
        setting: str = "rollout",
    ) -> None:
        """Of `config`, `engine`, `engine_args` and `sleep` are used; `setting` is where its user wrote them."""
        self._engine_name: EngineName = config.engine
        self._title = ENGINES[config.engine].title
        self._name = f"the {self._title} generator of {model}"
        self._model = model
        self._context_length = context_length
        self._arguments: dict[str, Any] = dict(
            model=model,
            config=config,
            context_length=context_length,
            dtype=dtype,
            device=device,
            seed=seed,
            setting=setting,
            classifies=self.classifies,
        )
        self._stop_token_ids = stop_token_ids or end_tokens(model)
        self._tokenizer: Tokenizer | None = None
        self._engine: Engine
        self._thread: ThreadPoolExecutor | None = None
        self._images: ImageQueue | None = None
        self._running: dict[str, Running] = {}
        self._waiting: set[str] = set()  # those of them that are not in the engine: their images are being read
        self._next_id = 0
        self._version = 0
        self._paused = False
        self._asleep = False
        self._stepping = False
        self._failure: BackendError | None = None
        self._ended = 0
        self._read = 0
        self._steps = 0
        self._seconds = 0.0
        self._cached = 0
        self.tokens_sampled = 0

    async def start(self) -> None:
        """Import the engine and load the model. The process must have been started with the engine's environment."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="engine")
        await self._call(self._build)

    # The asyncio side.

    async def generate(self, requests: Sequence[Request]) -> AsyncIterator[list[Completion]]:
        for request in requests:
            if not len(request.tokens):
                raise BackendError(f"request {request.key} has an empty prompt")
            if len(request.tokens) >= self._context_length:
                raise BackendError(
                    f"request {request.key}: its prompt of {len(request.tokens)} tokens leaves no room "
                    f"in the context length, {self._context_length}"
                )
            if request.media and self._images is None:
                raise BackendError(f"request {request.key} has images, and {self._model} sees none")
        stream, pending = Stream(), len(requests)
        try:
            await self._call(self._admit, requests, stream)
            while pending:
                ended = await stream.get()
                pending -= len(ended)
                yield ended
        finally:
            if pending and self._thread is not None:
                self._thread.submit(self._obey, self._forsake, stream)

    async def abort(self, keys: Sequence[SampleKey]) -> None:
        await self._call(self._abort, frozenset(keys))

    async def pause(self) -> None:
        await self._call(self._set_paused, True)

    async def resume(self) -> None:
        await self._call(self._set_paused, False)

    async def load(self, manifest: WeightManifest) -> int:
        return await self._call(self._load, manifest)

    async def sleep(self) -> int:
        return await self._call(self._sleep)

    async def wake(self) -> None:
        await self._call(self._wake)

    async def pulse(self) -> Pulse:
        return Pulse(
            running=len(self._running),
            tokens=self.tokens_sampled,
            ended=self._ended,
            read=self._read,
            steps=self._steps,
            seconds=self._seconds,
            cached=self._cached,
        )

    async def close(self) -> None:
        if self._thread is None:
            return
        if self._failure is None:
            await self._call(self._close)
        if self._images is not None:
            await asyncio.to_thread(self._images.close)
        await asyncio.to_thread(self._thread.shutdown)
        self._thread = None

    async def _call(self, action: Callable[..., R], *arguments: Any) -> R:
        """Run `action` on the engine's thread, between two steps."""
        if self._thread is None:
            raise BackendError(f"{self._name} is not running: it was not started, or closed")
        future = self._thread.submit(self._obey, action, *arguments)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), PATIENCE)
        except TimeoutError:
            raise WaitTimeout(
                f"{self._name} did not come to {action.__name__.strip('_')} in {PATIENCE:.0f} s"
            ) from None

    # The engine's thread. Everything below runs on it, one thing at a time.

    def _obey(self, action: Callable[..., R], *arguments: Any) -> R:
        if self._failure is not None:
            raise self._failure
        try:
            return action(*arguments)
        finally:
            self._go_on()

    def _go_on(self) -> None:
        """Queue the next step, behind whatever was asked for in the meantime."""
        if len(self._running) > len(self._waiting) and not self._paused and not self._stepping:
            assert self._thread is not None
            self._stepping = True
            self._thread.submit(self._work)

    def _work(self) -> None:
        self._stepping = False
        if len(self._running) == len(self._waiting) or self._paused:
            return
        try:
            self._step()
        except Exception as error:
            self._fail("sampling", error)
        self._go_on()

    def _build(self) -> None:
        # Collecting garbage over and over is a third of what importing an engine costs, and finds none.
        gc.disable()
        try:
            module, name = ENGINES[self._engine_name].engine.split(":")
            build = getattr(importlib.import_module(module), name)
            gc.freeze()
            self._engine = build(**self._arguments)
            facts = served_facts(self._model, self._arguments["setting"], classifies=self.classifies)
            if facts.vision is not None:
                self._images = importlib.import_module(IMAGES).ImageQueue(self._model)
        except YattError:
            raise
        except Exception as error:
            raise BackendError(f"{self._name} cannot start: {type(error).__name__}: {error}") from error
        finally:
            gc.enable()

    def _admit(self, requests: Sequence[Request], stream: Stream) -> None:
        for last, request in zip((None, *requests), requests, strict=False):
            id, self._next_id = str(self._next_id), self._next_id + 1
            running = Running(request, stream, versions=[(0, self._version)])
            if last is None or not same_prompt(last, request):
                running.reads = len(request.tokens)
            if request.params.stop:
                running.stops = StopStrings(self._load_tokenizer(), request.tokens.tolist(), request.params.stop)
            self._running[id] = running
            if request.media:
                assert self._images is not None
                self._waiting.add(id)
                self._images.ask(request.media, partial(self._on_thread, self._begin, id))
            else:
                self._queue(id, request)

    def _on_thread(self, action: Callable[..., None], *arguments: Any) -> None:
        """Have `action` run on the engine's thread, later."""
        assert self._thread is not None
        self._thread.submit(self._obey, action, *arguments)

    def _begin(self, id: str, read: Future[list[Image]]) -> None:
        """Queue a request whose images are read, unless it was ended meanwhile."""
        if id not in self._waiting:
            return
        running = self._running[id]
        try:
            running.images = read.result()
        except BackendError as error:
            running.stream.put(BackendError(f"request {running.request.key}: {error}"))
            return  # its caller leaves the stream
        self._waiting.discard(id)
        self._queue(id, running.request, running.images)

    def _queue(self, id: str, request: Request, images: Sequence[Image] = ()) -> None:
        stops = (*self._stop_token_ids, *request.params.stop_token_ids)
        self._engine.add(id, request.tokens.tolist(), request.params, request.seed, stops, images)

    def _step(self) -> None:
        began = time.perf_counter()
        step = self._engine.step()
        self._steps += 1
        self._seconds += time.perf_counter() - began
        self._take(step.sampled)
        self._hand_over(step.read)

    def _take(self, sampled: Sequence[Sampled]) -> None:
        """Note what running requests were given, and answer those that have ended."""
        ended: list[tuple[str, Finish]] = []
        stopped: list[str] = []
        for id, tokens, logprobs, finish in sampled:
            running = self._running[id]
            if not running.tokens:
                self._read += running.reads
            self._cached += running.reads + len(running.tokens)
            running.tokens += tokens
            running.logprobs += logprobs
            self.tokens_sampled += len(tokens)
            if running.stops is not None and tokens and running.stops.found(tokens[-1]):
                if finish is None:
                    stopped.append(id)
                finish = "stop"
            if finish is not None:
                ended.append((id, finish))
        if stopped:
            self._engine.abort(stopped)
        if ended:
            self._ended += sum(self._running[id].request.key.uid >= 0 for id, _ in ended)  # a probe is no response
            self._answer(ended)

    def _hand_over(self, read: Sequence[Read]) -> None:
        """Answer the requests that a classifier has read; each counts as a token."""
        for id, _ in read:
            running = self._running[id]
            self._read += running.reads
            self._cached += running.reads
        self._ended += len(read)
        self.tokens_sampled += len(read)
        self._answer([(id, "stop") for id, _ in read], dict(read))

    def _answer(self, ended: Sequence[tuple[str, Finish]], logits: Mapping[str, float] | None = None) -> None:
        batches: dict[Stream, list[Completion]] = {}
        for id, finish in ended:
            running = self._running.pop(id)
            self._waiting.discard(id)
            completion = running.completion(finish, (logits or {}).get(id))
            batches.setdefault(running.stream, []).append(completion)
        for stream, batch in batches.items():
            stream.put(batch)

    def _end(self, ids: Sequence[str]) -> None:
        self._engine.abort([id for id in ids if id not in self._waiting])
        self._answer([(id, "aborted") for id in ids])

    def _abort(self, keys: frozenset[SampleKey]) -> None:
        self._end([id for id, running in self._running.items() if running.request.key in keys])

    def _forsake(self, stream: Stream) -> None:
        self._end([id for id, running in self._running.items() if running.stream is stream])

    def _set_paused(self, paused: bool) -> None:
        if self._asleep and not paused:
            raise BackendError("a sleeping generator cannot resume; wake it first")
        self._paused = paused

    def _load(self, manifest: WeightManifest) -> int:
        if not self._paused:
            raise BackendError("weights can only be loaded into a paused generator; pause it first")
        self._engine.check(manifest)
        try:
            self._engine.load(manifest)
        except Exception as error:  # the model may be half old, half new
            raise self._fail("loading weights", error) from error
        self._version = manifest.version
        for running in self._running.values():
            running.versions.append((len(running.tokens), self._version))
        return self._version

    def _sleep(self) -> int:
        self._paused = self._asleep = True
        return self._engine.sleep()

    def _wake(self) -> None:
        if self._asleep:
            self._engine.wake()
            self._asleep = False

    def _close(self) -> None:
        self._end(list(self._running))
        self._engine.close()

    def _fail(self, doing: str, error: Exception) -> BackendError:
        """Tell everyone who waits; the engine serves nobody any more."""
        failure = BackendError(f"{self._title} failed while {doing}: {type(error).__name__}: {error}")
        failure.__cause__ = error
        for stream in {running.stream for running in self._running.values()}:
            stream.put(failure)
        self._running.clear()
        self._waiting.clear()
        self._failure = failure
        return failure

    def _load_tokenizer(self) -> Tokenizer:
        if self._tokenizer is None:
            path = Path(self._model) / "tokenizer.json"
            if not path.is_file():
                raise ConfigError(f"rollout.stop needs a fast tokenizer, but {path} does not exist; use stop token ids")
            self._tokenizer = Tokenizer.from_file(str(path))
        return self._tokenizer


class SteppedClassifier(SteppedGenerator):
    """Implements `yatt.protocols.Generator` with a classifier of one label, to be routed, paused, put to sleep and
    woken like any other.

    A request is read, not gone on with. Its answer has no tokens, but the head's logit at the last token of the prompt
    as it is, without a sigmoid; finish "stop". Sampling settings and the seed change nothing.
    """

    classifies = True

    def _queue(self, id: str, request: Request, images: Sequence[Image] = ()) -> None:
        self._engine.classify(id, request.tokens.tolist())


def end_tokens(model: str) -> tuple[int, ...]:
    """The tokens that end a response of the model in this folder: see `Turn.stops`. Without a tokenizer, those that
    generation_config.json or config.json names."""
    return Turn(load_tokenizer(model)).stops if (Path(model) / "tokenizer.json").is_file() else named_ends(model)

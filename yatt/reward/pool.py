"""Reward functions in worker processes, each item under a time limit that the parent enforces with a kill."""

from __future__ import annotations

import asyncio
import contextlib
import pickle
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from subprocess import Popen
from typing import Any

from yatt.config.schema import RewardConfig
from yatt.errors import BackendError, ConfigError
from yatt.reward import wire
from yatt.reward.function import EMPTY, IMPORT_SECONDS, FunctionSpec, Item, absolute, check
from yatt.types import Score, Trajectory

START_ATTEMPTS = 3
MAX_CHUNK = 64
# Our own loop may have been busy while the reply came in: look once more before killing.
GRACE_SECONDS = 0.05
CLOSE_SECONDS = 1.0


def function_specs(config: RewardConfig) -> tuple[FunctionSpec, ...]:
    """The configured functions; the only one of `reward.function` has the key "reward"."""
    if config.function is not None and config.functions:
        raise ConfigError("reward.function and reward.functions are both set; keep one of them")
    if config.function is not None:
        return (FunctionSpec(key="reward", setting="reward.function", reference=absolute(config.function)),)
    if not config.functions:
        raise ConfigError("reward.function is not set; name FILE.py:NAME, package.module:NAME or a built-in reward")
    return tuple(
        FunctionSpec(
            key=key,
            setting=f"reward.functions.{key}.function",
            reference=absolute(one.function),
            weight=one.weight,
            arguments=one.arguments,
        )
        for key, one in config.functions.items()
    )


def check_reward(config: RewardConfig, probe: Item = EMPTY) -> None:
    """`check` all configured functions, with their arguments, in one process; `probe` is best a row of the data."""
    check(function_specs(config), probe, limit=config.timeout)


@dataclass(frozen=True, slots=True)
class _Job:
    frame: bytes
    score: asyncio.Future[Score]

    def resolve(self, score: Score) -> None:
        if not self.score.done():
            self.score.set_result(score)

    def fail(self, error: BackendError) -> None:
        if not self.score.done():
            self.score.set_exception(error)


class FunctionScorer:
    """A Scorer of the configured functions. `start` it first; several `score` calls may run at once.

    An item that passes `reward.timeout` seconds is "timed_out" and its worker is killed and replaced; one whose worker
    dies is "failed"; the others go on. Raises BackendError once workers no longer start.
    """

    def __init__(self, config: RewardConfig) -> None:
        specs = function_specs(config)
        self._limit = config.timeout
        self._workers = [_Worker(specs, config.timeout) for _ in range(config.workers)]
        self._queue: deque[_Job] = deque()
        self._arrived = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._broken: BackendError | None = BackendError("the reward workers are not started")

    async def start(self) -> None:
        """Returns once every worker has imported the functions. Raises BackendError naming them."""
        try:
            await asyncio.gather(*(worker.start() for worker in self._workers))
        except BaseException:
            await self.close()
            raise
        self._broken = None
        self._tasks = [asyncio.create_task(self._serve(worker)) for worker in self._workers]

    async def score(self, trajectories: Sequence[Trajectory]) -> list[Score]:
        """Waits for the workers: for each item at most `reward.timeout` after it was begun."""
        if self._broken is not None:
            raise self._broken
        loop = asyncio.get_running_loop()
        jobs = [_Job(wire.encode(tuple(_item(t))), loop.create_future()) for t in trajectories]
        self._queue.extend(jobs)
        self._arrived.set()
        return await asyncio.gather(*(job.score for job in jobs))

    async def close(self) -> None:
        """Give idle workers a second to end by themselves, then kill every one with all it started."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        self._break(BackendError("the reward workers are closed"))
        await asyncio.gather(*(worker.close() for worker in self._workers))

    async def _serve(self, worker: _Worker) -> None:
        """Feed one worker chunks of the queue; what it leaves undone goes back to the front."""
        try:
            while True:
                chunk = await self._take()
                try:
                    lost = await worker.judge(chunk)
                finally:
                    self._queue.extendleft(reversed(chunk))
                    self._arrived.set()
                if lost:
                    await worker.start()
        except Exception as error:
            self._break(error if isinstance(error, BackendError) else BackendError(f"reward worker: {error!r}"))

    async def _take(self) -> deque[_Job]:
        while not self._queue:
            self._arrived.clear()
            await self._arrived.wait()
        # Ever smaller chunks: workers end together, whatever the items cost.
        size = min(MAX_CHUNK, -(-len(self._queue) // (2 * len(self._workers))))
        return deque(self._queue.popleft() for _ in range(size))

    def _break(self, error: BackendError) -> None:
        self._broken = error
        while self._queue:
            self._queue.popleft().fail(error)


class _Worker:
    """One worker process and its successors."""

    def __init__(self, specs: tuple[FunctionSpec, ...], limit: float) -> None:
        self._specs = specs
        self._limit = limit
        self._process: Popen[bytes] | None = None

    async def start(self) -> None:
        """A process that has imported the functions. Raises BackendError where it cannot, or dies again and again."""
        detail = ""
        for _ in range(START_ATTEMPTS):
            self._process, connection = wire.spawn((self._specs, None))
            self._reader, self._writer = await asyncio.open_unix_connection(sock=connection)
            try:
                detail = await self._reply(IMPORT_SECONDS)
            except TimeoutError:
                await self._kill()
                detail = f"not ready after {IMPORT_SECONDS:g} s"
            except EOFError:
                detail = f"died while starting ({await self._kill()})"
            else:
                if detail:
                    raise BackendError(detail)
                return
        raise BackendError(f"reward worker of {', '.join(map(str, self._specs))}: {detail}, {START_ATTEMPTS} times")

    async def judge(self, jobs: deque[_Job]) -> bool:
        """Take jobs off the left as they are judged. True: the process is lost, with the job it was at judged too."""
        with contextlib.suppress(ConnectionError):
            self._writer.write(b"".join(job.frame for job in jobs))
        while jobs:
            try:
                status, value, parts, detail = await self._reply(self._limit)
            except TimeoutError:
                await self._kill()
                score = Score(status="timed_out", detail=f"no result after {self._limit:g} s; its process was killed")
            except EOFError:
                score = Score(status="failed", detail=f"the reward process died ({await self._kill()})")
            else:
                jobs.popleft().resolve(Score(status=status, value=value, parts=parts, detail=detail))
                continue
            jobs.popleft().resolve(score)
            return True
        return False

    async def close(self) -> None:
        if self._process is None:
            return
        with contextlib.suppress(OSError, RuntimeError, TimeoutError):
            self._writer.write_eof()
            await asyncio.wait_for(self._reader.read(), CLOSE_SECONDS)
        await self._kill()

    async def _reply(self, limit: float) -> Any:
        """The next message. Raises TimeoutError after `limit` seconds, EOFError where the process has died."""
        reading = asyncio.ensure_future(self._read())
        try:
            await asyncio.wait((reading,), timeout=limit)
            if not reading.done():
                await asyncio.wait((reading,), timeout=GRACE_SECONDS)
            if not reading.done():
                raise TimeoutError
            return reading.result()
        finally:
            reading.cancel()

    async def _read(self) -> Any:
        try:
            size = int.from_bytes(await self._reader.readexactly(wire.HEADER_BYTES), "little")
            return pickle.loads(await self._reader.readexactly(size))
        except ConnectionError as error:
            raise EOFError from error

    async def _kill(self) -> str:
        process, self._process = self._process, None
        self._writer.close()
        return await asyncio.to_thread(wire.end, process) if process else ""


def _item(trajectory: Trajectory) -> Item:
    prompt = trajectory.prompt
    return Item(prompt.text, trajectory.text, prompt.answer, dict(prompt.metadata))

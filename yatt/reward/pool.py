"""Reward functions in worker processes, each item under a time limit that the parent enforces with a kill."""

from __future__ import annotations

import asyncio
import json
import pickle
import secrets
import socket
import subprocess
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any

from yatt.config.schema import RewardConfig
from yatt.errors import BackendError, ConfigError
from yatt.reward.channel import TOKEN_BYTES, Channel, Rubbish
from yatt.reward.function import FunctionSpec, Item
from yatt.reward.worker import Reply
from yatt.types import Score, Trajectory
from yatt.user_processes import ask_to_end, end, ending, spawn

IMPORT_SECONDS = 180.0
START_ATTEMPTS = 3
END_SECONDS = 10.0
GRACE_SECONDS = 1.0
WROTE = "it wrote into its worker's socket; let it write to files that it opened itself"

# What rewards are tried on before a run, where the caller has no row at hand.
EMPTY = Item(prompt="", response="", answer="", metadata={})


def function_specs(config: RewardConfig) -> list[FunctionSpec]:
    """The configured functions; the only one of `reward.function` has the key "reward"."""
    if config.function is not None and config.functions:
        raise ConfigError("reward.function and reward.functions are both set; keep one of them")
    if config.function is not None:
        return [FunctionSpec(key="reward", setting="reward.function", reference=config.function)]
    if not config.functions:
        raise ConfigError("reward.function is not set; name FILE.py:NAME, package.module:NAME or a built-in reward")
    return [
        FunctionSpec(
            key=key,
            setting=f"reward.functions.{key}.function",
            reference=one.function,
            weight=one.weight,
            arguments=one.arguments,
        )
        for key, one in config.functions.items()
    ]


def check_reward(config: RewardConfig, probe: Item = EMPTY) -> None:
    """Call each configured function once, in a process of its own, on `probe`, best a row of the data.

    Raises ConfigError naming what is wrong: an import that fails or takes over a minute, a signature that cannot be
    called, or a result that is no reward. An error or a hang on the probe passes: real responses may well fare better.
    """
    for spec in function_specs(config):
        worker = Worker([spec], config.timeout)
        try:
            worker.start()
            status, _, _, detail = worker.judge(pickle.dumps(probe))
        except BackendError as error:
            raise ConfigError(str(error)) from None
        finally:
            worker.end()
        if status == "no reward":
            raise ConfigError(f"{spec}: {detail}")


class FunctionScorer:
    """A Scorer of the configured functions. `start` it first; several `score` calls may run at once.

    An item that passes `reward.timeout` seconds is "timed_out" and its worker is killed and replaced; one whose worker
    dies is "failed"; the others go on. Raises BackendError once workers no longer start.
    """

    def __init__(self, config: RewardConfig) -> None:
        specs = function_specs(config)
        self._workers = [Worker(specs, config.timeout) for _ in range(config.workers)]
        self._idle: SimpleQueue[Worker] = SimpleQueue()
        self._threads = ThreadPoolExecutor(config.workers, thread_name_prefix="reward")
        self._broken: BackendError | None = BackendError("the reward workers are not started")

    async def start(self) -> None:
        """Returns once every worker has imported the functions. Raises BackendError naming them."""
        run = asyncio.get_running_loop().run_in_executor
        try:
            await asyncio.gather(*(run(self._threads, worker.start) for worker in self._workers))
        except BaseException:
            await self.close()
            raise
        for worker in self._workers:
            self._idle.put(worker)
        self._broken = None

    async def score(self, trajectories: Sequence[Trajectory]) -> list[Score]:
        """Waits for the workers: for each item at most `reward.timeout` after it was begun."""
        if self._broken is not None:
            raise self._broken
        items = (Item(t.prompt.text, t.text, t.prompt.answer, dict(t.prompt.metadata)) for t in trajectories)
        run = asyncio.get_running_loop().run_in_executor
        return await asyncio.gather(*(run(self._threads, self._judge, pickle.dumps(item)) for item in items))

    async def close(self) -> None:
        """Kill every worker with all it started; what is under way fails."""
        self._broken = BackendError("the reward workers are closed")
        for worker in self._workers:
            worker.kill()
        await asyncio.to_thread(self._threads.shutdown)
        for worker in self._workers:
            worker.end()

    def _judge(self, item: bytes) -> Score:
        worker = self._idle.get()
        try:
            if self._broken is not None:
                raise self._broken
            status, value, parts, detail = worker.judge(item)
            if self._broken is not None:
                raise self._broken
        except BackendError as error:
            self._broken = error
            raise
        finally:
            self._idle.put(worker)
        return Score(status="failed" if status == "no reward" else status, value=value, parts=parts, detail=detail)


class Worker:
    """One worker process and its successors. One thread at a time; only `kill` may come from another."""

    def __init__(self, specs: Sequence[FunctionSpec], limit: float) -> None:
        self._specs = specs
        self._limit = limit
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: Channel

    def start(self) -> None:
        """A process that has imported the functions. Raises BackendError where it cannot, or dies again and again."""
        names = ", ".join(map(str, self._specs))
        how = ""
        for _ in range(START_ATTEMPTS):
            self._spawn()
            try:
                complaint = self._ask(pickle.dumps(self._specs), IMPORT_SECONDS)
            except TimeoutError:
                complaint = f"{names} does not import within {IMPORT_SECONDS:g} s"
            except Rubbish:
                complaint = f"{names} does not import: {WROTE}"
            except (EOFError, OSError):
                how = self.end(grace=GRACE_SECONDS)
                continue
            if complaint:
                self.end()
                raise BackendError(complaint)
            return
        raise BackendError(f"{names}: its process died while starting ({how}), {START_ATTEMPTS} times")

    def judge(self, item: bytes) -> Reply:
        """The functions' reply to a pickled item, within the limit. Time in which they import modules does not count,
        up to IMPORT_SECONDS. Raises BackendError where a lost process cannot be replaced."""
        if self._process is not None and not self._channel.quiet():  # something of the last item's came, or it died
            self.end()
        if self._process is None:
            self.start()
        try:
            status, value, parts, detail = self._ask(item, self._limit)
            return status, value, parts, detail
        except TimeoutError:
            self.end()
            return "timed_out", None, {}, f"no result after {self._limit:g} s; its process was killed"
        except Rubbish:
            self.end()
            return "failed", None, {}, f"{WROTE}; its process was killed"
        except (EOFError, OSError):
            return "failed", None, {}, f"the reward process died ({self.end(grace=GRACE_SECONDS)})"

    def _ask(self, question: bytes, limit: float) -> Any:
        """The worker's answer. Raises what `Channel.answer` does."""
        token, spare = secrets.token_bytes(TOKEN_BYTES), IMPORT_SECONDS
        deadline = time.monotonic() + limit
        self._channel.send(token, question, deadline)
        left = began = 0.0
        while True:
            answer = json.loads(self._channel.answer(token, deadline))
            if not isinstance(answer, bool):
                return answer
            now = time.monotonic()
            if answer:  # an import begins
                left, began, deadline = deadline - now, now, now + spare
            else:
                spare, deadline = spare - (now - began), now + left

    def kill(self) -> None:
        """Let the process end with all it started; `end` waits for that."""
        if (process := self._process) is not None:
            ask_to_end(process)

    def end(self, grace: float = 0.0) -> str:
        """End the process, dead or alive, with all it started, and say how it ended where it did so by itself within
        `grace` seconds. Waits at most END_SECONDS more, then kills what is in its group."""
        if self._process is None:
            return ""
        how = ending(self._process, grace)
        end(self._process, END_SECONDS)
        self._channel.close()
        self._process = None
        return how or "its socket was closed"

    def _spawn(self) -> None:
        ours, theirs = socket.socketpair()
        self._channel = Channel(ours)
        with theirs:
            self._process = spawn("yatt.reward.worker:main", theirs)

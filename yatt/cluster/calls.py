"""Waiting for actors: every wait has a deadline, and an error that names the actors that did not answer."""

from __future__ import annotations

import asyncio
import itertools
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ray import ObjectRef
from ray.exceptions import RayActorError, RayTaskError

from yatt.errors import BackendError, ProcessDied, WaitTimeout, YattError

NEWS_SECONDS = 2.0


class Waits:
    """What this process waits for, for whoever asks why nothing goes on."""

    def __init__(self) -> None:
        self._waits: dict[int, tuple[float, str, list[str]]] = {}
        self._numbers = itertools.count()

    @contextmanager
    def on(self, doing: str, names: list[str]) -> Iterator[None]:
        """Meanwhile, it waits for `names`, from which it may take those that have answered."""
        number = next(self._numbers)
        self._waits[number] = time.monotonic(), doing, names
        try:
            yield
        finally:
            del self._waits[number]

    def told(self) -> list[str]:
        """In words, the longest first."""
        now = time.monotonic()
        return [f"{', '.join(names)} ({doing}, {now - since:.0f} s)" for since, doing, names in self._waits.values()]


WAITS = Waits()


async def wait_all(doing: str, calls: Mapping[str, ObjectRef[Any]], timeout: float) -> dict[str, Any]:
    """The answers of all calls, by name. The first failure is raised at once, but a death shortly after it is told in
    its place: it is why the others failed. Past `timeout` seconds WaitTimeout names those who have not answered."""
    futures = {asyncio.ensure_future(_answer(ref)): name for name, ref in calls.items()}
    late = list(calls)
    for future in futures:
        future.add_done_callback(lambda done: late.remove(futures[done]))
    try:
        with WAITS.on(doing, late):
            done, pending = await asyncio.wait(futures, timeout=timeout, return_when=asyncio.FIRST_EXCEPTION)
        if pending and any(future.exception() for future in done):
            done = (await asyncio.wait(futures, timeout=NEWS_SECONDS))[0]
        errors = [explain(futures[future], doing, future.exception()) for future in done if future.exception()]
        if errors:
            raise next((error for error in errors if isinstance(error, ProcessDied)), errors[0])
        if pending:
            names = ", ".join(futures[f] for f in pending)
            raise WaitTimeout(f"{doing}: waited {timeout:g} s for {names}")
        return {name: future.result() for future, name in futures.items()}
    finally:
        for future in futures:
            future.cancel()


async def wait_one(doing: str, name: str, call: ObjectRef[Any], timeout: float) -> Any:
    """`wait_all` for a single call."""
    return (await wait_all(doing, {name: call}, timeout))[name]


async def _answer(ref: ObjectRef[Any]) -> Any:
    return await ref


def explain(name: str, doing: str, error: BaseException | None) -> BaseException:
    """The error as the user should read it: a YattError as it is, anything else with the actor's name and last line."""
    cause = getattr(error, "cause", None) if isinstance(error, RayTaskError) else error
    if isinstance(cause, BaseExceptionGroup):
        cause = first_error(cause)
    if isinstance(cause, YattError):
        return cause
    if isinstance(cause, RayActorError):
        words, log = str(cause).strip().splitlines(), f"log/{name.replace(' ', '-')}.log"
        begun = f"{doing}: " if doing else ""
        if "creation task" in words[0]:
            return ProcessDied(f"{begun}{name} did not come up: {words[-1].strip()}")
        return ProcessDied(f"{begun}{name} died; its last words are in {log} of the run's folder")
    text = BackendError(f"{doing}: {name} failed: {_last_line(cause)}")
    text.__cause__ = error
    return text


def first_error(group: BaseExceptionGroup) -> BaseException:
    """The error that a task group died of: the first leaf, a YattError preferred."""
    leaves: list[BaseException] = []
    stack: list[BaseException] = [group]
    while stack:
        error = stack.pop()
        if isinstance(error, BaseExceptionGroup):
            stack.extend(reversed(error.exceptions))
        else:
            leaves.append(error)
    return next((e for e in leaves if isinstance(e, YattError)), leaves[0])


def _last_line(error: BaseException | None) -> str:
    return "".join(traceback.format_exception_only(error)).strip().splitlines()[0] if error else "no answer"

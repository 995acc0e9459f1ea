"""A run from its first step to its last: steps, evaluations, checkpoints, and a clean stop. Control only."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Protocol

from yatt.config.schema import Config
from yatt.errors import ProcessDied
from yatt.protocols import Clock
from yatt.reports import EvaluationReport, PhaseSpan, StepReport


class Crew(Protocol):
    """All controllers and ranks, seen from the driver. What comes back is numbers."""

    async def step(self, step: int) -> StepReport: ...

    async def evaluate(self, step: int) -> EvaluationReport: ...

    async def save(self, step: int, go_on: Callable[[], object] = bool) -> None:
        """Write a checkpoint, complete or not at all. Calls `go_on` once the next step may begin, at the latest when it
        returns. Raises OSError or YattError when it cannot."""
        ...

    async def recover(self, error: ProcessDied) -> int:
        """Bring up anew what died and go back to the last good checkpoint; returns its step, 0 for the start. Raises
        the last death where it cannot, or not any more."""
        ...


class Journal(Protocol):
    """Where the run's numbers go."""

    def start(self, evaluation: EvaluationReport, spans: tuple[PhaseSpan, ...]) -> None: ...

    def step(self, report: StepReport, evaluation: EvaluationReport | None, spans: tuple[PhaseSpan, ...]) -> None: ...

    def recovered(self, step: int) -> None:
        """The run goes on from the end of `step`: what came after is done again."""
        ...

    def saved(self, step: int) -> None: ...

    def save_failed(self, step: int, error: Exception) -> None: ...


class Supervisor:
    """Runs steps `first` to `train.steps`. Ask it to `stop` and it ends after the step under way, with a checkpoint."""

    def __init__(self, config: Config, crew: Crew, journal: Journal, clock: Clock) -> None:
        self._config = config
        self._crew = crew
        self._journal = journal
        self._clock = clock
        self._running = self._stopping = self._asked = False
        self._saving: tuple[int, asyncio.Task[None]] | None = None
        self._saved_at = 0.0
        self._spans: list[PhaseSpan] = []

    def stop(self) -> bool:
        """False where no step is under way to wait for, or this was asked before."""
        waits, self._stopping = self._running and not self._stopping, True
        return waits

    def save_soon(self) -> None:
        """Have a checkpoint after the step under way, or the next one."""
        self._asked = True

    async def run(self, first: int, finish: Callable[[], Awaitable[object]] | None = None) -> int:
        """Returns the last step done; `first - 1` when there was nothing left to do. After `train.steps`, does `finish`
        with the ranks. Waits for the checkpoint that is being written, however it ends; where it is cancelled, there
        will be none of it."""
        try:
            return await self._run(first, finish)
        except asyncio.CancelledError:
            if self._saving is not None:
                self._saving[1].cancel()
            raise
        finally:
            with suppress(ProcessDied):  # what ended the run is told
                await self._written()

    async def _run(self, first: int, finish: Callable[[], Awaitable[object]] | None) -> int:
        last, done, evaluates = self._config.train.steps, first - 1, first == 1 and self._evaluates
        while True:
            try:
                if evaluates:
                    evaluation = await self._timed("evaluate", self._crew.evaluate, 0)
                    self._journal.start(evaluation, self._take_spans())
                    evaluates = False
                if not self._running:
                    self._running, self._saved_at = True, self._clock.now()
                while done < last and not self._stopping:
                    await self._step(done + 1, last)
                    done += 1
                if done == last and finish is not None:
                    await finish()
                return done
            except ProcessDied as error:
                with suppress(ProcessDied):
                    await self._written()
                done = await self._timed("recover", self._crew.recover, error)
                self._journal.recovered(done)

    async def _step(self, step: int, last: int) -> None:
        """A step, and the evaluation and the checkpoint due after it."""
        if self._saving is not None and self._saving[1].done():
            await self._written()
        report = await self._crew.step(step)
        evaluate = self._evaluates and (step == last or _due(step, self._config.evaluate.every))
        evaluation = await self._timed("evaluate", self._crew.evaluate, step) if evaluate else None
        self._journal.step(report, evaluation, self._take_spans())
        if step == last or self._stopping or self._asked or self._save_due(step):
            await self._save(step)
        if step == last or self._stopping:
            await self._written()

    def _save_due(self, step: int) -> bool:
        every, minutes = self._config.checkpoint.every, self._config.checkpoint.minutes
        return _due(step, every) or (minutes is not None and self._clock.now() - self._saved_at >= 60 * minutes)

    @property
    def _evaluates(self) -> bool:
        held_out = self._config.evaluate
        return held_out.path is not None or held_out.size is not None

    async def _save(self, step: int) -> None:
        """Begin a checkpoint, after the end of the one before; wait until the next step may begin."""
        await self._written()
        self._asked, self._saved_at = False, self._clock.now()
        await self._timed("checkpoint", self._begin, step)
        if self._saving is not None and self._saving[1].done():
            await self._written()

    async def _begin(self, step: int) -> None:
        go_on = asyncio.Event()
        saving = asyncio.create_task(self._crew.save(step, go_on.set))
        saving.add_done_callback(lambda task: go_on.set())
        self._saving = (step, saving)
        await go_on.wait()

    async def _written(self) -> None:
        """Wait for the checkpoint that is being written, and say how it went. Raises ProcessDied."""
        if self._saving is None:
            return
        (step, saving), self._saving = self._saving, None
        try:
            await saving
        except (ProcessDied, asyncio.CancelledError):
            saving.cancel()
            raise
        except Exception as error:
            self._journal.save_failed(step, error)
        else:
            self._journal.saved(step)

    async def _timed(self, name: str, call: Callable[[Any], Any], argument: Any) -> Any:
        start = self._clock.now()
        result = await call(argument)
        self._spans.append(PhaseSpan(name=name, actor="driver", start=start, stop=self._clock.now()))
        return result

    def _take_spans(self) -> tuple[PhaseSpan, ...]:
        spans, self._spans = tuple(self._spans), []
        return spans


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0

"""A run from its first step to its last: steps, evaluations, checkpoints, and a clean stop. Control only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from yatt.config.schema import Config
from yatt.errors import ProcessDied
from yatt.protocols import Clock
from yatt.reports import EvaluationReport, PhaseSpan, StepReport


class Crew(Protocol):
    """All controllers and ranks, seen from the driver. What comes back is numbers."""

    async def step(self, step: int) -> StepReport: ...

    async def evaluate(self, step: int) -> EvaluationReport: ...

    async def save(self, step: int) -> None:
        """Write a checkpoint, complete or not at all. Raises OSError or YattError when it cannot."""
        ...

    async def recover(self, error: ProcessDied) -> int:
        """Bring up anew what died and go back to the last complete checkpoint; returns its step, 0 for the start.
        Raises `error` where the runtime cannot."""
        ...


class Journal(Protocol):
    """Where the run's numbers go."""

    def start(self, evaluation: EvaluationReport, spans: tuple[PhaseSpan, ...]) -> None: ...

    def step(self, report: StepReport, evaluation: EvaluationReport | None, spans: tuple[PhaseSpan, ...]) -> None: ...

    def saved(self, step: int) -> None: ...

    def save_failed(self, step: int, error: Exception) -> None: ...


class Supervisor:
    """Runs steps `first` to `train.steps`. Ask it to `stop` and it ends after the step under way, with a checkpoint."""

    def __init__(self, config: Config, crew: Crew, journal: Journal, clock: Clock) -> None:
        self._config = config
        self._crew = crew
        self._journal = journal
        self._clock = clock
        self._running = self._stopping = False
        self._spans: list[PhaseSpan] = []

    def stop(self) -> bool:
        """False where no step is under way to wait for, or this was asked before."""
        waits, self._stopping = self._running and not self._stopping, True
        return waits

    async def run(self, first: int) -> int:
        """Returns the last step done; `first - 1` when there was nothing left to do."""
        last = self._config.train.steps
        if first == 1 and self._evaluates:
            self._journal.start(await self._timed("evaluate", self._crew.evaluate, 0), self._take_spans())
        self._running = True
        step = first
        while step <= last:
            try:
                await self._step(step, last)
            except ProcessDied as error:
                step = await self._crew.recover(error) + 1
                continue
            if self._stopping:
                return step
            step += 1
        return step - 1

    async def _step(self, step: int, last: int) -> None:
        """A step, and the evaluation and the checkpoint due after it."""
        report = await self._crew.step(step)
        evaluate = self._evaluates and (step == last or _due(step, self._config.evaluate.every))
        evaluation = await self._timed("evaluate", self._crew.evaluate, step) if evaluate else None
        self._journal.step(report, evaluation, self._take_spans())
        if step == last or self._stopping or _due(step, self._config.checkpoint.every):
            await self._save(step)

    @property
    def _evaluates(self) -> bool:
        held_out = self._config.evaluate
        return held_out.path is not None or held_out.size is not None

    async def _save(self, step: int) -> None:
        try:
            await self._timed("checkpoint", self._crew.save, step)
        except ProcessDied:
            raise
        except Exception as error:
            self._journal.save_failed(step, error)
        else:
            self._journal.saved(step)

    async def _timed(self, name: str, call: Callable[[int], Any], step: int) -> Any:
        start = self._clock.now()
        result = await call(step)
        self._spans.append(PhaseSpan(name=name, actor="driver", start=start, stop=self._clock.now()))
        return result

    def _take_spans(self) -> tuple[PhaseSpan, ...]:
        spans, self._spans = tuple(self._spans), []
        return spans


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0

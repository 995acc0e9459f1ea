"""`yatt train`: a run from its configuration to its report."""

from __future__ import annotations

import asyncio
import math
import os
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

from transformers import AutoConfig

from yatt.cluster.clock import WallClock
from yatt.cluster.crew import ClusterCrew
from yatt.cluster.session import ray_session
from yatt.config.load import save_config
from yatt.config.models import any_family
from yatt.config.schema import Config
from yatt.config.secrets import masked
from yatt.data.check import check_data, check_scoring
from yatt.diagnosis import Diagnosis, unscored
from yatt.errors import BackendError, ProcessDied, RunEnded, WaitTimeout
from yatt.faces.card import record_command, write_card
from yatt.faces.checkpoints import Checkpoints, Resume, in_thread
from yatt.faces.command import command
from yatt.faces.contents import contents
from yatt.faces.given import copy, kept
from yatt.faces.metrics import first_row, metrics_row
from yatt.faces.progress import Progress
from yatt.faces.report import write_report
from yatt.faces.rundir import RunDirectory
from yatt.faces.sessions import memory_bytes, session
from yatt.faces.start import ready
from yatt.faces.timeline import mark, mark_incident
from yatt.faces.trackers import Trackers
from yatt.reports import EvaluationReport, Incident, PhaseSpan, StepReport
from yatt.supervisor import Supervisor
from yatt.training.identity import identity, transformers_identity, verify
from yatt.training.meeting import reserve_port


def train(config: Config, *, overwrite: bool = False, began: float | None = None) -> int:
    """Run `config`; returns the exit status. With `overwrite`, the run that its folder holds is removed first. What the
    run takes to start is counted from `began`, in seconds since the epoch; from now on when unset. Raises YattError for
    whatever the user should read."""
    began = began or time.time()
    warnings = check_data(config)
    check_scoring(config)
    reserve_port().close()
    run = ready(config, overwrite=overwrite)
    with run.lock():
        ready(config, overwrite=overwrite)  # asked again: another process may have had the folder
        if overwrite:
            run.clear()
        read = contents(config)  # before what was given is where the config then says
        config, moves = kept(config, run.given)
        checkpoints = Checkpoints(run, config)
        checkpoints.contents = read
        checkpoints.warn = warnings.append
        fetched = checkpoints.fetch()
        resume, passed = choice = checkpoints.choose()
        if resume:
            hf = AutoConfig.from_pretrained(config.model.path, local_files_only=True)
            dtype, lora = config.model.dtype, config.train.lora
            verify(
                resume.trainer, transformers_identity(hf, dtype) if any_family(config) else identity(hf, dtype, lora)
            )
            resume.check(config, checkpoints.contents)
        run.create()
        copy(moves)
        checkpoints.sweep(passed)
        run.rewind(resume.step if resume else -1)
        save_config(config, run.config)
        record_command(run)
        kind: Literal["rl", "offline"] = "rl" if config.algorithm.recipe.reinforces else "offline"
        with Progress(config.train.steps, kind) as progress:
            checkpoints.warn = progress.warn
            if fetched is not None:
                progress.note(f"{fetched} was fetched from {config.checkpoint.remote}")
            for warning in (*warnings, *choice.lines):
                progress.warn(warning)
            try:
                return asyncio.run(_train(config, run, checkpoints, resume, progress, began))
            except asyncio.CancelledError:
                write_report(run.path)
                return 130
            except RunEnded:
                write_report(run.path)
                raise
            except (BackendError, WaitTimeout):
                write_report(run.path)
                if run.latest_checkpoint():
                    progress.note(f"go on with   {command('train', run.config, 'resume=auto')}")
                raise


async def _train(
    config: Config,
    run: RunDirectory,
    checkpoints: Checkpoints,
    resume: Resume | None,
    progress: Progress,
    began: float,
) -> int:
    first = resume.step + 1 if resume else 1
    if first > config.train.steps:
        progress.note(f"{run.path}: step {first - 1} is done already, train.steps={config.train.steps}; nothing to do")
        return 0
    journal = RunJournal(config, run, progress)
    with ray_session(config.cluster):
        crew = CheckpointingCrew(config, run.path, progress.phase, checkpoints, journal.incident)
        supervisor = Supervisor(config, crew, journal, WallClock())
        journal.crew, journal.stop = crew, supervisor.stop
        try:
            with interruptible(supervisor.stop, supervisor.save_soon, progress.note):
                await crew.start(model=config.model.path, train=True, generate=config.algorithm.recipe.reinforces)
                kinds = Counter(slot.device for slot in crew.slots)
                devices = [f"{n} slot{'s' * (n > 1)} on {kind}" for kind, n in kinds.items()]
                run.append_session(session(first=first, seconds=time.time() - began, devices=devices))
                if config.resume == "auto" and not resume:
                    progress.note("no complete checkpoint to go on from: beginning at step 1")
                if resume:
                    if resume.begun(config)[1] != resume.controllers and resume.carried():
                        progress.note(
                            f"{len(resume.carried())} groups are drawn anew, under the settings as they are now"
                        )
                    await crew.begin(resume)
                    progress.note(f"resumed after step {resume.step}")
                finish = partial(export_model, crew, run, config) if config.checkpoint.export else None
                last = await supervisor.run(first, finish)
                journal.spans(last, await crew.take_spans())
                await checkpoints.copied()
        finally:
            await crew.close()
            journal.close()
    report = write_report(run.path)
    progress.finish(summary(config, run, last, report))
    if journal.ending is not None:
        raise RunEnded(journal.ending)
    if last < config.train.steps:
        return 130
    return 0 if saved(run, last) else 1


def saved(run: RunDirectory, step: int) -> bool:
    """Whether the step's checkpoint is there, complete."""
    checkpoint = run.latest_checkpoint()
    return checkpoint is not None and checkpoint.name == f"step-{step}"


def summary(config: Config, run: RunDirectory, last: int, report: Path) -> list[str]:
    """Where things are, and what to do next."""
    lines = [f"report       {report}"]
    checkpoint = run.latest_checkpoint()
    if checkpoint:
        lines.append(f"checkpoint   {checkpoint}")
    if not saved(run, last):
        lines.append(f"NOT SAVED    step {last}; mend what the warning says, then go on")
    if config.checkpoint.export and last == config.train.steps:
        lines.append(f"model        {run.path / 'model'}")
    if last < config.train.steps or not saved(run, last):
        lines.append(f"go on with   {command('train', run.config, 'resume=auto')}")
    elif checkpoint:
        lines.append(f"next         {command('export', checkpoint, 'OUT')}")
    return lines


async def export_model(crew: ClusterCrew, run: RunDirectory, config: Config) -> None:
    """Write the policy as RUN/model, aside first."""
    aside = run.path / ".model.part"
    shutil.rmtree(aside, ignore_errors=True)
    await crew.trainer.on_all("save_folder", str(aside.absolute()))
    write_card(aside, config, run.path, config.train.steps)
    shutil.rmtree(run.path / "model", ignore_errors=True)
    aside.rename(run.path / "model")


MEMORY_SECONDS = 10.0
"""How often it is asked at most how much memory a run has."""
MOVES_SHOWN = 4
"""Decisions of one step that the terminal shows."""


class CheckpointingCrew(ClusterCrew):
    """The cluster's crew, with the run's checkpoints."""

    def __init__(
        self,
        config: Config,
        run_path: Path,
        on_phase: Callable[[str, str], None],
        checkpoints: Checkpoints,
        tell: Callable[[Incident], object] = bool,
    ) -> None:
        super().__init__(config, run_path, on_phase, tell=tell)
        self._checkpoints = checkpoints
        self._begun: Resume | None = None

    async def begin(self, resume: Resume) -> None:
        """Begin where a checkpoint ends."""
        self._begun = resume
        await self._load(resume)

    async def _load(self, resume: Resume) -> None:
        state, controllers = resume.begun(self._config)
        await self.restore(resume.trainer, controllers, state)

    async def go_back(self) -> int:
        """To the newest good checkpoint of this run, else to where it began."""
        resume = await in_thread(self._checkpoints.newest) or self._begun
        if resume is None:
            return await super().go_back()
        await self._load(resume)
        return resume.step

    async def save(self, step: int, go_on: Callable[[], object] = bool) -> None:
        try:
            await self._checkpoints.save(step, partial(self.write_state, go_on=go_on))
        except ProcessDied:
            raise
        except Exception:
            await self.roll_call()  # a rank that the save has killed: what failed first was whoever waited for it
            raise


class RunJournal:
    """Numbers of the run, to the run folder, the trackers and the terminal."""

    def __init__(self, config: Config, run: RunDirectory, progress: Progress) -> None:
        self._config = config
        self._run = run
        self._progress = progress
        self._trackers = Trackers(
            config.log.trackers, run.path, masked(config.model_dump(mode="json")), warn=progress.warn
        )
        self.crew: ClusterCrew | None = None
        self.stop: Callable[[], object] = bool
        self.ending: str | None = None  # why the run has to end after the step under way
        self._diagnosis = Diagnosis(config)
        self._incidents: list[Incident] = []
        self._weighed = -math.inf
        self._splits: list[Mapping[str, int]] = []

    def start(self, evaluation: EvaluationReport, spans: tuple[PhaseSpan, ...]) -> None:
        controllers = self.crew.controllers if self.crew else 0
        phases = {span.name: span.stop - span.start for span in spans}
        if warning := unscored(0, evaluation):
            self._progress.warn(warning)
        self._append(first_row(evaluation, controllers=controllers, phases=phases), spans)

    def step(self, report: StepReport, evaluation: EvaluationReport | None, spans: tuple[PhaseSpan, ...]) -> None:
        for line in self._moves(report):
            self._progress.detail(line)
        seen = self._diagnosis.look(report)
        warnings = [*filter(None, (*seen.warnings, unscored(report.step, evaluation)))]
        for warning in warnings:
            self._progress.warn(warning)
        payload = self.crew.payload if self.crew else 0
        said = [*warnings, *filter(None, (seen.idle, seen.broken))]
        incidents, self._incidents = self._incidents, []
        row = metrics_row(
            report, evaluation=evaluation, driver_payload_bytes=payload, warnings=said, incidents=incidents
        )
        marks = (*map(mark, report.decisions), *map(mark_incident, incidents))
        self._append(row, (*report.spans, *spans, *marks))
        if seen.broken is not None:
            raise RunEnded(seen.broken)
        if seen.idle is not None:
            self.ending = seen.idle
            self.stop()

    def _moves(self, report: StepReport) -> Iterator[str]:
        """Decisions of a step whose splits are other ones than those of the step before."""
        splits, decisions = [decision.slots for decision in report.decisions], report.decisions
        if splits != self._splits:
            yield from (f"step {report.step}, placement: {decision.text}" for decision in decisions[:MOVES_SHOWN])
            if len(decisions) > MOVES_SHOWN:
                left = len(decisions) - MOVES_SHOWN
                yield f"step {report.step}, placement: {left} more decisions, all in {self._run.metrics.name}"
        self._splits = splits

    def _append(self, row: Mapping[str, Any], spans: tuple[PhaseSpan, ...]) -> None:
        row = {**row, **self._memory()}
        self._run.append_metrics(row)
        self.spans(row["step"], spans)
        self._trackers.log(row)
        self._trackers.completions(row, self._run.samples, self._config.train.steps)
        self._progress.step(row)

    def _memory(self) -> dict[str, int]:
        """The memory of all processes of a run on this machine, not with every step: it takes a while to ask."""
        if self._config.cluster.address is not None or time.monotonic() - self._weighed < MEMORY_SECONDS:
            return {}
        weighed, self._weighed = memory_bytes(), time.monotonic()
        return {} if weighed is None else {"memory_bytes": weighed}

    def spans(self, step: int, spans: tuple[PhaseSpan, ...]) -> None:
        """Write the spans of a step, or after it."""
        self._run.append_spans(step, spans)

    def incident(self, incident: Incident) -> None:
        """Something died, or is back: said at once, and kept with the next step."""
        self._progress.warn(incident.line)
        self._incidents.append(incident)

    def recovered(self, step: int) -> None:
        undone = [row for row in self._run.read_metrics() if row["step"] > step]
        self._incidents[:0] = [Incident(**told) for row in undone for told in row.get("incidents") or ()]
        self._run.rewind(step)
        self._diagnosis = Diagnosis(self._config)

    def saved(self, step: int) -> None:
        if self._config.algorithm.recipe.reinforces or step == self._config.train.steps:
            self._progress.note(f"saved step {step}")

    def save_failed(self, step: int, error: Exception) -> None:
        last = self._run.latest_checkpoint()
        kept = f"the last complete one is {last}" if last else "there is no complete one yet"
        self._progress.warn(f"step {step} could not be saved ({error}); the run goes on, {kept}")

    def close(self) -> None:
        self._trackers.close()


@contextmanager
def interruptible(stop: Callable[[], bool], save: Callable[[], object], say: Callable[[str], None]) -> Iterator[None]:
    """Ctrl-C, SIGTERM, or the terminal going away during a step: `stop`, at its end. At any other time, and twice:
    cancel the task at once. Under nohup a terminal may go away. SIGUSR1: `save` after the step, and go on. In a thread
    that is not the main one, no signal comes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    terminals = [file for file in (1, 2) if os.isatty(file)]
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers.append(signal.SIGHUP)

    waiting = False

    def on_signal() -> None:
        nonlocal waiting
        if stop():
            waiting = True
            say("stopping: finishing the step under way, then saving; once more to stop at once")
        elif task is not None:
            say("stopping at once")
            task.cancel()

    def on_hangup() -> None:
        for file in terminals:  # one that is gone fails whoever writes there
            os.dup2(os.open(os.devnull, os.O_WRONLY), file)
        if not waiting:  # it is no second Ctrl-C
            on_signal()

    def on_user() -> None:
        save()
        say("saving after the step under way")

    own = {signal.SIGHUP: on_hangup, signal.SIGUSR1: on_user}
    for number in (*numbers, signal.SIGUSR1):
        loop.add_signal_handler(number, own.get(number, on_signal))
    try:
        yield
    finally:
        for number in (*numbers, signal.SIGUSR1):
            loop.remove_signal_handler(number)

"""`yatt eval`: what a checkpoint is worth on held-out rows.

That is the accuracy of its responses, by the run's reward; or, where it learnt from rows, its loss and how it orders
pairs.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from yatt.cluster import forks
from yatt.cluster.backends import backends_of
from yatt.cluster.crew import ClusterCrew
from yatt.cluster.session import ray_session
from yatt.config.load import load_config, settings_in
from yatt.config.names import fitting
from yatt.config.rules import check
from yatt.config.schema import Config
from yatt.data.check import check_data, check_scoring
from yatt.errors import ConfigError
from yatt.faces.chart import decimals
from yatt.faces.checkpoints import Resume
from yatt.faces.choose import Choice
from yatt.faces.export import check_model, export_to, find_checkpoint
from yatt.faces.hub import fetched
from yatt.faces.progress import Progress
from yatt.faces.rundir import RunDirectory
from yatt.reports import EvaluationReport, Interval

READ = (
    *("run.seed", "model.path", "model.dtype", "model.context_length", "cluster", "evaluate.path", "evaluate.size"),
    *("data.path", "data.tasks", "data.prompt_key", "data.system_prompt", "data.chat_template", "data.bad_rows"),
    *("data.template_arguments", "data.media_key", "data.max_pixels", "data.fetch_images", "data.max_prompt_tokens"),
    *("data.metadata_keys", "data.system_key", "train.tp", "train.pp"),
)
"""Settings, and sections, that an evaluation looks at."""
READ_DRAWN = (
    *("data.answer_key", "data.answer_after", "reward", "placement", "log.samples", "evaluate.temperature"),
    *("evaluate.correct_at", "evaluate.by", "rollout.engine", "rollout.max_tokens", "rollout.top_p", "rollout.top_k"),
    *("rollout.stop", "rollout.engine_args"),
)
"""More of them, where responses are drawn."""
READ_ROWS = (
    *("data.response_key", "data.chosen_key", "data.rejected_key", "data.margin_key", "data.label_key"),
    *("model.reference", "algorithm", "train.tokens_per_micro_batch", "train.offload", "train.sequence_parallel"),
    "train.attention",
)
"""More of them, where rows are learned from."""
GIVEN = ("algorithm.name", "run.dir")
"""More of them, where a model is evaluated that no run has trained."""
INSTEAD = {
    "data.size": "evaluate.size",
    "evaluate.samples": "--samples",
    "rollout.n": "--samples",
    "rollout.temperature": "evaluate.temperature",
    "resume": "--checkpoint",
}
"""Options that take the place of settings that `yatt evaluate` does not read."""


def evaluate(run: Path, overrides: Sequence[str], samples: int, checkpoint: Path | None, *, as_json: bool) -> int:
    """Print what the latest checkpoint of `run` is worth, or `checkpoint`; or a model, where `run` is the folder of
    one. Returns the exit status."""
    plain = checkpoint is None and is_model(run)
    resume = None if plain else find_checkpoint(checkpoint or run)
    config = settings_of(run, overrides, samples) if resume is None else settings(resume.folder, overrides, samples)
    config = fetched(config)
    check_model(config)
    check(config)
    drawn = config.algorithm.recipe.reinforces
    forks.begin(forks.kinds_of(config, backends_of(config), train=not drawn, generate=drawn))
    check_data(config)
    check_scoring(config)
    step, home = (0, Path(config.run.dir) / config.run.name) if resume is None else (resume.step, run)
    out = RunDirectory(home / "evaluations" / f"step-{step}").create()
    console = Console(stderr=as_json, highlight=False)
    if not drawn:
        report = asyncio.run(_by_rows(config, out, resume, console))
    elif resume is None:
        report = asyncio.run(_by_responses(config, out, config.model.path, step, console))
    else:
        with tempfile.TemporaryDirectory(prefix="yatt-eval-") as model:
            export_to(resume, Path(model), [f"model.path={config.model.path}"])
            report = asyncio.run(_by_responses(config, out, model, step, console))
    if as_json:
        print(json.dumps({"step": step, **asdict(report)}))
    else:
        show(report, run if resume is None else resume.folder, config)
    return 0


def is_model(folder: Path) -> bool:
    """Whether a folder is a Hugging Face model, and neither a run nor a checkpoint."""
    return (folder / "config.json").is_file() and not (folder / "config.yaml").exists()


def settings_of(model: Path, overrides: Sequence[str], samples: int) -> Config:
    """The settings of an evaluation of a model that no run has trained: what is not given is chosen."""
    path = {"model": {"path": str(model).replace("$", "$$")}}
    choice = Choice()
    config = load_config(None, overrides, path, choice)
    _check_read(config, overrides, GIVEN)
    if config.data.path is None and not config.data.tasks:
        raise ConfigError(f"{model} is no run, but a model: give data.path=FILE, the rows to evaluate it on")
    held_out: dict[str, Any] = {"path": config.data.path, "every": 0}
    held_out |= {"samples": samples} if config.algorithm.recipe.reinforces else {}
    evaluated = config.evaluate.model_copy(update=held_out)
    home = config.run.model_copy(update={"name": fitting(f"baseline-{model.resolve().name}")})
    return config.model_copy(update={"evaluate": evaluated, "run": home})


def settings(checkpoint: Path, overrides: Sequence[str], samples: int) -> Config:
    """The run's settings; data.path among the overrides names what to evaluate on, else the run's own held-out rows."""
    config = load_config(str(checkpoint / "config.yaml"), overrides)
    _check_read(config, overrides)
    held_out: dict[str, Any] = {"samples": samples} if config.algorithm.recipe.reinforces else {}
    if any(word.startswith(("data.path=", "data.tasks=")) for word in overrides):
        held_out["path"] = config.data.path
    evaluated = config.evaluate.model_copy(update=held_out)
    if evaluated.path is None and evaluated.size is None:
        raise ConfigError(
            f"{checkpoint}: its run has no held-out rows; give data.path=FILE, or evaluate.size=N to make some"
        )
    return config.model_copy(update={"evaluate": evaluated, "resume": "never"})


def _check_read(config: Config, overrides: Sequence[str], more: Sequence[str] = ()) -> None:
    """Raises ConfigError for a setting among the words that would be ignored; `more` are not."""
    read = (*READ, *more, *(READ_DRAWN if config.algorithm.recipe.reinforces else READ_ROWS))
    lines = []
    for setting in settings_in(overrides):
        if (setting == "algorithm.name" and not more) or not any(
            setting == one or setting.startswith(f"{one}.") for one in read
        ):
            instead = f"give {INSTEAD[setting]} instead" if setting in INSTEAD else "leave it out"
            lines.append(f"{setting} says nothing to an evaluation of this run; {instead}")
    if lines:
        raise ConfigError("\n".join(lines))


async def _by_responses(config: Config, out: RunDirectory, model: str, step: int, console: Console) -> EvaluationReport:
    """Engines alone: the policy's, and the judges'."""
    async with _crew(config, out, console) as (crew, progress):
        await crew.start(model=model, train=False, generate=True)
        return await _evaluated(crew, progress, step)


async def _by_rows(config: Config, out: RunDirectory, resume: Resume | None, console: Console) -> EvaluationReport:
    """Ranks alone, with the checkpoint's weights, or the model's own, and the reference where there is one: to ask it
    of every row that the run learns from would take longer."""
    live = config.algorithm.model_copy(update={"precompute_reference": False})
    config = config.model_copy(update={"algorithm": live})
    async with _crew(config, out, console) as (crew, progress):
        await crew.start(model=config.model.path, train=True, generate=False)
        if resume is not None:
            await crew.trainer.on_all("load", resume.trainer)
        return await _evaluated(crew, progress, 0 if resume is None else resume.step)


@asynccontextmanager
async def _crew(config: Config, out: RunDirectory, console: Console) -> AsyncIterator[tuple[ClusterCrew, Progress]]:
    with ray_session(config.cluster), Progress(1, console=console) as progress:
        crew = ClusterCrew(config, out.path, lambda name, state: progress.phase(name, state))
        try:
            yield crew, progress
        finally:
            await crew.close()


async def _evaluated(crew: ClusterCrew, progress: Progress, step: int) -> EvaluationReport:
    progress.phase("evaluation", "running")
    report = await crew.evaluate(step)
    progress.phase("evaluation", "done")
    return report


def show(report: EvaluationReport, checkpoint: Path, config: Config, console: Console | None = None) -> None:
    """The report as a table, and one of its sources."""
    console, rows = console or Console(), "prompts" if config.algorithm.recipe.reinforces else "rows"
    console.print(f"{checkpoint} on {config.evaluate.path or 'procedural tasks'}, {report.prompts:,} {rows}")
    table = Table()
    for name in ("measure", "value", "95 %"):
        table.add_column(name, justify="left" if name == "measure" else "right")
    for name, (value, key) in _measures(report).items():
        if value is not None:
            table.add_row(name, decimals(value), _between(report.intervals.get(key)))
    if report.failures:
        table.add_row("failed rewards (excluded)", str(report.failures))
    console.print(table)
    if report.sources:
        console.print(_by_source(report, str(config.evaluate.by)))


def _measures(report: EvaluationReport) -> dict[str, tuple[float | None, str]]:
    """Measures to show -> the value, and the name of its interval."""
    k = max(report.pass_at_k, default=0)
    shown = {
        "accuracy, greedy": (report.accuracy_greedy, "accuracy_greedy"),
        f"accuracy, mean@{k}": (report.accuracy_sampled, "accuracy_sampled"),
        "loss": (report.loss, ""),
        "pairs in the right order": (report.pair_accuracy, "pair_accuracy"),
    }
    passed = {f"pass@{k}": (share, f"pass@{k}") for k, share in report.pass_at_k.items() if k > 1}
    parts = {f"{name}, greedy": (value, "") for name, value in report.parts_greedy.items()}
    tokens = report.response_tokens_mean or None
    return shown | passed | parts | {"response tokens, mean": (tokens, "")}


def _by_source(report: EvaluationReport, column: str) -> Table:
    table = Table(title=f"by {column}")
    for name in (column, "prompts", "greedy", "95 %", "sampled, mean", "95 %"):
        table.add_column(name, justify="left" if name == column else "right")
    for source, told in report.sources.items():
        cells = [source, f"{told.prompts:,}"]
        for value, key in ((told.accuracy_greedy, "accuracy_greedy"), (told.accuracy_sampled, "accuracy_sampled")):
            cells += ["" if value is None else f"{value:.3f}", _between(told.intervals.get(key))]
        table.add_row(*cells)
    return table


def _between(ends: Interval | None) -> str:
    return f"{ends[0]:.3f} to {ends[1]:.3f}" if ends else ""

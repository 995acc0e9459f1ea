"""`yatt eval`: pass@k of a run's policy on a dataset, with the run's reward."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from yatt.cluster.crew import ClusterCrew
from yatt.cluster.session import ray_session
from yatt.config.load import load_config
from yatt.config.rules import check
from yatt.config.schema import Config
from yatt.data.check import check_data, check_scoring
from yatt.errors import ConfigError
from yatt.faces.checkpoints import read_checkpoint
from yatt.faces.export import export_to, find_checkpoint
from yatt.faces.progress import Progress
from yatt.faces.rundir import RunDirectory
from yatt.types import EvaluationReport


def evaluate(run: Path, overrides: Sequence[str], samples: int, checkpoint: Path | None, *, as_json: bool) -> int:
    """Print pass@k for the latest checkpoint of `run`, or for `checkpoint`; returns the exit status."""
    folder = find_checkpoint(checkpoint or run)
    step = read_checkpoint(folder).step
    config = settings(folder, overrides, samples)
    check(config)
    check_data(config)
    check_scoring(config)
    out = RunDirectory(run / "evaluations" / f"step-{step}").create()
    with tempfile.TemporaryDirectory(prefix="yatt-eval-") as model:
        export_to(folder, Path(model))
        report = asyncio.run(_evaluate(config, out, model, step))
    if as_json:
        print(json.dumps({"step": step, **asdict(report)}))
    else:
        show(report, folder, config)
    return 0


def settings(checkpoint: Path, overrides: Sequence[str], samples: int) -> Config:
    """The run's settings; data.path among the overrides names what to evaluate on, else the run's own held-out rows."""
    config = load_config(str(checkpoint / "config.yaml"), overrides)
    if config.algorithm.name == "sft":
        raise ConfigError(
            f"algorithm.name=sft: the run of {checkpoint} has no reward to evaluate with; name a grpo or rloo run"
        )
    held_out = {"samples": samples}
    if any(word.startswith(("data.path=", "data.tasks=")) for word in overrides):
        held_out["path"] = config.data.path
    return config.model_copy(update={"evaluate": config.evaluate.model_copy(update=held_out), "resume": "never"})


async def _evaluate(config: Config, out: RunDirectory, model: str, step: int) -> EvaluationReport:
    with ray_session(config.cluster), Progress(1) as progress:
        crew = ClusterCrew(config, out.path, lambda name, state: progress.phase(name, state))
        try:
            await crew.start(model=model, train=False, generate=True)
            progress.phase("evaluation", "running")
            report = await crew.evaluate(step)
            progress.phase("evaluation", "done")
            return report
        finally:
            await crew.close()


def show(report: EvaluationReport, checkpoint: Path, config: Config) -> None:
    """The report as a table."""
    table = Table(title=f"{checkpoint} on {config.evaluate.path or 'procedural tasks'}, {report.prompts} prompts")
    table.add_column("measure")
    table.add_column("value", justify="right")
    rows = {"accuracy, greedy": report.accuracy_greedy, "accuracy, sampled": report.accuracy_sampled}
    rows |= {f"pass@{k}": share for k, share in report.pass_at_k.items()}
    rows |= {f"{name}, greedy": value for name, value in report.parts_greedy.items()}
    for name, value in rows.items():
        table.add_row(name, "-" if value is None else f"{value:.3f}")
    table.add_row("response tokens, mean", f"{report.response_tokens_mean:.1f}")
    if report.failures:
        table.add_row("failed rewards (excluded)", str(report.failures))
    Console().print(table)

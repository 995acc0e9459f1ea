"""The quickstart, as `make quickstart` runs it: prepare, warm-start by SFT, train by GRPO, and say what changed.

python examples/quickstart/run.py --seed 0 --controllers 2
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import prepare
from rich.console import Console
from rich.table import Table
from rich.text import Text

from yatt.faces.rundir import RunDirectory

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SFT, GRPO = RunDirectory("runs/quickstart-sft"), RunDirectory("runs/quickstart")
SHOWN = 3
console = Console(highlight=False)


class Outcome(NamedTuple):
    """One evaluation: its row of metrics.jsonl and the greedy responses written with it, by prompt."""

    row: Mapping[str, Any]
    responses: Mapping[str, Mapping[str, Any]]


def yatt(*words: str) -> None:
    """Run a yatt command in this terminal. Ctrl-C reaches it too and it ends by itself: we only wait.

    Exits with its status where that is not 0, and with 130 after a Ctrl-C.
    """
    received: list[int] = []
    with subprocess.Popen([sys.executable, "-m", "yatt", *words]) as child:

        def pass_on(number: int, frame: object) -> None:
            received.append(number)
            if number == signal.SIGTERM:  # a terminal sends SIGINT to every process itself, but not this one
                child.send_signal(number)

        before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
        status = child.wait()
        for number, handler in before.items():
            signal.signal(number, handler)
    if received:
        sys.exit(128 + received[0])
    if status:
        console.print(f"[red]yatt {words[0]} ended with status {status}[/]; its messages are above")
        sys.exit(status if status > 0 else 128 - status)


def warm_start(seed: int) -> bool:
    """The policy's first lessons; returns whether they were taken now."""
    how = "SFT on demonstrations, 60 % of them bare answers, 40 % with their work"
    return teach(SFT, HERE / "sft.yaml", prepare.WORK, seed, "2/3 Warm start", how)


def teach(run: RunDirectory, settings: Path, work: Path, seed: int, title: str, how: str) -> bool:
    """SFT, unless its model is there from the same seed and settings; says which. Returns whether it ran."""
    stamp = run.path / "quickstart.json"
    made_from = {"work": (work / "stamp.json").read_text(), "settings": settings.read_text()}
    if stamp.exists() and json.loads(stamp.read_text()) == made_from and (run.path / "model").is_dir():
        console.print(f"[bold]{title}:[/] already there, {run.path / 'model'}")
        return False
    console.print(f"[bold]{title}:[/] {how}")
    shutil.rmtree(run.path, ignore_errors=True)
    yatt("train", relative(settings), f"run.seed={seed}")
    stamp.write_text(json.dumps(made_from))
    return True


def reinforce(seed: int, controllers: int, engine: str) -> None:
    """GRPO from the warm start, anew each time."""
    console.print("[bold]3/3 GRPO:[/] a right sum earns 1, anything else 0; nothing asks for work")
    shutil.rmtree(GRPO.path, ignore_errors=True)
    settings = (f"run.seed={seed}", f"cluster.controllers={controllers}", f"rollout.engine={engine}")
    yatt("train", relative(HERE / "grpo.yaml"), *settings)


def outcomes() -> tuple[Outcome, Outcome]:
    """The first and the last evaluation of the GRPO run."""
    evaluated = [row for row in GRPO.read_metrics() if "accuracy_sampled" in row]
    if len(evaluated) < 2:
        sys.exit(f"{GRPO.metrics} holds {len(evaluated)} evaluations, not 2: the run did not end")
    return outcome(evaluated[0]), outcome(evaluated[-1])


def outcome(row: Mapping[str, Any]) -> Outcome:
    """One evaluation with its samples, which each controller wrote to a file of its own."""
    lines = [
        json.loads(line)
        for file in sorted(GRPO.samples.glob(f"eval-{row['step']}.c*.jsonl"))
        for line in file.read_text().splitlines()
    ]
    return Outcome(row, {line["prompt"]: line for line in lines if line["mode"] == "greedy"})


def show_numbers(before: Outcome, after: Outcome) -> None:
    """Accuracy, share of worked answers and lengths, before and after."""
    table = Table(title=f"{before.row['evaluation']['prompts']} held-out sums", title_justify="left")
    table.add_column("")
    table.add_column("before", justify="right")
    table.add_column("after", justify="right")
    for name, key in (("accuracy, greedy", "accuracy_greedy"), ("accuracy, sampled at T = 1", "accuracy_sampled")):
        table.add_row(name, *(f"{o.row[key]:.1%}" for o in (before, after)))
    for name, key in (("worked, greedy", "parts_greedy"), ("worked, sampled", "parts_sampled")):
        table.add_row(name, *(f"{o.row['evaluation'][key]['worked']:.1%}" for o in (before, after)))
    lengths = (f"{o.row['evaluation']['response_tokens_mean']:.1f}" for o in (before, after))
    table.add_row("mean response, tokens", *lengths)
    console.print(table)


def show_responses(before: Outcome, after: Outcome) -> None:
    """A few greedy responses side by side, green where right."""
    table = Table(title="The same questions, greedy", title_justify="left")
    for name in ("question", "before", "after"):
        table.add_column(name, overflow="fold")
    for question in sorted(before.responses.keys() & after.responses.keys())[:SHOWN]:
        table.add_row(question, *(judged(o.responses[question]) for o in (before, after)))
    console.print(table)


def judged(line: Mapping[str, Any]) -> Text:
    """A response, coloured by its reward."""
    return Text(line["response"], style="green" if line["reward"] == 1.0 else "red")


def show_times(stages: Sequence[tuple[str, float]]) -> None:
    """Wall time of every stage, and of the phases within GRPO."""
    table = Table(title="Wall time", title_justify="left", show_header=False)
    table.add_column("")
    table.add_column("", justify="right")
    for name, seconds in stages:
        table.add_row(name, f"{seconds:.0f} s")
    phases: dict[str, float] = {}
    for row in GRPO.read_metrics():
        for name, seconds in row["phases"].items():
            phases[name] = phases.get(name, 0.0) + seconds
    for name, seconds in sorted(phases.items(), key=lambda item: -item[1]):
        table.add_row(f"  of which {name}", f"{seconds:.0f} s")
    table.add_row("all", f"{sum(seconds for _, seconds in stages):.0f} s")
    console.print(table)


def show_parts(
    run: RunDirectory, rows: Sequence[Mapping[str, Any]], measures: Sequence[tuple[str, str, str]], before: str
) -> None:
    """Parts of the reward on held-out sums, at the first and at the last evaluation; each of `measures` is a name, the
    part, and how it is written."""
    evaluations = [row["evaluation"] for row in rows if "evaluation" in row]
    if len(evaluations) < 2:
        sys.exit(f"{run.metrics} holds {len(evaluations)} evaluations, not 2: the run did not end")
    ends = evaluations[0], evaluations[-1]
    table = Table(title=f"{ends[0]['prompts']} held-out sums", title_justify="left")
    for name in ("", before, "after"):
        table.add_column(name, justify="right" if name else "left")
    for mode in ("greedy", "sampled"):
        for name, part, shape in measures:
            values = (evaluation[f"parts_{mode}"][part] for evaluation in ends)
            table.add_row(f"{name}, {mode}", *(f"{value:{shape}}" for value in values))
    console.print(table)


def show_stages(stages: Sequence[tuple[str, float]]) -> None:
    """Wall time of every stage."""
    table = Table(title="Wall time", title_justify="left", show_header=False)
    for name, seconds in (*stages, ("all", sum(seconds for _, seconds in stages))):
        table.add_row(name, f"{seconds:.0f} s")
    console.print(table)


def show_places() -> None:
    """Where things are, and what to do next."""
    console.print(f"Report      {GRPO.report}")
    console.print(f"Checkpoint  {GRPO.latest_checkpoint()}")
    program = relative(Path(sys.executable).with_name("yatt"))
    evaluate = f"{program} eval {GRPO.path} data.path={relative(prepare.WORK / 'eval.jsonl')}"
    console.print(f"Try next    {evaluate}", soft_wrap=True)


def relative(path: Path) -> str:
    """A path as one types it in the project's folder."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--controllers", type=int, default=2)
    parser.add_argument("--engine", default="vllm", help="rollout.engine: vllm or sglang")
    options = parser.parse_args()
    os.chdir(ROOT)  # runs/ is there
    started = time.monotonic()
    made = prepare.prepare(options.seed)
    console.print(f"[bold]1/3 Model and data:[/] {'made' if made else 'already there'}, {relative(prepare.WORK)}")
    prepared = time.monotonic()
    ran = warm_start(options.seed)
    warmed = time.monotonic()
    reinforce(options.seed, options.controllers, options.engine)
    ended = time.monotonic()
    before, after = outcomes()
    show_numbers(before, after)
    show_responses(before, after)
    sft = "warm start (sft)" if ran else "warm start (sft), already there"
    show_times([("model and data", prepared - started), (sft, warmed - prepared), ("grpo", ended - warmed)])
    show_places()


if __name__ == "__main__":
    main()

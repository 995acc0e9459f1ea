"""A policy that sees, as `make vision` runs it: prepare, warm-start by SFT, train by GRPO, and say what changed.

python examples/vision/run.py --seed 0 --controllers 2
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import run as quickstart  # the quickstart's: `squares` puts its folder first
import squares
from rich.table import Table

from yatt.faces.rundir import RunDirectory

SFT, GRPO = RunDirectory("runs/vision-sft"), RunDirectory("runs/vision")
GOAL = 0.9
"""Sampled accuracy that a run should reach."""
SHOWN = 8
BAR = 30
console = quickstart.console


def reinforce(seed: int, controllers: int, engine: str) -> None:
    """GRPO from the warm start, anew each time."""
    console.print("[bold]3/3 GRPO:[/] the right colour earns 1, anything else 0")
    shutil.rmtree(GRPO.path, ignore_errors=True)
    settings = (f"run.seed={seed}", f"cluster.controllers={controllers}", f"rollout.engine={engine}")
    quickstart.yatt("train", quickstart.relative(squares.HERE / "grpo.yaml"), *settings)


def show_steps(rows: Sequence[Mapping[str, Any]]) -> None:
    """The mean reward of the responses drawn in training, over the steps."""
    steps = [row for row in rows if row.get("responses")]
    table = Table(title="Responses drawn in training", title_justify="left")
    table.add_column("steps", justify="right")
    table.add_column("right")
    size = max(1, -(-len(steps) // SHOWN))
    for start in range(0, len(steps), size):
        some = steps[start : start + size]
        right = sum(row["reward"] for row in some) / len(some)
        table.add_row(f"{some[0]['step']}-{some[-1]['step']}", f"{right:6.1%} {'█' * round(BAR * right)}")
    console.print(table)


def show_accuracy(rows: Sequence[Mapping[str, Any]]) -> float:
    """Accuracy on held-out pictures before and after; returns the last of samples."""
    evaluated = [row for row in rows if "accuracy_sampled" in row]
    if len(evaluated) < 2:
        sys.exit(f"{GRPO.metrics} holds {len(evaluated)} evaluations, not 2: the run did not end")
    ends = evaluated[0], evaluated[-1]
    table = Table(title=f"{ends[0]['evaluation']['prompts']} held-out pictures", title_justify="left")
    for name in ("accuracy", "before", "after"):
        table.add_column(name, justify="left" if name == "accuracy" else "right")
    for name, key in (("greedy", "accuracy_greedy"), ("sampled at T = 1", "accuracy_sampled")):
        table.add_row(name, *(f"{row[key]:.1%}" for row in ends))
    console.print(table)
    return float(ends[1]["accuracy_sampled"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--controllers", type=int, default=2)
    parser.add_argument("--engine", default="vllm", help="rollout.engine: vllm or sglang")
    options = parser.parse_args()
    os.chdir(quickstart.ROOT)  # runs/ is there
    started = time.monotonic()
    made = squares.prepare(options.seed)
    where = quickstart.relative(squares.WORK)
    console.print(f"[bold]1/3 Model and pictures:[/] {'made' if made else 'already there'}, {where}")
    prepared = time.monotonic()
    how = "SFT on pictures with the right colour, a few of them"
    ran = quickstart.teach(SFT, squares.HERE / "sft.yaml", squares.WORK, options.seed, "2/3 Warm start", how)
    warmed = time.monotonic()
    reinforce(options.seed, options.controllers, options.engine)
    ended = time.monotonic()
    rows = GRPO.read_metrics()
    show_steps(rows)
    accuracy = show_accuracy(rows)
    sft = "warm start (sft)" if ran else "warm start (sft), already there"
    stages = [("model and pictures", prepared - started), (sft, warmed - prepared), ("grpo", ended - warmed)]
    quickstart.show_stages(stages)
    console.print(f"Report      {GRPO.report}\nCheckpoint  {GRPO.latest_checkpoint()}")
    if accuracy < GOAL:
        sys.exit(f"the last sampled accuracy is {accuracy:.1%}; it should be {GOAL:.0%} or more")


if __name__ == "__main__":
    main()

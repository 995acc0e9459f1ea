"""The quickstart's sums under a judge: prepare, teach the policy and its judge by SFT, train by GRPO, and compare.

python examples/genrm/run.py --seed 0 --controllers 2

The judge gives the reward and never sees a right answer. Whether answers are right is recorded beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from typing import Any

import check_judge
import judge
import prepare
import run as quickstart  # the quickstart's: `judge` puts its folder first
from rich.table import Table
from rich.text import Text

from yatt.faces.rundir import RunDirectory

JUDGE, GRPO = RunDirectory("runs/genrm-judge"), RunDirectory("runs/genrm")
SHOWN = 12
BAR = 12  # three of them fit in 80 columns
MEASURES = (("truly right", "truth", ".1%"), ("right, says the judge", "judge", ".1%"), ("worked", "worked", ".1%"))
"""What is shown of an evaluation: its name, the part of the reward, and how it is written."""
console = quickstart.console


def models(seed: int) -> list[tuple[str, float]]:
    """The policy and the judge, where they are not there yet from this seed; how long each took."""
    started = time.monotonic()
    made = (prepare.prepare(seed), judge.prepare(seed))
    folders = " and ".join(quickstart.relative(folder) for folder in (prepare.WORK, judge.WORK))
    console.print(f"[bold]1/4 Models and data:[/] {'made' if any(made) else 'already there'}, {folders}")
    prepared = time.monotonic()
    how = "SFT on demonstrations, as in the quickstart"
    quickstart.teach(quickstart.SFT, quickstart.HERE / "sft.yaml", prepare.WORK, seed, "2/4 Policy", how)
    warmed = time.monotonic()
    how = "SFT on judgements: each column's sum beside the answer's digit, then the verdict"
    quickstart.teach(JUDGE, judge.HERE / "judge.yaml", judge.WORK, seed, "3/4 Judge", how)
    rows = [json.loads(line) for line in (judge.WORK / "judge_eval.jsonl").read_text().splitlines()]
    found = check_judge.check(JUDGE.path / "model", rows)
    console.print(f"    on {len(rows)} held-out responses: " + ", ".join(f"{n} {v:.1%}" for n, v in found.items()))
    return [
        ("models and data", prepared - started),
        ("policy (sft)", warmed - prepared),
        ("judge (sft, check)", time.monotonic() - warmed),
    ]


def reinforce(seed: int, controllers: int, mode: str, engine: str) -> None:
    """GRPO under the judge, anew each time."""
    console.print("[bold]4/4 GRPO:[/] the judge's word is the reward; the truth is only recorded")
    shutil.rmtree(GRPO.path, ignore_errors=True)
    settings = [f"run.seed={seed}", f"cluster.controllers={controllers}", f"placement.mode={mode}"]
    settings += [f"rollout.engine={engine}"]  # the judge's too, which sets none of its own
    quickstart.yatt("train", quickstart.relative(judge.HERE / "dynamic.yaml"), *settings)


def show_steps(rows: Sequence[Mapping[str, Any]]) -> None:
    """What the judge gave and what was true, over the steps; each line is the mean of its steps."""
    steps = [row for row in rows if row["responses"]]
    table = Table(title="Responses drawn in training", title_justify="left")
    table.add_column("steps", justify="right")
    for name in ("judge's mean reward", "truly right", "worked"):
        table.add_column(name)
    size = max(1, -(-len(steps) // SHOWN))
    for start in range(0, len(steps), size):
        some = steps[start : start + size]
        number = f"{some[0]['step']}-{some[-1]['step']}" if len(some) > 1 else str(some[0]["step"])
        shares = (mean([row["parts"][part] for row in some]) for part in ("judge", "truth", "worked"))
        table.add_row(number, *map(bar, shares))
    console.print(table)


def show_evaluations(rows: Sequence[Mapping[str, Any]]) -> None:
    """Held-out sums before and after: what is true, and what the judge says of it."""
    quickstart.show_parts(GRPO, rows, MEASURES, "before")


def bar(share: float) -> Text:
    """A share as a bar and a number."""
    return Text(f"{'█' * round(share * BAR):{BAR}}{share:7.1%}")


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--controllers", type=int, default=2)
    parser.add_argument("--mode", default="dynamic", help="placement.mode: dynamic, colocated or weighted")
    parser.add_argument("--engine", default="vllm", help="rollout.engine: vllm or sglang")
    parser.add_argument("--models-only", action="store_true", help="stop before GRPO")
    options = parser.parse_args()
    os.chdir(quickstart.ROOT)  # runs/ is there
    stages = models(options.seed)
    if options.models_only:
        return
    started = time.monotonic()
    reinforce(options.seed, options.controllers, options.mode, options.engine)
    rows = GRPO.read_metrics()
    show_steps(rows)
    show_evaluations(rows)
    quickstart.show_stages([*stages, ("grpo", time.monotonic() - started)])
    console.print(f"Report      {GRPO.report}")


if __name__ == "__main__":
    main()

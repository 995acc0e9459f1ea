"""The agent, as `make agent` runs it: prepare, warm-start by SFT, train conversations by GRPO, and say what changed.

python examples/agent/run.py --seed 0 --controllers 2
python examples/agent/run.py --game    # the game of two turns in place of the calculator
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import prepare
from rich.table import Table

from yatt.faces.rundir import RunDirectory

HERE = Path(__file__).resolve().parent


class Task(NamedTuple):
    """Settings and runs of a warm start and of GRPO; what each of them is, what is asked, and the part of the reward
    that tells how the policy goes about it."""

    sft: Path
    grpo: Path
    warm: RunDirectory
    run: RunDirectory
    shown: str
    earned: str
    asked: str
    part: str
    told: str


PRODUCTS = Task(
    sft=HERE / "sft.yaml",
    grpo=HERE / "grpo.yaml",
    warm=RunDirectory("runs/agent-sft"),
    run=RunDirectory("runs/agent"),
    shown=f"SFT on turns: {prepare.CALLING:.0%} of the answers come from a call of the calculator, others from nowhere",
    earned="a right product earns 1, anything else 0; nothing asks for the calculator",
    asked="held-out products",
    part="asked",
    told="asks the calculator",
)
GAME = Task(
    sft=HERE / "game_sft.yaml",
    grpo=HERE / "game.yaml",
    warm=RunDirectory("runs/agent-game-sft"),
    run=RunDirectory("runs/agent-game"),
    shown="SFT on turns: any digit, whatever was said",
    earned="a number that is found in two guesses earns 1, anything else 0",
    asked="games",
    part="at_once",
    told="found at once",
)


def _quickstart() -> ModuleType:
    """The quickstart's script, whose way to run stages and to show times is used here. Both are called run.py, and both
    have a prepare.py beside them."""
    spec = importlib.util.spec_from_file_location("quickstart_run", HERE.parent / "quickstart" / "run.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


quickstart = _quickstart()


def show_numbers(task: Task) -> None:
    """Accuracy, and how it came about, before and after."""
    rows: list[Mapping[str, Any]] = task.run.read_metrics()
    evaluated = [row for row in rows if "accuracy_sampled" in row]
    if len(evaluated) < 2:
        sys.exit(f"{task.run.metrics} holds {len(evaluated)} evaluations, not 2: the run did not end")
    ends = evaluated[0], evaluated[-1]
    table = Table(title=f"{ends[0]['evaluation']['prompts']} {task.asked}", title_justify="left")
    for name in ("", "before", "after"):
        table.add_column(name, justify="right" if name else "left")
    for name, key in (("accuracy, greedy", "accuracy_greedy"), ("accuracy, sampled at T = 1", "accuracy_sampled")):
        table.add_row(name, *(f"{row[key]:.1%}" for row in ends))
    for name, key in ((f"{task.told}, greedy", "parts_greedy"), (f"{task.told}, sampled", "parts_sampled")):
        table.add_row(name, *(f"{row['evaluation'][key][task.part]:.1%}" for row in ends))
    quickstart.console.print(table)


def show_conversation(run: RunDirectory) -> None:
    """One conversation of the last evaluation."""
    files = sorted(run.samples.glob("eval-*.c0.jsonl"), key=lambda file: int(file.name.split("-")[1].split(".")[0]))
    line = json.loads(files[-1].read_text().splitlines()[0])
    table = Table(title="A conversation of the last evaluation, greedy", title_justify="left", show_header=False)
    for message in line["messages"]:
        calls = [call["function"]["arguments"] for call in message.get("tool_calls") or ()]
        table.add_row(message["role"], message["content"] or f"calculate({json.dumps(calls[0]) if calls else ''})")
    quickstart.console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--controllers", type=int, default=2)
    parser.add_argument("--engine", default="vllm", help="rollout.engine: vllm or sglang")
    parser.add_argument("--game", action="store_true", help="the game of two turns in place of the calculator")
    options = parser.parse_args()
    task = GAME if options.game else PRODUCTS
    os.chdir(quickstart.ROOT)  # runs/ is there
    console = quickstart.console
    started = time.monotonic()
    made = prepare.prepare(options.seed)
    folder = quickstart.relative(prepare.WORK)
    console.print(f"[bold]1/3 Model and data:[/] {'made' if made else 'already there'}, {folder}")
    prepared = time.monotonic()
    quickstart.teach(task.warm, task.sft, prepare.WORK, options.seed, "2/3 Warm start", task.shown)
    warmed = time.monotonic()
    console.print(f"[bold]3/3 GRPO:[/] {task.earned}")
    shutil.rmtree(task.run.path, ignore_errors=True)
    settings = [f"run.seed={options.seed}", f"cluster.controllers={options.controllers}"]
    settings.append(f"rollout.engine={options.engine}")
    quickstart.yatt("train", quickstart.relative(task.grpo), *settings)
    ended = time.monotonic()
    show_numbers(task)
    show_conversation(task.run)
    stages = [("model and data", prepared - started), ("warm start (sft)", warmed - prepared), ("grpo", ended - warmed)]
    quickstart.show_stages(stages)
    console.print(f"Report      {task.run.report}")


if __name__ == "__main__":
    main()

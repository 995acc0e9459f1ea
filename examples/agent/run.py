"""The agent, as `make agent` runs it: prepare, warm-start by SFT, train conversations by GRPO, and say what changed.

python examples/agent/run.py --seed 0 --controllers 2
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
from typing import Any

import prepare
from rich.table import Table

from yatt.faces.rundir import RunDirectory

HERE = Path(__file__).resolve().parent
SFT, GRPO = RunDirectory("runs/agent-sft"), RunDirectory("runs/agent")


def _quickstart() -> ModuleType:
    """The quickstart's script, whose way to run stages and to show times is used here. Both are called run.py, and both
    have a prepare.py beside them."""
    spec = importlib.util.spec_from_file_location("quickstart_run", HERE.parent / "quickstart" / "run.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


quickstart = _quickstart()


def show_numbers(rows: list[Mapping[str, Any]]) -> None:
    """Accuracy and use of the calculator on held-out questions, before and after."""
    evaluated = [row for row in rows if "accuracy_sampled" in row]
    if len(evaluated) < 2:
        sys.exit(f"{GRPO.metrics} holds {len(evaluated)} evaluations, not 2: the run did not end")
    ends = evaluated[0], evaluated[-1]
    table = Table(title=f"{ends[0]['evaluation']['prompts']} held-out products", title_justify="left")
    for name in ("", "before", "after"):
        table.add_column(name, justify="right" if name else "left")
    for name, key in (("accuracy, greedy", "accuracy_greedy"), ("accuracy, sampled at T = 1", "accuracy_sampled")):
        table.add_row(name, *(f"{row[key]:.1%}" for row in ends))
    for name, key in (
        ("asks the calculator, greedy", "parts_greedy"),
        ("asks the calculator, sampled", "parts_sampled"),
    ):
        table.add_row(name, *(f"{row['evaluation'][key]['asked']:.1%}" for row in ends))
    quickstart.console.print(table)


def show_conversation() -> None:
    """One conversation of the last evaluation."""
    files = sorted(GRPO.samples.glob("eval-*.c0.jsonl"), key=lambda file: int(file.name.split("-")[1].split(".")[0]))
    line = json.loads(files[-1].read_text().splitlines()[0])
    table = Table(title="A conversation of the last evaluation, greedy", title_justify="left", show_header=False)
    for message in line["messages"]:
        calls = [call["function"]["arguments"] for call in message.get("tool_calls") or ()]
        table.add_row(message["role"], message["content"] or f"calculate({json.dumps(calls[0])})")
    quickstart.console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--controllers", type=int, default=2)
    parser.add_argument("--engine", default="vllm", help="rollout.engine: vllm or sglang")
    options = parser.parse_args()
    os.chdir(quickstart.ROOT)  # runs/ is there
    console = quickstart.console
    started = time.monotonic()
    made = prepare.prepare(options.seed)
    folder = quickstart.relative(prepare.WORK)
    console.print(f"[bold]1/3 Model and data:[/] {'made' if made else 'already there'}, {folder}")
    prepared = time.monotonic()
    share = f"{prepare.CALLING:.0%}"
    how = f"SFT on turns: {share} of the answers come from a call of the calculator, the others from nowhere"
    quickstart.teach(SFT, HERE / "sft.yaml", prepare.WORK, options.seed, "2/3 Warm start", how)
    warmed = time.monotonic()
    console.print("[bold]3/3 GRPO:[/] a right product earns 1, anything else 0; nothing asks for the calculator")
    shutil.rmtree(GRPO.path, ignore_errors=True)
    settings = [f"run.seed={options.seed}", f"cluster.controllers={options.controllers}"]
    settings.append(f"rollout.engine={options.engine}")
    quickstart.yatt("train", quickstart.relative(HERE / "grpo.yaml"), *settings)
    ended = time.monotonic()
    show_numbers(GRPO.read_metrics())
    show_conversation()
    stages = [("model and data", prepared - started), ("warm start (sft)", warmed - prepared), ("grpo", ended - warmed)]
    quickstart.show_stages(stages)
    console.print(f"Report      {GRPO.report}")


if __name__ == "__main__":
    main()

"""Every benchmark, or those named, one after another, each in a process of its own: python -m benchmarks [NAME ...]

Each writes benchmarks/results/NAME.json and prints a table of it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.common import ENVIRONMENT

RESULTS = Path(__file__).parent / "results"
BENCHMARKS = {
    "balance": "dealing samples to ranks and micro-batches",
    "sampling": "refills, local against lock-step, simulated",
    "scale": "1 to 64 controllers on 16 to 1,024 devices, simulated",
    "placement": "placement modes against the best fixed split and a bound, simulated",
    "placement_hindsight": "placement modes against schedules made in hindsight, simulated (an hour)",
    "placement_crossover": "from where on phases side by side gain, simulated",
    "placement_real": "placement modes on this machine's engines (of the judge's example, where its models are)",
    "conversations": "idle devices while tools run, simulated, and the memory of 1,024 conversations at once",
    "datapath": "one step's data movement, against a single controller",
    "rewards": "the reward pool against a plain call",
    "trainer": "a Megatron rank against Hugging Face and AdamW, and TRL where it is installed",
    "checkpoint": "memory and time while a checkpoint is saved",
    "chaos": "real runs in which a process is killed or stopped, by kind of process and phase (an hour)",
    "generator": "the generator against Hugging Face generate",
    "overhead": "the controllers' own share of a finished run",
    "algorithms": "what each algorithm makes of the same policy in 40 steps (an hour; goes on where it stopped)",
}


def main() -> int:
    """0 when every benchmark ran."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of {', '.join(BENCHMARKS)}; all by default")
    parser.add_argument("--quick", action="store_true", help="smallest settings: does it run? Its numbers mean little")
    parser.add_argument("--json", action="store_true", help="print JSON only: an object a line")
    options = parser.parse_args()
    if unknown := set(options.names) - BENCHMARKS.keys():
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}")
    failed = []
    for name in options.names or BENCHMARKS:
        start = time.monotonic()
        if not options.json:
            print(f"==> {name}: {BENCHMARKS[name]}", flush=True)
        command = [sys.executable, "-m", f"benchmarks.{name}", "--json", *["--quick"] * options.quick]
        done = subprocess.run(command, env=os.environ | ENVIRONMENT, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            failed.append(name)
            continue
        result = json.loads(done.stdout.splitlines()[-1])
        if not options.quick:
            RESULTS.mkdir(exist_ok=True)
            (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        if options.json:
            print(json.dumps(result), flush=True)
        else:
            show(result)
            print(f"    {name} took {time.monotonic() - start:.0f} s\n", flush=True)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


def show(result: Mapping[str, Any]) -> None:
    """A table of the cases, and a line of what holds for all of them."""
    console = Console(width=None if sys.stdout.isatty() else 160)
    about = {key: value for key, value in result.items() if key not in ("benchmark", "machine", "results", "quick")}
    console.print("  ".join(f"{key}={_cell(value)}" for key, value in about.items()), style="dim", soft_wrap=True)
    rows = result.get("results", [])
    if not rows:
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    for column in columns:
        numbers = all(isinstance(row.get(column), int | float) for row in rows)
        table.add_column(column, justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_cell(row.get(column)) for column in columns))
    console.print(table)


def _cell(value: Any) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{key}:{_cell(held)}" for key, held in value.items())
    if isinstance(value, list):
        return " ".join(map(_cell, value))
    return f"{value:,}" if isinstance(value, int) else str(value)


if __name__ == "__main__":
    sys.exit(main())

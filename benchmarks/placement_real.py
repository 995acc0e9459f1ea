"""Placement modes on the real engines of this machine: seconds of rollout and reward of the judge's example.

    python -m benchmarks.placement_real [--slots 2] [--repeats 3] [--steps 6] [--json]

Runs `examples/genrm/dynamic.yaml` under each mode in turn, `--repeats` times, each run from the same policy. A step's
seconds are those of rollout and balance, in which controllers wait for the slowest; the first step of a run does not
count. `python examples/genrm/run.py --models-only` makes the models first.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.common import main, significant

MODES = ("colocated", "partial", "weighted", "dynamic")
EXAMPLE = "examples/genrm/dynamic.yaml"
JUDGE = Path("runs/genrm-judge/model")


def seconds(mode: str, slots: int, steps: int) -> list[float]:
    """Of each step of one run but the first."""
    with tempfile.TemporaryDirectory() as folder:
        settings = [f"placement.mode={mode}", f"train.steps={steps}", f"cluster.slots={slots}", f"run.dir={folder}"]
        words = [sys.executable, "-m", "yatt", "train", EXAMPLE, *settings, "evaluate.path=null", "run.name=run"]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"placement.mode={mode} ended with status {done.returncode}: {done.stderr[-400:]}")
        rows = [json.loads(line) for line in (Path(folder) / "run" / "metrics.jsonl").open()]
    return [row["phases"]["rollout"] + row["phases"]["balance"] for row in rows if row["step"] > 1]


def measure(quick: bool, slots: int | None, repeats: int | None, steps: int | None) -> dict[str, Any]:
    if not JUDGE.is_dir():
        sys.exit(f"{JUDGE} is not there; `python examples/genrm/run.py --models-only` makes it")
    rounds, length = (1, 3) if quick else (repeats or 3, steps or 6)
    found: dict[str, list[float]] = {mode: [] for mode in MODES}
    for _ in range(rounds):
        for mode in MODES:
            found[mode] += seconds(mode, slots or 2, length)
    results = [
        {
            "mode": mode,
            "steps": len(values),
            "median_s": significant(statistics.median(values)),
            "middle_half_s": [significant(q) for q in statistics.quantiles(values, n=4)[::2]],
            "to_colocated": significant(statistics.median(values) / statistics.median(found["colocated"])),
        }
        for mode, values in found.items()
    ]
    return {"slots": slots or 2, "results": results}


if __name__ == "__main__":
    main("placement_real", measure, flags={"slots": int, "repeats": int, "steps": int})

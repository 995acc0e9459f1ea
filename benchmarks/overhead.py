"""What the controllers cost: the share of a finished run's step time outside rollout, reward, train and sync.

python -m benchmarks.overhead runs/NAME
"""

from __future__ import annotations

import statistics
from collections import Counter
from typing import Any

from benchmarks.common import main, significant
from yatt.faces.metrics import ASIDE_PHASES
from yatt.faces.rundir import RunDirectory


def measure(quick: bool, run: str = "runs/quickstart") -> dict[str, Any]:
    folder = RunDirectory(run)
    rows = [row for row in folder.read_metrics() if row["step"] > 0] if folder.metrics.exists() else []
    if not rows:
        missing = f"no finished step in {folder.metrics}: run `make quickstart` first, or name a run's folder"
        return {"run": run, "steps": 0, "missing": missing}
    phases: Counter[str] = Counter()
    for row in rows:
        phases.update(row["phases"])
    aside = {name for name in phases if name.split("/")[0] in ASIDE_PHASES}
    step_seconds = [row["seconds"] - sum(row["phases"].get(name, 0.0) for name in aside) for row in rows]
    total = sum(step_seconds)
    outside = sum(row["overhead"] * seconds for row, seconds in zip(rows, step_seconds, strict=True))
    return {
        "run": run,
        "steps": len(rows),
        "controllers": rows[-1]["controllers"],
        "median_step_seconds": significant(statistics.median(step_seconds)),
        "share_outside_work": significant(outside / total),
        "largest_share_outside_work": significant(max(row["overhead"] for row in rows)),
        "phase_shares": {name: significant(s / total) for name, s in phases.most_common() if name not in aside},
        "driver_payload_bytes": sum(row["driver_payload_bytes"] for row in rows),
    }


if __name__ == "__main__":
    main("overhead", measure, run="runs/quickstart")

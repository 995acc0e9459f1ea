"""Placement modes on the real engines of this machine: seconds of rollout and reward of the judge's example.

    python -m benchmarks.placement_real [--slots 2] [--repeats 5] [--steps 6] [--workload example|tail] [--json]

Runs `examples/genrm/dynamic.yaml` under the modes in turn, `--repeats` times, each run from the same policy and with a
learning rate of next to nothing, so that a step has the same work under each mode. In `tail`, every HARD-th prompt is a
bare "<think>", which the policy was not taught: four of five responses to it go on up to the limit, 50 times the mean,
and most have no verdict. What fails is not drawn again. `python examples/genrm/run.py --models-only` makes the models
first.

A step's seconds are those from the first controller's begin to the last one's end of its rollout, judgements included.
The first step of a run does not count. `to_colocated` pairs a step with the same one of the colocated run of its round,
and gives the median of the ratios and the middle half of them. `cpu_s` is what the run's processes computed meanwhile,
`cores_busy` the share of this machine's cores that this is, `others` the share that other processes had, and `left_s`
the seconds less that share. Others also take what the run leaves idle: a machine of one's own takes longer than that.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from os import getpid, sched_getaffinity
from pathlib import Path
from typing import Any

from benchmarks.common import main, ratio, significant
from benchmarks.datapath_meters import TICK, tree_cpu

EXAMPLE = "examples/genrm/dynamic.yaml"
POLICY, JUDGE = Path("runs/quickstart-sft/model"), Path("runs/genrm-judge/model")
MODES = ("colocated", "partial", "dynamic")
"""Of one judge as large as the policy, weighted is partial: both split evenly."""
DATA, HARD = Path("examples/quickstart/work/train.jsonl"), 48
LONGEST, POSITIONS = 1024, 2048
WORKLOADS: dict[str, tuple[str, ...]] = {
    "example": (),
    "tail": (
        f"rollout.max_tokens={LONGEST}",
        f"model.context_length={LONGEST + 32}",
        f"reward.models.judge.context_length={LONGEST + 96}",
    ),
}
POLL_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Reading:
    """CPU seconds so far, of this process and those below it, and of all processes of the machine."""

    at: float
    tree: float
    machine: float


class Meter:
    """Readings every `POLL_SECONDS`, from a thread."""

    def __init__(self) -> None:
        self.readings: list[Reading] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._poll, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()

    def _poll(self) -> None:
        while not self._stop.wait(POLL_SECONDS):
            user, nice, system, _, _, irq, soft = map(int, Path("/proc/stat").read_text().split()[1:8])
            busy = (user + nice + system + irq + soft) / TICK
            self.readings.append(Reading(time.time(), tree_cpu(getpid(), without=-1), busy))

    def spent(self, start: float, stop: float) -> tuple[float, float]:
        """CPU seconds of the tree and of the machine between two times."""
        (tree, machine), (tree_then, machine_then) = self._at(start), self._at(stop)
        return tree_then - tree, machine_then - machine

    def _at(self, when: float) -> tuple[float, float]:
        """Between two readings, straight from one to the other."""
        for a, b in pairwise(self.readings):
            if a.at <= when <= b.at:
                part = (when - a.at) / (b.at - a.at)
                return a.tree + part * (b.tree - a.tree), a.machine + part * (b.machine - a.machine)
        raise ValueError(f"no reading around {when}")


def run(workload: str, mode: str, slots: int, steps: int) -> list[dict[str, float]]:
    """What each step but the first took in one run."""
    with tempfile.TemporaryDirectory() as folder:
        for name, model in (("policy", POLICY), ("judge", JUDGE)):
            _copy(model, Path(folder) / name)
        _write(Path(folder) / "train.jsonl", hard=workload == "tail")
        settings = [
            *(f"placement.mode={mode}", f"cluster.slots={slots}", f"train.steps={steps}"),
            *(f"run.dir={folder}", "run.name=run", f"model.path={folder}/policy", f"data.path={folder}/train.jsonl"),
            *(f"reward.models.judge.path={folder}/judge", "train.optimizer.learning_rate=1e-9"),
            *("data.shuffle=false", "rollout.max_refills=0", "evaluate.path=null"),
            *WORKLOADS[workload],
        ]
        meter = Meter()
        words = [sys.executable, "-m", "yatt", "train", EXAMPLE, *settings]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        meter.close()
        if done.returncode:
            sys.exit(f"placement.mode={mode} ended with status {done.returncode}: {done.stderr[-400:]}")
        metrics = [json.loads(line) for line in (Path(folder) / "run" / "metrics.jsonl").open()]
        events = json.loads((Path(folder) / "run" / "timeline.json").read_text())
    rows = {row["step"]: row for row in metrics}
    return [step_figures(rows[step], events, meter) for step in range(2, steps + 1)]


def _copy(model: Path, to: Path) -> None:
    """The same weights under a longer limit on positions, of which rotary embeddings have any number."""
    shutil.copytree(model, to)
    config = json.loads((to / "config.json").read_text())
    (to / "config.json").write_text(json.dumps(config | {"max_position_embeddings": POSITIONS}))


def _write(path: Path, hard: bool) -> None:
    """The example's prompts, some of them replaced by one that few responses end."""
    rows = [json.loads(line) for line in DATA.open()]
    for row in rows[::HARD] if hard else ():
        row["prompt"] = "<think>"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def step_figures(row: dict[str, Any], events: Sequence[dict[str, Any]], meter: Meter) -> dict[str, float]:
    """One step, from its row of the metrics and the run's timeline."""
    mine = [event for event in events if event["ph"] == "X" and event["args"]["step"] == row["step"]]
    phases = [event for event in mine if event["name"] == "rollout"]
    start = min(event["ts"] for event in phases) / 1e6
    stop = max(event["ts"] + event["dur"] for event in phases) / 1e6
    cpu, machine = meter.spent(start, stop)
    judged = sum(event["args"].get("tokens", 0) for event in mine if event["cat"] == "judge")
    return {
        "seconds": stop - start,
        "cpu": cpu,
        "others": machine - cpu,
        "tokens": row["response_tokens"],
        "longest": row["longest_response"],
        "mean": row["response_length_mean"],
        "judged": judged,
        "moves": len(row.get("decisions", ())) - 1,
    }


def compare(workload: str, slots: int, repeats: int, steps: int) -> list[dict[str, Any]]:
    """One row a mode. Runs take turns, and say on stderr what they took."""
    found: defaultdict[str, list[dict[str, float]]] = defaultdict(list)
    for number in range(repeats):
        for mode in MODES:
            found[mode] += run(workload, mode, slots, steps)
            print(f"{workload} {number} {mode}: {json.dumps(found[mode][1 - steps :])}", file=sys.stderr, flush=True)
    return [_row(workload, mode, slots, found) for mode in MODES]


def _row(workload: str, mode: str, slots: int, found: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    def median(name: str) -> float:
        return significant(statistics.median(step[name] for step in found[mode]))

    seconds = {name: [step["seconds"] for step in steps] for name, steps in found.items()}
    total, cores = sum(seconds[mode]), len(sched_getaffinity(0))
    paired = ratio(seconds[mode], seconds[MODES[0]])
    return {
        "workload": workload,
        "slots": slots,
        "mode": mode,
        "steps": len(seconds[mode]),
        "seconds": median("seconds"),
        "middle_half": [significant(q) for q in statistics.quantiles(seconds[mode], n=4)[::2]],
        "to_colocated": paired["ratio"],
        "to_colocated_middle_half": paired["ratio_middle_half"],
        "cpu_s": median("cpu"),
        "cores_busy": significant(sum(step["cpu"] for step in found[mode]) / total / cores),
        "others": significant(sum(step["others"] for step in found[mode]) / total / cores),
        "left_s": significant(statistics.median(step["seconds"] - step["others"] / cores for step in found[mode])),
        "mean_response": median("mean"),
        "longest_response": median("longest"),
        "response_tokens": median("tokens"),
        "judge_tokens": median("judged"),
        "moves": significant(statistics.fmean(step["moves"] for step in found[mode])),
    }


def measure(
    quick: bool, slots: int | None, repeats: int | None, steps: int | None, workload: str | None
) -> dict[str, Any]:
    if missing := [str(folder) for folder in (POLICY, JUDGE) if not folder.is_dir()]:
        return {"results": [], "missing": f"{missing[0]}: `python examples/genrm/run.py --models-only` makes it"}
    rounds, length = (1, 2) if quick else (repeats or 5, steps or 6)
    chosen = [workload] if workload else list(WORKLOADS)
    return {"results": [row for name in chosen for row in compare(name, slots or 2, rounds, length)]}


if __name__ == "__main__":
    main("placement_real", measure, flags={"slots": int, "repeats": int, "steps": int, "workload": str})

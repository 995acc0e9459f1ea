"""Whole runs on the real engines at toy size, started as a user starts them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import yaml

from yatt.cluster.forks import SHARED

ROOT = Path(__file__).parents[1]
QUICKSTART = ROOT / "examples" / "quickstart"


def make_place(folder: Path, reward: str, function: str, /, **sections: Any) -> Path:
    """A folder as a user would have it: the quickstart's model before any training, its data, a reward, a config."""
    subprocess.run([sys.executable, QUICKSTART / "prepare.py", "--out", folder / "work"], check=True, timeout=600)
    (folder / "reward.py").write_text(reward)
    config = {
        "model": {"path": "work/model", "dtype": "float32", "context_length": 64},
        "data": {"path": "work/train.jsonl"},
        "reward": {"function": f"reward.py:{function}"},
        "rollout": {
            "n": 4,
            "max_tokens": 12,
            "max_refills": 0,
            "engine_args": {"max_num_seqs": 64, "kv_cache_memory_bytes": 16 << 20},
        },
        "train": {
            "steps": 4,
            "batch_size": 8,
            "tokens_per_micro_batch": 256,
            "optimizer": {"learning_rate": 1e-3},
        },
        "cluster": {"device": "cpu", "slots": 2, "threads": 1, "controllers": 2},
        "checkpoint": {"every": 2, "keep": 3},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config | sections))
    return folder


def yatt(place: Path, *words: str, status: int = 0, timeout: float = 600) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; it must end with `status`."""
    done = subprocess.run(
        [sys.executable, "-m", "yatt", *words], cwd=place, capture_output=True, text=True, timeout=timeout
    )
    logs = "".join(f"\n== {p}\n{p.read_text()[-1500:]}" for p in place.glob("runs/*/log/*.log")) if status == 0 else ""
    assert done.returncode == status, f"{done.stdout}\n{done.stderr}{logs if done.returncode else ''}"
    return done


def rows(place: Path, name: str) -> list[dict[str, Any]]:
    """The metrics of a run, a row per step."""
    return [json.loads(line) for line in (place / "runs" / name / "metrics.jsonl").read_text().splitlines()]


class Driver(subprocess.Popen):  # type: ignore[type-arg]
    """`yatt train` under way, the leader of a process group as a shell would make it; what it says goes to a file."""

    def __init__(self, place: Path, *words: str, prefix: tuple[str, ...] = ()) -> None:
        self.place = place
        self.output = place / f"said-{time.monotonic_ns()}"
        command = [*prefix, sys.executable, "-m", "yatt", "train", "config.yaml", *words]
        with open(self.output, "w") as out:
            super().__init__(
                command,
                cwd=place,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={name: value for name, value in os.environ.items() if name != SHARED},  # all are its descendants
                start_new_session=True,
                preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # nohup may be above these tests
            )

    def said(self) -> str:
        return self.output.read_text()

    def ended(self) -> bool:
        return self.poll() is not None

    def steps(self, name: str) -> int:
        """Rows of metrics so far."""
        metrics = self.place / "runs" / name / "metrics.jsonl"
        return len(metrics.read_text().splitlines()) if metrics.exists() else 0

    def press_ctrl_c(self) -> None:
        """As a terminal does it: everyone in the foreground group is told."""
        os.killpg(self.pid, signal.SIGINT)


def descendants(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def wait_for(condition: Callable[[], Any], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.2)


def all_gone(processes: list[psutil.Process]) -> bool:
    return not [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]

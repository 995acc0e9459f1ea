"""Real runs at toy size in which one process is killed or stopped in one phase: whether each ends by itself with status
0, how long until the fault was noticed and mended, how many steps were done again, and whether the exported model is
the undisturbed run's, byte for byte.

    python -m benchmarks.chaos [--cells rank:train:kill,engine:rollout:stop] [--json]

`noticed` and `mended` are seconds from the signal to the run's own words on it; `seconds` is the whole run, starting
included. Every run trains STEPS steps on two slots, saves after every second, and is disturbed after the third. With
--quick, three cells.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import yaml

from benchmarks import chaos_hooks
from benchmarks.common import main, significant

ROOT = Path(__file__).parents[1]
ACTORS = {"engine": "GeneratorActor", "rank": "RankActor", "controller": "ControllerActor"}
PHASES = ("rollout", "train", "sync", "checkpoint")
SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}
QUICK = "engine:rollout:kill,rank:train:kill,controller:sync:kill"
STEPS, BEFORE = 6, 3
SILENCE = 15
"""Seconds after which a stopped process is taken for dead: of `cluster.silence`."""
PATIENCE = 900.0
REWARD = '''
import os, time

def even(response):
    """The share of even digits."""
    while os.path.exists(os.environ["CHAOS"] + "/wait"):
        time.sleep(0.05)
    digits = [c for c in response if c.isdigit()]
    return sum(int(c) % 2 == 0 for c in digits) / max(1, len(digits))
'''


def lay_out(place: Path) -> None:
    """The quickstart's model before any training, its data, a reward, a config, and the hooks."""
    prepare = [sys.executable, str(ROOT / "examples" / "quickstart" / "prepare.py"), "--out", str(place / "work")]
    subprocess.run(prepare, check=True, stdout=subprocess.DEVNULL)
    (place / "reward.py").write_text(REWARD)
    (place / "preload").mkdir()
    shutil.copy(chaos_hooks.__file__, place / "preload" / "sitecustomize.py")
    engine = {"max_num_seqs": 64, "kv_cache_memory_bytes": 16 << 20}
    config = {
        "model": {"path": "work/model", "dtype": "float32", "context_length": 64},
        "data": {"path": "work/train.jsonl"},
        "reward": {"function": "reward.py:even", "timeout": PATIENCE},
        "rollout": {"n": 4, "max_tokens": 12, "max_refills": 0, "engine_args": engine},
        "train": {"steps": STEPS, "batch_size": 8, "tokens_per_micro_batch": 256},
        "cluster": {"device": "cpu", "slots": 2, "threads": 1, "controllers": 2, "silence": SILENCE},
        "checkpoint": {"every": 2, "keep": 3, "export": True},
        "log": {"trackers": []},
    }
    config["train"]["optimizer"] = {"learning_rate": 1e-3}  # type: ignore[index]
    (place / "config.yaml").write_text(yaml.safe_dump(config))


class Run:
    """One run under way."""

    def __init__(self, place: Path, name: str) -> None:
        self.folder, self.chaos = place / "runs" / name, place / f"chaos-{name}"
        self.chaos.mkdir()
        paths = [str(place / "preload"), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)), str(ROOT)]
        environment = {key: value for key, value in os.environ.items() if key != "YATT_FORK_SERVERS"}
        environment |= {"CHAOS": str(self.chaos), "PYTHONPATH": os.pathsep.join(paths)}
        self.said = self.chaos / "said"
        with open(self.said, "w") as out:
            self.driver = subprocess.Popen(
                [sys.executable, "-m", "yatt", "train", "config.yaml", f"run.name={name}"],
                cwd=place,
                env=environment,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def rows(self) -> list[dict[str, Any]]:
        metrics = self.folder / "metrics.jsonl"
        return [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.exists() else []

    def until(self, condition: Callable[[], Any], what: str) -> Any:
        deadline = time.monotonic() + PATIENCE
        while not (seen := condition()):
            if time.monotonic() > deadline or (self.driver.poll() is not None):
                raise RuntimeError(f"{self.folder.name}: no {what}; it said\n{self.said.read_text()[-3000:]}")
            time.sleep(0.05)
        return seen

    def disturb(self, victim: str, phase: str, how: str) -> float:
        """Wait for the phase in a step after BEFORE, and hit the first process of the kind; when that was. Rewards
        wait until an engine is back, for the run would be over before."""
        self.until(lambda: len(self.rows()) >= BEFORE, f"step {BEFORE}")
        (self.chaos / "armed").write_text(phase)
        self.until((self.chaos / "reached").exists, f"phase {phase}")
        actors = [p for p in psutil.Process(self.driver.pid).children(recursive=True) if _is(p, ACTORS[victim])]
        target = min(actors, key=lambda p: (p.create_time(), p.pid))
        if victim == "engine":
            (self.chaos / "wait").touch()
        target.send_signal(SIGNALS[how])
        at = time.time()
        (self.chaos / "go").touch()
        if victim == "engine":
            self.until(lambda: ": back after" in self.said.read_text(), "engine that is back")
            (self.chaos / "wait").unlink()
        return at

    def end(self) -> int:
        """Wait for its end; its status."""
        try:
            return self.driver.wait(PATIENCE)
        finally:
            if self.driver.poll() is None:
                os.killpg(self.driver.pid, signal.SIGKILL)

    def model(self) -> bytes:
        file = self.folder / "model" / "model.safetensors"
        return file.read_bytes() if file.exists() else b""


def _is(process: psutil.Process, actor: str) -> bool:
    try:
        return process.cmdline()[0].startswith(f"ray::{actor}")
    except (psutil.Error, IndexError):
        return False


def cell(place: Path, name: str, calm: bytes) -> dict[str, Any]:
    """One run, disturbed, as a row."""
    victim, phase, how = name.split(":")
    began, run = time.monotonic(), Run(place, name.replace(":", "-"))
    try:
        at = run.disturb(victim, phase, how)
    finally:
        status = run.end()
    incidents = [told for row in run.rows() for told in row["incidents"]]
    text = {kind: [told["text"] for told in incidents if told["kind"] == kind] for kind in ("died", "back")}
    seconds = {
        kind: next((significant(told["at"] - at) for told in incidents if told["kind"] == kind), None)
        for kind in ("died", "back")
    }
    back_to = [int(step) for told in text["back"] for step in re.findall(r"end of step (\d+)", told)]
    row = {
        "process": victim,
        "phase": phase,
        "signal": how,
        "status": status,
        "noticed": seconds["died"],
        "mended": seconds["back"],
        "steps_again": sum(len(undone) for undone in [_undone(run, step) for step in back_to]),
        "equal": run.model() == calm != b"",
        "seconds": round(time.monotonic() - began),
        "said": text["died"][:3] if status or run.model() != calm else [],
    }
    print(json.dumps(row), file=sys.stderr, flush=True)
    return row


def _undone(run: Run, step: int) -> list[int]:
    """Steps that had been done when the run went back to the end of this one."""
    said = re.findall(r"^step +(\d+)/", run.said.read_text(), re.MULTILINE)
    done = [int(number) for number in said]
    return [number for number in set(done) if number > step and done.count(number) > 1]


def measure(*, quick: bool, cells: str | None = None) -> dict[str, Any]:
    every = ",".join(f"{v}:{p}:{s}" for s in SIGNALS for v in ACTORS for p in PHASES)
    names = (cells or (QUICK if quick else every)).split(",")
    with tempfile.TemporaryDirectory(prefix="yatt-chaos-") as folder:
        place = Path(folder)
        lay_out(place)
        calm = Run(place, "calm")
        if status := calm.end():
            raise RuntimeError(f"the undisturbed run ended with status {status}:\n{calm.said.read_text()}")
        return {
            "silence": SILENCE,
            "steps": STEPS,
            "results": [cell(place, name, calm.model()) for name in names],
        }


if __name__ == "__main__":
    main("chaos", measure, {"cells": str})

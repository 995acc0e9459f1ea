"""A whole run as a batch system starts it: from another folder, under a long TMPDIR, without a home; then used from yet
another folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from real_runs import make_place, rows
from safetensors.numpy import load_file

from yatt.config.load import load_config

pytestmark = pytest.mark.slow

REWARD = "def length(response):\n    return len(response)\n"


def yatt(folder: Path, *words: str, **environ: str) -> str:
    root = str(Path(__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-m", "yatt", *words],
        cwd=folder, env=os.environ | {"PYTHONPATH": root} | environ, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_run_is_the_same_from_anywhere(tmp_path):
    (tmp_path / "project").mkdir()
    place = make_place(
        tmp_path / "project", REWARD, "length",
        cluster={"device": "cpu", "slots": 1, "threads": 1, "controllers": 1},
        checkpoint={"every": 0, "export": True},
    )  # fmt: skip
    long = tmp_path / ("temporary_folder_of_a_batch_system/job_1234567890" * 2)
    long.mkdir(parents=True)
    start = tmp_path / "start"
    start.mkdir()
    told = yatt(start, "train", "../project/config.yaml", "train.steps=1", TMPDIR=str(long), HOME="/dev/null/none")
    assert rows(start, "run")[-1]["step"] == 1 and not (place / "runs").exists()
    next_line = next(line for line in told.splitlines() if line.startswith("next "))
    assert next_line.split(maxsplit=1)[1].endswith("-m yatt export runs/run/checkpoints/step-1 OUT")

    saved = yaml.safe_load((start / "runs/run/config.yaml").read_text())
    assert saved["model"]["path"] == str(place / "work" / "model") and saved["run"]["dir"] == f"{start}/runs"
    assert load_config(str(start / "runs/run/config.yaml"), []).reward.function == f"{place}/reward.py:length"
    out = tmp_path / "out"
    yatt(Path("/"), "export", str(start / "runs/run"), str(out))
    exported, live = (load_file(folder / "model.safetensors") for folder in (out, start / "runs/run/model"))
    assert all(np.array_equal(exported[name], live[name]) for name in live)
    assert "nothing to do" in yatt(Path("/"), "train", str(start / "runs/run/config.yaml"), "resume=auto")

"""A run whose engine and trainer are not one model, on the real engines: it ends after its first step."""

import subprocess
import sys

import pytest
import torch
from real_runs import make_place
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.slow

REWARD = """
def length(response):
    return len(response) / 10
"""
UNREFUSED = """
import sys
from yatt.config import folders
folders.mistakes = lambda *a, **k: []
from yatt.cli import main
sys.argv[0] = "yatt"
main()
"""
"""The command line, but for what refuses a folder that two readers would read differently."""


def test_a_folder_that_the_engine_reads_otherwise_ends_the_run_before_its_first_step(tmp_path):
    """config.json ties the embeddings, which the trainer obeys; the engine takes the head that is there."""
    place = make_place(tmp_path, REWARD, "length", cluster={"device": "cpu", "slots": 1, "threads": 1})
    model = place / "work" / "model" / "model.safetensors"
    weights = load_file(model)
    torch.manual_seed(0)
    weights["lm_head.weight"] = torch.randn_like(weights["model.embed_tokens.weight"])
    save_file(weights, model, metadata={"format": "pt"})
    command = [sys.executable, "-c", UNREFUSED, "train", "config.yaml", "run.name=other"]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=600)
    assert done.returncode == 1, done.stdout + done.stderr
    (complaint,) = [line for line in done.stderr.splitlines() if line.startswith("yatt: ")]
    assert "weights of version 0 are not those in the generator on slots (0,)" in complaint
    assert "where rounding stays under 0.001" in complaint and "rollout.engine_gap=warn goes on" in complaint
    run = place / "runs" / "other"
    assert not any((run / "checkpoints").glob("step-*"))

"""Each family against transformers: three steps under tensor, pipeline and sequence parallelism, and an engine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.megatron_cases import RATES, Reference, config, make_samples, shares, worst
from tests.megatron_pool import play
from tests.tiny_models import Architecture, save_tiny
from yatt.config import folders
from yatt.generation.table import ENGINES

LAYOUTS = {"one": (1, {}), "pp2": (2, {"pp": 2}), "tp2+sp": (2, {"tp": 2, "sequence_parallel": True})}
TIED = {"mistral": False, "olmo2": False, "phi3": False, "glm4": False, "gemma2": True, "gemma3_text": True}
"""Llama, Qwen2 and Qwen3 are in `test_trainer_parity`."""


@pytest.mark.parametrize("name", list(TIED))
def test_three_steps_match_transformers(tmp_path: Any, name: Architecture) -> None:
    """Forward, gradients, AdamW and export. Sequences of up to 60 tokens, windows of 16 or 20."""
    folder = save_tiny(tmp_path / name, name, tie=TIED[name], spread=2.0)
    assert folders.mistakes(folder, "model.path") == []
    reference, batches, numbers = Reference(folder), [], []
    before = reference.weights()
    for seed, rate in enumerate(RATES):
        batches.append(reference.annotate(make_samples(seed)))
        numbers.append(reference.step(batches[-1], rate))
    script = [("export",), *[("update", shares(batch, 1)) for batch in batches], ("export",)]
    for layout, (world, train) in LAYOUTS.items():
        start, *reports, end = play(world, config(folder, **train), script)[0]
        assert start.keys() == before.keys(), layout
        assert all(np.array_equal(start[key], before[key]) for key in before), f"{layout}: the round trip is exact"
        for report, (loss, norm), rate in zip(reports, numbers, RATES, strict=True):
            assert report.rollout_gap_max <= 1e-5, layout
            assert report.loss == pytest.approx(loss, abs=1e-5), layout
            assert report.grad_norm == pytest.approx(norm, rel=1e-4), layout
            assert report.learning_rate == pytest.approx(rate)
        assert worst(end, reference.weights()) <= 1e-5, layout


def test_norms_over_all_heads_go_on_from_a_checkpoint_of_another_layout(tmp_path: Path) -> None:
    folder, path = save_tiny(tmp_path / "olmo2", "olmo2", tie=False, spread=2.0), str(tmp_path / "step-1")
    reference, batches = Reference(folder), []
    for seed, rate in enumerate(RATES[:2]):
        batches.append(reference.annotate(make_samples(seed)))
        reference.step(batches[-1], rate)
    first, second = [("update", shares(batch, 1)) for batch in batches]
    world, train = LAYOUTS["tp2+sp"]
    assert play(world, config(folder, **train), [first, ("call", "save", path)])[0][-1] is None
    *_, weights = play(1, config(folder), [("call", "load", path), second, ("export",)])[0]
    assert worst(weights, reference.weights()) <= 1e-5


@pytest.mark.timeout(900)
def test_an_engine_samples_what_transformers_computes() -> None:
    """The engine's environment has to be there before Python starts, as in a run."""
    suite = Path(__file__).with_name("families_vllm_suite.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(suite)],
        cwd=suite.parents[1],
        env={**os.environ, **ENGINES["vllm"].environment("cpu"), "OMP_NUM_THREADS": "1", "YATT_TEST_ENGINE": "vllm"},
        capture_output=True,
        text=True,
        timeout=850,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert "passed" in done.stdout and "skipped" not in done.stdout

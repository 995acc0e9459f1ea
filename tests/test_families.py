"""Each family against transformers: three steps under tensor, pipeline and sequence parallelism, and an engine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.megatron_cases import RATES, Reference, config, make_samples, shares, worst
from tests.megatron_pool import play
from tests.tiny_models import Architecture, save_tiny
from yatt.config import folders
from yatt.generation.table import ENGINES
from yatt.training.attention import packed_attention, packing

pytestmark = pytest.mark.slow

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


@pytest.mark.parametrize(
    ("window", "cap", "scale"), [(None, None, None), (4, None, 0.3), (None, 2.0, 0.5), (7, 2.0, None), (100, None, 0.2)]
)
def test_windows_and_bounds_of_packed_attention(window: int | None, cap: float | None, scale: float | None) -> None:
    """Against the whole matrix of scores of each sequence, with gradients."""
    draws = torch.Generator().manual_seed(0)
    lengths, heads, groups, size = [5, 40, 17, 63, 1], 4, 2, 8
    query, key, value = (
        torch.randn(sum(lengths), count, size, generator=draws).requires_grad_() for count in (heads, groups, groups)
    )
    ours = packed_attention(
        query, key, value, packing(lengths, torch.device("cpu")), scale=scale, window=window, soft_cap=cap
    )
    rows = []
    for q, k, v in zip(*(x.split(lengths) for x in (query, key, value)), strict=True):
        k, v = (x.repeat_interleave(heads // groups, 1) for x in (k, v))
        scores = torch.einsum("ihd,jhd->hij", q, k) * (scale or size**-0.5)
        scores = scores if cap is None else cap * torch.tanh(scores / cap)
        before = torch.arange(len(q))[:, None] - torch.arange(len(q))
        hidden = (before < 0) | (before >= (window or len(q)))
        rows.append(torch.einsum("hij,jhd->ihd", scores.masked_fill(hidden, -1e30).softmax(-1), v).flatten(1))
    theirs, weight = torch.cat(rows), torch.randn(ours.shape, generator=draws)
    assert torch.allclose(ours, theirs, atol=1e-5)
    for mine, other in zip(
        torch.autograd.grad(ours, (query, key, value), weight),
        torch.autograd.grad(theirs, (query, key, value), weight),
        strict=True,
    ):
        assert torch.allclose(mine, other, atol=1e-5)

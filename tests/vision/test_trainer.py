"""The trainer of a policy that sees, against transformers: the same samples under every layout."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.megatron_cases import RATES, config, shares, worst
from tests.megatron_pool import play
from tests.vision.cases import Seeing, make_samples
from tests.vision.models import CLASSES, save_seeing

pytestmark = pytest.mark.slow

LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "one": (1, {}),
    "dp2": (2, {}),
    "tp2": (2, {"tp": 2}),
    "tp2+sp": (2, {"tp": 2, "sequence_parallel": True}),
    "pp2": (2, {"pp": 2}),
    "recompute": (1, {"recompute": "full"}),
    "tp2xpp2+sp+recompute": (4, {"tp": 2, "pp": 2, "sequence_parallel": True, "recompute": "full"}),
}


@pytest.mark.parametrize("vision", ["trained", "frozen"])
@pytest.mark.parametrize("family", list(CLASSES))
def test_three_steps_match_transformers(tmp_path: Any, family: Any, vision: str) -> None:
    """Logprobs, loss, the norm of all gradients, and each weight after three steps of AdamW; of a frozen tower none has
    changed."""
    folder = save_seeing(tmp_path / family, family, spread=2.0, tie=family == "qwen3_vl")
    reference, batches, numbers = Seeing(folder, frozen=vision == "frozen"), [], []
    before = reference.weights()
    for seed, rate in enumerate(RATES):
        batches.append(reference.annotate(make_samples(folder, seed)))
        numbers.append(reference.step(batches[-1], rate))
    after = reference.weights()
    for layout, (world, train) in LAYOUTS.items():
        if vision == "frozen" and layout not in ("one", "tp2xpp2+sp+recompute"):
            continue
        replicas = world // (train.get("tp", 1) * train.get("pp", 1))
        script = [("export",), *[("update", shares(batch, replicas)) for batch in batches], ("export",)]
        start, *reports, end = play(world, config(folder, vision=vision, **train), script)[0]
        assert start.keys() == before.keys(), layout
        assert all(np.array_equal(start[key], before[key]) for key in before), f"{layout}: the round trip is exact"
        for report, (loss, norm), rate in zip(reports, numbers, RATES, strict=True):
            assert report.rollout_gap_max <= 1e-5, layout
            assert report.loss == pytest.approx(loss, abs=1e-5), layout
            assert report.grad_norm == pytest.approx(norm, rel=1e-5), layout
            assert report.learning_rate == pytest.approx(rate)
        assert worst(end, after) <= 1e-5, layout
        if vision == "frozen":
            assert all(np.array_equal(end[name], before[name]) for name in before if "visual." in name), layout

"""The Megatron trainer against Hugging Face and torch AdamW, in every layout."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.megatron_cases import RATES, Reference, config, make_samples, shares, worst
from tests.megatron_pool import play
from tests.tiny_models import save_tiny

pytestmark = pytest.mark.slow

LAYOUTS = {
    "one": (1, {}),
    "dp2": (2, {}),
    "tp2": (2, {"tp": 2}),
    "tp2+sp": (2, {"tp": 2, "sequence_parallel": True}),
    "pp2": (2, {"pp": 2}),
    "tp2xdp2": (4, {"tp": 2}),
    "tp2xpp2+sp": (4, {"tp": 2, "pp": 2, "sequence_parallel": True}),
}
MODELS = {"qwen3": True, "qwen2": False, "llama": False}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {n: save_tiny(tmp_path_factory.mktemp(n), n, tie=tied, spread=2.0) for n, tied in MODELS.items()}


@pytest.fixture(scope="module")
def references(folders: dict[str, str]) -> dict[str, Any]:
    """Per model: the batches with HF's logprobs at each step, (loss, norm) per step, weights after 3 steps."""
    found = {}
    for name, folder in folders.items():
        reference, batches, numbers = Reference(folder), [], []
        for seed, rate in enumerate(RATES):
            samples = reference.annotate(make_samples(seed))
            batches.append(samples)
            numbers.append(reference.step(samples, rate))
        found[name] = (batches, numbers, reference.weights())
    return found


CASES = [
    *[("qwen3", layout) for layout in LAYOUTS],
    *[("qwen2", layout) for layout in ("one", "tp2xpp2+sp")],
    *[("llama", layout) for layout in ("pp2", "tp2xdp2")],
]


@pytest.mark.parametrize(("name", "layout"), CASES)
def test_three_steps_match_hugging_face(
    folders: dict[str, str], references: dict[str, Any], name: str, layout: str
) -> None:
    world, train = LAYOUTS[layout]
    replicas = world // (train.get("tp", 1) * train.get("pp", 1))
    batches, numbers, weights = references[name]
    script = [("export",), *[("update", shares(b, replicas)) for b in batches], ("export",)]
    start, *reports, end = play(world, config(folders[name], **train), script)[0]
    before = Reference(folders[name]).weights()
    assert all(np.array_equal(start[key], before[key]) for key in before), "the round trip is exact"
    for report, batch, (loss, norm), rate in zip(reports, batches, numbers, RATES, strict=True):
        assert report.rollout_gap_max <= 1e-5
        assert report.loss == pytest.approx(loss, abs=1e-5)
        assert report.grad_norm == pytest.approx(norm, rel=1e-4)
        assert report.learning_rate == pytest.approx(rate)
        assert report.trained_tokens == sum(s.trained_tokens for s in batch)
    assert worst(end, weights) <= 1e-5


@pytest.mark.parametrize(("name", "layout", "other"), [("qwen3", "tp2", "one"), ("llama", "tp2xpp2+sp", "tp2")])
def test_a_vocabulary_that_tp_does_not_divide(
    tmp_path_factory: pytest.TempPathFactory, name: str, layout: str, other: str
) -> None:
    """Padded rows are in no softmax, learn nothing and are not exported; a checkpoint goes on under another layout."""
    world, train = LAYOUTS[layout]
    folder = save_tiny(tmp_path_factory.mktemp(name), name, tie=MODELS[name], spread=2.0, vocab_size=97)
    path, reference = str(tmp_path_factory.mktemp("checkpoint") / "step-2"), Reference(folder)
    batches, numbers = [], []
    for seed, rate in enumerate(RATES):
        batches.append(reference.annotate(make_samples(seed)))
        numbers.append(reference.step(batches[-1], rate))
    first, second, third = [("update", shares(batch, 1)) for batch in batches]
    save, load, export = ("call", "save", path), ("call", "load", path), ("export",)
    found = play(world, config(folder, **train), [export, first, second, save, third, export])[0]
    for report, (loss, norm) in zip([found[1], found[2], found[4]], numbers, strict=True):
        assert report.rollout_gap_max <= 1e-5
        assert report.loss == pytest.approx(loss, abs=1e-5)
        assert report.grad_norm == pytest.approx(norm, rel=1e-4)
    assert worst(found[0], Reference(folder).weights()) == 0, "the round trip is exact"
    assert worst(found[-1], reference.weights()) <= 1e-5
    world, train = LAYOUTS[other]
    report, weights = play(world, config(folder, **train), [load, third, export])[0][1:]
    assert worst(weights, reference.weights()) <= 1e-5
    assert report.entropy == pytest.approx(found[4].entropy, abs=1e-5)

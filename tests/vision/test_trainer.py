"""The trainer of a policy that sees, against transformers: the same samples under every layout."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from tests.megatron_cases import OPTIMIZER, RATES, config, shares, worst
from tests.megatron_pool import play
from tests.vision.cases import Seeing, make_samples
from tests.vision.models import CLASSES, save_seeing
from yatt.config import folders

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


def hub(name: str) -> str:
    """The name that transformers' parameter has, of a name in a folder."""
    if name.startswith("visual."):
        return f"model.{name}"
    if name.startswith("model.") and not name.startswith(("model.visual.", "model.language_model.")):
        return name.replace("model.", "model.language_model.", 1)
    return name


@pytest.mark.parametrize("family", list(CLASSES))
def test_gradients_match_transformers(tmp_path: Any, family: Any) -> None:
    """Each weight's, relative to its largest: language and tower, several images in a sequence, sequences without, and
    responses that have an image's token themselves."""
    folder = save_seeing(tmp_path / family, family, spread=2.0)
    samples = make_samples(folder, 0)
    theirs = Seeing(folder).gradients(samples)
    for layout in ("one", "tp2+sp", "pp2", "tp2xpp2+sp+recompute"):
        world, train = LAYOUTS[layout]
        (found, *_) = play(world, config(folder, vision="trained", **train), [("gradients", shares(samples, 1))])[0]
        ours = {hub(name): value for name, value in found.items()}
        assert ours.keys() == theirs.keys(), layout
        for name, gradient in theirs.items():
            error = np.abs(ours[name] - gradient).max()
            assert error <= 1e-5 * np.abs(gradient).max() + 1e-9, (layout, name, error, np.abs(gradient).max())


def test_the_tower_has_a_learning_rate_of_its_own_and_is_saved(tmp_path: Any) -> None:
    """Three steps at a third of the rate, with a checkpoint that goes on under another layout; the folder that is
    exported is one that transformers reads, with the names that it had."""
    folder, path = save_seeing(tmp_path / "model", "qwen3_vl", spread=2.0), str(tmp_path / "step-2")
    reference, batches = Seeing(folder, vision_rate=0.3), []
    for seed, rate in enumerate(RATES):
        batches.append(reference.annotate(make_samples(folder, seed)))
        reference.step(batches[-1], rate)
    after = reference.weights()
    first, second, third = [("update", shares(batch, 1)) for batch in batches]
    optimizer = {**OPTIMIZER, "vision_rate": 0.3}

    def settings(**train: Any) -> dict[str, Any]:
        return config(folder, vision="trained", optimizer=optimizer, **train)

    save, load = ("call", "save", path), ("call", "load", path)
    there = play(2, settings(tp=2, sequence_parallel=True), [first, second, save, third, ("export",)])[0][-1]
    assert worst(there, after) <= 1e-5
    out = str(tmp_path / "exported")
    script = [load, ("update", shares(batches[2], 2)), ("export",), ("call", "save_folder", out)]
    *_, elsewhere, _ = play(2, settings(), script)[0]
    assert worst(elsewhere, after) <= 1e-5
    assert worst(Seeing(out).weights(), elsewhere) == 0
    play(1, settings(), [("export_checkpoint", path, str(tmp_path / "later"))])
    exported = Seeing(str(tmp_path / "later")).weights()
    assert exported.keys() == after.keys() and folders.mistakes(str(tmp_path / "later"), "model.path") == []
    *_, saved = play(1, settings(), [load, ("export",)])[0]
    assert worst(exported, saved) == 0


def test_names_are_those_that_the_folder_had(tmp_path: Any) -> None:
    """Also in the spelling that transformers does not write."""
    folder = save_seeing(tmp_path / "model", "qwen2_5_vl", tie=False)
    whole = {hub(name): tensor for name, tensor in load_file(tmp_path / "model" / "model.safetensors").items()}
    save_file(whole, tmp_path / "model" / "model.safetensors", {"format": "pt"})
    out = str(tmp_path / "out")
    found, _ = play(1, config(folder), [("export",), ("call", "save_folder", out)])[0]
    assert found.keys() == whole.keys()
    assert load_file(tmp_path / "out" / "model.safetensors").keys() == whole.keys()
    assert worst(Seeing(out).weights(), Seeing(folder).weights()) == 0


def test_a_reference_and_a_critic_see_too(tmp_path: Any) -> None:
    """PPO with a KL to a reference of other weights: values and logprobs of sequences with images, and updates."""
    folder = save_seeing(tmp_path / "model", "qwen3_vl", spread=2.0)
    other = save_seeing(tmp_path / "other", "qwen3_vl", spread=2.0, seed=1)
    settings = config(folder, vision="trained")
    settings["model"]["reference"] = other
    settings["algorithm"] = {"name": "ppo", "kl": {"coefficient": 0.1, "place": "loss", "kind": "k3"}}
    samples = [replace(s, reward=s.advantage) for s in Seeing(folder).annotate(make_samples(folder, 0))]
    theirs = Seeing(other).annotate(samples)
    differences = np.concatenate(
        [(r.rollout_logprobs - p.rollout_logprobs)[p.loss_mask] for p, r in zip(samples, theirs, strict=True)]
    ).astype(np.float64)
    k3 = float(np.mean(np.exp(differences) - differences - 1))
    for train in ({}, {"tp": 2, "sequence_parallel": True}):
        one, two = play(
            max(1, train.get("tp", 1)),
            {**settings, "train": {**settings["train"], **train}},
            [("update", shares(samples, 1)), ("update", shares(samples, 1))],
        )[0]
        assert one.kl_ref == pytest.approx(k3, rel=1e-4)
        assert one.rollout_gap_max <= 1e-5
        assert one.numbers["critic_grad_norm"] > 0 and two.numbers["critic_loss"] < one.numbers["critic_loss"]

"""The trainer over transformers' own modules: every family against transformers and torch AdamW, whole and sharded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from tests.megatron_cases import RATES, Reference, config, hf_logprobs, make_samples, shares, worst
from tests.megatron_pool import play
from tests.tiny_models import save_tiny
from tests.transformers_models import FAMILIES, save_family
from yatt.config import folders
from yatt.config.facts import model_facts
from yatt.config.weight_files import stored

pytestmark = pytest.mark.slow

FSDP = {"backend": "fsdp"}


def written(folder: Path) -> dict[str, np.ndarray]:
    """The tensors of a model folder."""
    files = [load_file(file) for file in sorted(folder.glob("*.safetensors"))]
    return {name: tensor.float().numpy() for tensors in files for name, tensor in tensors.items()}


@pytest.mark.parametrize("name", list(FAMILIES))
def test_three_steps_match_transformers(tmp_path: Path, name: str) -> None:
    """Forward, gradients, AdamW and the names of the folder, on one rank and on two."""
    folder = save_family(tmp_path / "model", name)
    assert folders.mistakes(folder, "model.path", any_family=True) == []
    reference, batches, numbers = Reference(folder), [], []
    weights = sum(p.numel() for p in reference.model.parameters())
    assert model_facts(folder, any_family=True).parameters == pytest.approx(weights, rel=0.02)
    for seed, rate in enumerate(RATES):
        batches.append(reference.annotate(make_samples(seed)))
        numbers.append(reference.step(batches[-1], rate))
    reference.model.save_pretrained(tmp_path / "after")
    before, after = written(tmp_path / "model"), written(tmp_path / "after")
    for ranks in (1, 2):
        out = tmp_path / f"out-{ranks}"
        updates = [("update", shares(batch, ranks)) for batch in batches]
        script = [("export",), *updates, ("export",), ("call", "save_folder", str(out))]
        start, *reports, end, _ = play(ranks, config(folder, **FSDP), script)[0]
        assert start.keys() == stored(folder).keys() == before.keys()
        assert worst(start, before) == 0, "the round trip is exact"
        for report, (loss, norm), rate in zip(reports, numbers, RATES, strict=True):
            assert report.rollout_gap_max <= 1e-5
            assert report.loss == pytest.approx(loss, abs=1e-5)
            assert report.grad_norm == pytest.approx(norm, rel=1e-4)
            assert report.learning_rate == pytest.approx(rate)
        assert worst(end, after) <= 1e-5
        loaded = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32, attn_implementation="eager")
        with torch.no_grad():
            ours, theirs = (hf_logprobs(m, batches[0][0], 1.0) for m in (loaded, reference.model))
        assert torch.allclose(ours, theirs, atol=1e-4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_family(tmp_path_factory.mktemp("model"), "qwen3_moe")


def updates(ranks: int, *seeds: int) -> list[tuple[str, Any]]:
    return [("update", shares(make_samples(seed), ranks)) for seed in seeds]


@pytest.fixture(scope="module")
def saved(folder: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[Any]]:
    """A checkpoint of three ranks after two updates, and what they did next: a report, weights."""
    path = str(tmp_path_factory.mktemp("checkpoint") / "step-2")
    script = [*updates(3, 0, 1), ("call", "save", path), *updates(3, 2), ("export",)]
    return path, play(3, config(folder, **FSDP), script)[0][-2:]


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_a_checkpoint_goes_on_upon_any_number_of_ranks(folder: str, saved: Any, ranks: int) -> None:
    """Bit for bit upon the same number."""
    path, (expected, weights) = saved
    script = [("call", "load", path), *updates(ranks, 2), ("export",)]
    _, report, found = play(ranks, config(folder, **FSDP), script)[0]
    assert report.loss == pytest.approx(expected.loss, abs=1e-6)
    assert report.grad_norm == pytest.approx(expected.grad_norm, rel=1e-4)
    assert report.learning_rate == expected.learning_rate
    assert worst(found, weights) <= (0 if ranks == 3 else 1e-5)


def test_a_checkpoint_becomes_a_folder_in_one_process(folder: str, saved: Any, tmp_path: Path) -> None:
    path, _ = saved
    play(1, config(folder, **FSDP), [("export_checkpoint", path, str(tmp_path / "out"))])
    *_, weights = play(1, config(folder, **FSDP), [("call", "load", path), ("export",)])[0]
    assert worst(written(tmp_path / "out"), weights) == 0
    assert folders.mistakes(str(tmp_path / "out"), "model.path", any_family=True) == []


def test_a_checkpoint_of_another_trainer_is_refused(tmp_path: Path) -> None:
    folder, path = save_tiny(tmp_path / "model", "qwen3", spread=2.0), str(tmp_path / "saved")
    assert play(1, config(folder), [("call", "save", path)])[0] == [None]
    ((_, kind, text),) = play(1, config(folder, **FSDP), [("call", "load", path)])[0]
    assert kind == "CheckpointError"
    assert text.endswith("was written by train.backend=megatron; go on with it, not with fsdp")


def test_recomputing_changes_nothing(folder: str) -> None:
    script = [*updates(2, 0, 1), ("export",)]
    *first, weights = play(2, config(folder, **FSDP), script)[0]
    *second, found = play(2, config(folder, recompute="full", **FSDP), script)[0]
    assert [one.loss for one in first] == pytest.approx([one.loss for one in second], abs=1e-7)
    assert worst(found, weights) <= 1e-6


@pytest.mark.parametrize("ranks", [1, 2])
def test_bfloat16_computes_with_rounded_float32_weights(folder: str, ranks: int, tmp_path: Path) -> None:
    """Steps far below a bfloat16's spacing add up in the weights that are kept, and a folder has them rounded."""
    settings = config(folder, optimizer={"learning_rate": 1e-5, "weight_decay": 0.0}, **FSDP)
    settings["model"]["dtype"] = "bfloat16"
    start, *reports, end, _ = play(
        ranks, settings, [("export",), *updates(ranks, *range(12)), ("export",), ("call", "save", str(tmp_path))]
    )[0]
    assert all(np.isfinite(report.loss) for report in reports)
    rounded = torch.from_numpy(end["lm_head.weight"]).bfloat16().float().numpy()
    assert np.array_equal(end["lm_head.weight"], rounded)
    moved = np.concatenate([(end[name] != start[name]).ravel() for name in start])
    assert 0.005 < moved.mean() < 0.9
    kept = np.concatenate([t.ravel() for n, t in written(tmp_path).items() if n.startswith("model.lm_head.weight@")])
    masters, first = kept.reshape(start["lm_head.weight"].shape), written(Path(folder))["lm_head.weight"]
    assert (masters != first).mean() > 0.9


def test_a_value_head_is_megatrons(tmp_path: Path) -> None:
    """A classifier's score, and what a critic is where its folder has none."""
    folder = save_tiny(tmp_path / "model", "qwen3", spread=2.0)
    settings = {**config(folder, **FSDP), "algorithm": {"name": "reward_model"}}
    assert play(1, settings, [("call", "save_folder", str(tmp_path / "out"))])[0] == [None]
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert model.config.num_labels == 1 and not model.score.weight.any()


def test_what_transformers_cannot_load_is_refused_on_every_rank(tmp_path: Path) -> None:
    folder = Path(save_family(tmp_path / "model", "llama"))
    tensors = load_file(folder / "model.safetensors")
    save_file({n: t for n, t in tensors.items() if "q_proj" not in n}, folder / "model.safetensors", {"format": "pt"})
    for (result,) in play(2, config(str(folder), **FSDP), [("export",)]):
        assert result[1] == "ConfigError"
        assert "its weight files have no model.layers.0.self_attn.q_proj.weight and 1 more tensors" in result[2]

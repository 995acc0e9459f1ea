"""Adapters of the Megatron trainer against peft, transformers and torch's AdamW, in every layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from tests.megatron_cases import RATES, Reference, config, make_samples, shares, worst
from tests.megatron_pool import play
from tests.tiny_models import save_tiny
from yatt.training.megatron.lora import drawn

pytestmark = pytest.mark.slow

RANK, ALPHA, SEED = 4, 12.0, 0
LAYOUTS = {
    "one": (1, {}),
    "dp2": (2, {}),
    "tp2": (2, {"tp": 2}),
    "tp2+sp": (2, {"tp": 2, "sequence_parallel": True}),
    "pp2": (2, {"pp": 2}),
    "recompute": (1, {"recompute": "full"}),
    "tp2xpp2+sp": (4, {"tp": 2, "pp": 2, "sequence_parallel": True, "recompute": "full"}),
}
CASES = [
    *[("qwen3", "all-linear", layout) for layout in LAYOUTS],
    *[("qwen2", ["q_proj", "v_proj", "up_proj"], layout) for layout in ("one", "tp2+sp")],
    *[("phi3", "all-linear", layout) for layout in ("one", "tp2")],
    *[("gemma2", ["o_proj", "k_proj", "down_proj", "gate_proj"], layout) for layout in ("tp2",)],
]


class PeftReference(Reference):
    """peft's adapters beside transformers' model; A as the trainer draws it."""

    def __init__(self, folder: str, targets: Any) -> None:
        self._targets = targets
        super().__init__(folder)
        self.optimizer = torch.optim.AdamW(
            [p for p in self.model.parameters() if p.requires_grad],
            lr=1e-3,
            betas=(0.9, 0.95),
            eps=1e-6,
            weight_decay=0.1,
        )

    def open(self, folder: str) -> Any:
        model = get_peft_model(
            super().open(folder), LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=self._targets, bias="none")
        )
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if ".lora_A." in name:
                    module = name.removeprefix("base_model.model.").removesuffix(".lora_A.default.weight")
                    parameter.copy_(drawn(module, *parameter.shape, SEED))
        return model

    def weights(self) -> dict[str, np.ndarray]:
        return merged(self.model)


def merged(model: Any) -> dict[str, np.ndarray]:
    whole = model.merge_and_unload()
    tied = whole.config.tie_word_embeddings
    state = whole.state_dict().items()
    return {name: value.clone().numpy() for name, value in state if not (tied and name == "lm_head.weight")}


def lora(folder: str, targets: Any = "all-linear", **train: Any) -> dict[str, Any]:
    return config(folder, lora={"rank": RANK, "alpha": ALPHA, "targets": targets}, **train)


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Of a model and targets: the folder, batches with the sampler's logprobs, (loss, norm) of 3 steps, the end."""
    found: dict[Any, Any] = {}

    def of(name: str, targets: Any) -> Any:
        key = (name, str(targets))
        if key not in found:
            folder = save_tiny(tmp_path_factory.mktemp(name), name, spread=2.0)
            reference, batches, numbers = PeftReference(folder, targets), [], []
            for seed, rate in enumerate(RATES):
                batches.append(reference.annotate(make_samples(seed)))
                numbers.append(reference.step(batches[-1], rate))
            found[key] = (folder, batches, numbers, reference.weights())
        return found[key]

    return of


@pytest.mark.parametrize(("name", "targets", "layout"), CASES)
def test_three_steps_match_peft(references: Any, name: str, targets: Any, layout: str) -> None:
    world, train = LAYOUTS[layout]
    replicas = world // (train.get("tp", 1) * train.get("pp", 1))
    folder, batches, numbers, weights = references(name, targets)
    script = [("export",), *[("update", shares(b, replicas)) for b in batches], ("export",)]
    start, *reports, end = play(world, lora(folder, targets, **train), script)[0]
    before = Reference(folder).weights()
    assert all(np.array_equal(start[key], before[key]) for key in before), "adapters begin as nothing"
    for report, (loss, norm) in zip(reports, numbers, strict=True):
        assert report.rollout_gap_max <= 1e-5
        assert report.loss == pytest.approx(loss, abs=1e-5)
        assert report.grad_norm == pytest.approx(norm, rel=1e-4)
    assert worst(end, weights) <= 1e-5
    assert worst(before, weights) > 1e-3, "they have learnt"


def test_a_checkpoint_has_adapters_alone_and_goes_on(references: Any, tmp_path: Path) -> None:
    """Bit for bit under the same layout, alike under another; what is exported of it is what peft makes of it."""
    folder, batches, _, _ = references("qwen3", "all-linear")
    path, out, beside = (str(tmp_path / name) for name in ("c", "merged", "adapter"))
    first, second, third = [("update", shares(batch, 1)) for batch in batches]
    save, load, export = ("call", "save", path), ("call", "load", path), ("export",)
    settings = lora(folder)
    found = play(1, settings, [first, second, save, third, export, load, export])[0]
    third_report, weights, saved = found[3], found[4], found[6]
    written = sum(file.stat().st_size for file in Path(path).glob("*.safetensors"))
    assert written < (Path(folder) / "model.safetensors").stat().st_size, "adapters and two moments, no weight"
    report, again = play(1, settings, [load, third, export])[0][1:]
    assert (report.loss, report.grad_norm) == (third_report.loss, third_report.grad_norm)
    assert all(np.array_equal(again[name], weights[name]) for name in weights)
    assert worst(play(2, lora(folder, tp=2), [load, third, export])[0][-1], weights) <= 1e-5
    refused = play(1, config(folder), [load])[0][-1]
    assert refused[:2] == ("error", "CheckpointError") and "train.lora" in refused[2]
    play(1, settings, [("export_checkpoint", path, out)])
    play(1, settings, [("export_checkpoint", path, beside, True)])
    merged_model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokens = torch.arange(3, 40)[None]
    with torch.no_grad():
        expected, before = merged_model(tokens).logits, plain(tokens).logits
        by_peft = PeftModel.from_pretrained(plain, beside)(tokens).logits
    assert float((by_peft - expected).abs().max()) <= 1e-4
    assert float((by_peft - before).abs().max()) > 1e-2
    state = {name: value.numpy() for name, value in merged_model.state_dict().items() if name in saved}
    assert worst({name: saved[name] for name in state}, state) == 0

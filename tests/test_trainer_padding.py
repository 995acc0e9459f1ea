"""Padding tokens in what is trained on, against transformers' own backward: the input embedding of `pad_token_id` gets
no gradient, the output layer's use of the same row does; and where a reward model's score is read."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from tests.megatron_cases import RATES, Reference, config, make_samples, pair, shares, worst
from tests.megatron_pool import play
from tests.tiny_models import save_tiny, tiny_model, tiny_tokenizer
from yatt.config.facts import model_facts
from yatt.errors import ConfigError
from yatt.types import Pair, Sample

pytestmark = pytest.mark.slow

PAD, EOS, LAST = 0, 1, 95
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "one": (1, {}),
    "dp2": (2, {}),
    "tp2": (2, {"tp": 2}),
    "tp2+sp": (2, {"tp": 2, "sequence_parallel": True}),
    "pp2": (2, {"pp": 2}),
    "tp2xpp2+sp": (4, {"tp": 2, "pp": 2, "sequence_parallel": True}),
}
# Architecture, whether tied, the config's pad_token_id and whose row that is. 95 lies in the second of two shards.
MODELS: dict[str, tuple[Any, bool, int | None, int | None]] = {
    "tied": ("qwen3", True, PAD, PAD),
    "untied": ("llama", False, PAD, PAD),
    "eos": ("qwen2", True, EOS, EOS),
    "last shard": ("llama", False, LAST, LAST),
    "counted from the end": ("qwen3", True, -1, LAST),
    "none": ("qwen3", True, None, None),
}
CASES = [
    *[("tied", layout) for layout in ("one", "tp2+sp", "pp2", "tp2xpp2+sp")],
    *[("untied", layout) for layout in ("dp2", "tp2", "pp2")],
    *[("eos", layout) for layout in ("one", "tp2+sp")],
    ("last shard", "tp2+sp"),
    ("counted from the end", "tp2"),
    ("none", "one"),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Models whose padding row is zero, as transformers draws it and many a model keeps it."""
    made = {}
    for name, (architecture, tied, pad, row) in MODELS.items():
        model = tiny_model(architecture, tie=tied, spread=2.0, pad_token_id=None)
        if row is not None:
            with torch.no_grad():
                model.get_input_embeddings().weight[row] = 0
        folder = tmp_path_factory.mktemp("padded")
        model.save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)
        name_padding(folder, pad)
        made[name] = str(folder)
    return made


def name_padding(folder: Path, pad: int | None) -> None:
    """Put it into the config, past what transformers lets through where it saves."""
    described = json.loads((folder / "config.json").read_text()) | {"pad_token_id": pad}
    (folder / "config.json").write_text(json.dumps(described))


def padded(samples: list[Sample], row: int, seed: int) -> list[Sample]:
    """The same with a fifth of the tokens replaced by this one, in prompts and responses, at the ends of some."""
    random = np.random.default_rng(seed)
    made = []
    for number, sample in enumerate(samples):
        here = random.random(len(sample.tokens)) < 0.2
        here[-1] |= number % 2 == 0
        made.append(replace(sample, tokens=np.where(here, row, sample.tokens).astype(np.int32)))
    return made


@pytest.fixture(scope="module")
def references(folders: dict[str, str]) -> dict[str, Any]:
    """Per model: the batches with transformers' logprobs at each step, (loss, norm) per step, weights after all."""
    found = {}
    for name, folder in folders.items():
        row = MODELS[name][3]
        reference, batches, numbers = Reference(folder), [], []
        for seed, rate in enumerate(RATES[:2]):
            samples = reference.annotate(padded(make_samples(seed), PAD if row is None else row, seed))
            batches.append(samples)
            numbers.append(reference.step(samples, rate))
        found[name] = (batches, numbers, reference.weights())
    return found


@pytest.mark.parametrize(("name", "layout"), CASES)
def test_padding_tokens_learn_as_in_transformers(
    folders: dict[str, str], references: dict[str, Any], name: str, layout: str
) -> None:
    world, train = LAYOUTS[layout]
    replicas = world // (train.get("tp", 1) * train.get("pp", 1))
    batches, numbers, weights = references[name]
    script = [*[("update", shares(b, replicas)) for b in batches], ("export",)]
    *reports, end = play(world, config(folders[name], **train), script)[0]
    for report, (loss, norm) in zip(reports, numbers, strict=True):
        assert report.rollout_gap_max <= 1e-5
        assert report.loss == pytest.approx(loss, abs=1e-5)
        assert report.grad_norm == pytest.approx(norm, rel=1e-4)
    assert worst(end, weights) <= 1e-5
    row, tied = MODELS[name][3], MODELS[name][1]
    if row is not None:
        # Weight decay leaves zeros zeros; what moves a tied row is the output layer's use of it.
        assert end["model.embed_tokens.weight"][row].any() == tied
        assert tied or end["lm_head.weight"][row].any()


def test_a_zero_row_does_not_take_the_step(folders: dict[str, str], references: dict[str, Any]) -> None:
    """Norms amplify what is done to a row of zeros: with its gradient, the norm is many times what it is without."""
    samples = references["tied"][0][0]
    free = Reference(folders["tied"])
    free.model.get_input_embeddings().padding_idx = None
    _, amplified = free.step(samples, RATES[0])
    report = play(1, config(folders["tied"]), [("update", shares(samples, 1))])[0][0]
    assert report.grad_norm < amplified / 5


# --- reward models ---------------------------------------------------------------------------------------------------


def pairs(ends: tuple[int, ...]) -> list[Pair]:
    """Pairs of sequences with padding tokens within, which end as `ends` says."""
    random = np.random.default_rng(0)
    made = []
    for uid in range(4):
        halves = []
        for _ in range(2):
            tokens = random.integers(3, 96, int(random.integers(6, 20)))
            tokens[2] = ends[-1]
            halves.append(np.concatenate([tokens, ends]).astype(np.int32))
        masks = [np.arange(len(half)) > 3 for half in halves]
        made.append(pair(uid, halves, masks, 0.0))
    return made


def scores(model: Any, both: Pair) -> list[torch.Tensor]:
    halves = [torch.from_numpy(half.tokens.astype(np.int64))[None] for half in both.sequences]
    return [model(half).logits[0, 0] for half in halves]


@pytest.mark.parametrize(
    ("pad", "ends", "layout"),
    [
        (PAD, (EOS,), "one"),
        (PAD, (EOS, PAD, PAD), "one"),
        (EOS, (EOS,), "tp2+sp"),  # read before the end, as the model was trained
        (EOS, (EOS, EOS), "pp2"),
        (None, (EOS, PAD), "one"),
    ],
)
def test_a_classifier_s_score_is_read_where_transformers_reads_it(
    tmp_path: Path, pad: int | None, ends: tuple[int, ...], layout: str
) -> None:
    folder = save_tiny(tmp_path / "in", "qwen3", spread=2.0, labels=1, pad_token_id=pad)
    if pad is None:  # no padding token is left to choose, as in a tokenizer whose own is its end
        tokenizer = tiny_tokenizer()
        tokenizer.pad_token = tokenizer.eos_token
        tokenizer.save_pretrained(folder)
    world, train = LAYOUTS[layout]
    batch = pairs(ends)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    gaps = [chosen - rejected for chosen, rejected in (scores(model, one) for one in batch)]
    loss = -F.logsigmoid(torch.stack(gaps)).mean()
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    settings = {**config(folder, **train), "algorithm": {"name": "reward_model"}}
    out = str(tmp_path / "out")
    before, report, _ = play(
        world,
        settings,
        [("evaluate", shares(batch, 1)), ("update", shares(batch, 1)), ("call", "save_folder", out)],
    )[0]
    assert before.loss == report.loss == pytest.approx(loss.item(), abs=1e-5)
    assert report.grad_norm == pytest.approx(norm.item(), rel=1e-4)
    # What is written reads its scores at the same tokens.
    written = AutoModelForSequenceClassification.from_pretrained(out, dtype=torch.float32)
    after = play(world, {**settings, "model": {"path": out, "dtype": "float32"}}, [("evaluate", shares(batch, 1))])
    gaps = [chosen - rejected for chosen, rejected in (scores(written, pair) for pair in batch)]
    assert after[0][0].loss == pytest.approx(-F.logsigmoid(torch.stack(gaps)).mean().item(), abs=1e-5)
    assert written.config.pad_token_id == pad


# --- before a run ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("pad", "loads"), [(96, False), (-97, False), (-1, True), (95, True), (None, True)])
def test_a_padding_token_beyond_the_vocabulary_is_refused_as_in_transformers(
    tmp_path: Path, pad: int | None, loads: bool
) -> None:
    folder = save_tiny(tmp_path, "llama")
    name_padding(tmp_path, pad)
    if loads:
        assert model_facts(folder).padding == pad
        AutoModelForCausalLM.from_pretrained(folder)
        return
    with pytest.raises(ConfigError, match=rf"pad_token_id={pad} is no token of its vocab_size=96"):
        model_facts(folder)
    with pytest.raises(AssertionError, match="within num_embeddings"):
        AutoModelForCausalLM.from_pretrained(folder)

"""The recipes: at every size that the page gives they can be planned, and at toy size they read the data they name."""

from __future__ import annotations

import base64
import io
import json
import re

import pytest
import torch
from pages import ROOT, blocks, commands
from PIL import Image
from test_docs import config_and_settings
from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3ForSequenceClassification
from typer.main import get_command

from tests.environments.templates import tokenizer
from tests.vision.models import save_seeing
from yatt.cli import app
from yatt.config.load import load_config
from yatt.config.rules import check, check_plan
from yatt.data.check import check_data, check_scoring

RECIPES = ROOT / "examples" / "recipes"
PAGE = ROOT / "docs" / "recipes.md"


def planned():
    """Config, devices and settings of each plan of the page."""
    plan = get_command(app).commands["plan"]
    for block in blocks(PAGE.read_text()):
        for words in commands(block):
            if words[:2] == ["yatt", "plan"]:
                given = plan.make_context("plan", words[2:]).params
                config, settings = config_and_settings(given)
                yield config, int(given["devices"]), settings


@pytest.mark.parametrize(("config", "devices", "words"), [*planned()], ids=str)
def test_a_size_can_be_planned(config, devices, words, monkeypatch):
    """Layout, lengths and batches divide; the simulation itself is `yatt plan`'s."""
    monkeypatch.chdir(ROOT)
    check_plan(load_config(config, [*words, f"cluster.slots={devices}"]), [devices])


def test_every_recipe_is_planned_at_three_sizes():
    told: dict[str, set[int]] = {}
    for config, devices, _ in planned():
        told.setdefault(config, set()).add(devices)
    drawn = {str(path.relative_to(ROOT)) for path in RECIPES.rglob("*.yaml")}
    drawn -= {f"examples/recipes/ultrafeedback/{name}.yaml" for name in ("sft", "reward_model")}  # nothing is drawn
    assert told == {name: {1, 8, 64} for name in drawn}


def test_the_settings_of_dapo_are_the_papers(monkeypatch):
    """arXiv 2503.14476, section 4.1."""
    monkeypatch.chdir(ROOT)
    config = load_config("examples/recipes/dapo.yaml", [])
    algorithm, train, rollout = config.algorithm, config.train, config.rollout
    assert (algorithm.clip_low, algorithm.clip_high, algorithm.aggregate) == (0.2, 0.28, "token_mean")
    assert (algorithm.kl.coefficient, algorithm.overlong, algorithm.overlong_buffer) == (0, "penalty", 4096)
    assert (train.batch_size, rollout.n, train.batch_size * rollout.n / train.updates_per_step) == (512, 16, 512)
    assert rollout.max_tokens - algorithm.overlong_buffer == 16384 and rollout.filter == "all_equal"
    assert (train.optimizer.learning_rate, train.optimizer.warmup_steps / train.updates_per_step) == (1e-6, 20)


# --- at toy size ------------------------------------------------------------------------------------------------------

TOY = [
    *("model.dtype=float32", "model.context_length=640", "rollout.max_tokens=32", "train.tp=1", "train.steps=2"),
    *("train.tokens_per_micro_batch=2048", "train.batch_size=4", "train.updates_per_step=1", "evaluate.size=null"),
    *("cluster.device=cpu", "cluster.slots=1", "train.optimizer.warmup_steps=0"),
    *("train.offload=false", "critic.warmup_steps=0"),
]
TALK = [{"role": "user", "content": "Name a colour."}, {"role": "assistant", "content": "Red."}]
OTHER = [TALK[0], {"role": "assistant", "content": "A colour."}]


def picture():
    out = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(out, "PNG")
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


ROWS = {
    "gsm8k": {"question": "Tom has 3 apples and buys 4. How many?", "answer": "He has 3 + 4 = <<3+4=7>>7.\n#### 7"},
    "agent": {"question": "Tom has 3 apples and buys 4. How many?", "answer": "He has 3 + 4 = <<3+4=7>>7.\n#### 7"},
    "dapo": {
        "data_source": "math_dapo",
        "prompt": [{"role": "user", "content": "What is 3 + 4? End with 'Answer: $Answer'."}],
        "ability": "MATH",
        "reward_model": {"ground_truth": "7", "style": "rule-lighteval/MATH_v2"},
    },
    "geometry": {"images": [picture()], "problem": "<image>Find x.", "answer": "7"},
    "ultrafeedback/sft": {"prompt": "Name a colour.", "prompt_id": "a", "messages": TALK},
    "ultrafeedback/reward_model": {"prompt": "Name a colour.", "chosen": TALK, "rejected": OTHER},
    "ultrafeedback/ppo": {"prompt": "Name a colour.", "chosen": TALK, "rejected": OTHER},
}
"""A row of each data set, with the columns as the Hub has them."""


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Tiny folders: a policy whose template knows of tools, a classifier of one label, a policy that sees."""
    out, words = tmp_path_factory.mktemp("models"), tokenizer("qwen3")
    sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
    sizes |= dict(num_key_value_heads=1, head_dim=16, max_position_embeddings=1024, vocab_size=len(words))
    ends = dict(pad_token_id=words.pad_token_id, eos_token_id=words.eos_token_id, bos_token_id=None)
    torch.manual_seed(0)
    for name, kind, labels in (
        ("policy", Qwen3ForCausalLM, {}),
        ("judge", Qwen3ForSequenceClassification, {"num_labels": 1}),
    ):
        kind(Qwen3Config(**sizes, **ends, **labels)).save_pretrained(out / name)
        words.save_pretrained(out / name)
    save_seeing(out / "sees", "qwen2_5_vl")
    return out


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_at_toy_size_it_reads_its_data(name, models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text((json.dumps(ROWS[name]) + "\n") * 8)
    sees = name == "geometry"
    words = [*TOY, f"model.path={models / ('sees' if sees else 'policy')}", "data.path=rows.jsonl"]
    words += ["evaluate.path=rows.jsonl"]
    text = (RECIPES / f"{name}.yaml").read_text()
    words += ["rollout.engine_args.tensor_parallel_size=1"] * ("tensor_parallel_size" in text)
    if sees:  # its tokenizer has no backslash, its context is short
        words += ["data.system_prompt=null", "model.context_length=256", "plan.prompt_tokens=100"]
    if name == "dapo":
        words += ["algorithm.overlong_buffer=8"]
    if name.endswith("ppo"):
        words += [f"critic.path={models / 'judge'}", f"reward.models.preference.path={models / 'judge'}"]
        words += ["reward.models.preference.context_length=640"]
    config = load_config(str(RECIPES / f"{name}.yaml"), words)
    check(config)
    assert check_data(config) == []
    check_scoring(config)


@pytest.mark.parametrize("path", sorted(RECIPES.rglob("*.yaml")), ids=lambda path: path.stem)
def test_a_recipe_says_what_it_reads(path):
    text = path.read_text()
    assert text.startswith("# ") and re.search(r"For \d+ devices", text)
    load_config(str(path), [])

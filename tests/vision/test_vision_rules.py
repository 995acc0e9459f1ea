"""Rules of a policy that sees, and of its folder."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from tests.tiny_models import save_tiny
from tests.vision.models import CLASSES, save_seeing
from yatt.config import folders
from yatt.config.facts import model_facts
from yatt.config.load import load_config
from yatt.config.rules import check
from yatt.config.schema import Config
from yatt.errors import ConfigError
from yatt.models.table import FAMILIES
from yatt.models.vision import SIZES as TOWER_SIZES
from yatt.models.vision import VALUES
from yatt.placement.cost import trainer_memory

Make = Callable[..., Path]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("bases")
    return {name: save_seeing(root / name, name, tie=True) for name in CLASSES} | {"text": save_tiny(root / "text")}


@pytest.fixture
def make(bases: dict[str, str], tmp_path: Path) -> Make:
    """A copy of a base folder with these fields in a part of its config.json."""
    count = iter(range(1000))

    def copy(base: str, part: str = "", **fields: Any) -> Path:
        folder = Path(shutil.copytree(bases[base], tmp_path / f"{base}-{next(count)}"))
        config = json.loads((folder / "config.json").read_text())
        target = config[part] if part else config
        target |= fields
        for name in [name for name, value in fields.items() if value is ...]:
            del target[name]
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return copy


def said(folder: Path) -> str:
    (line,) = folders.mistakes(str(folder), "model.path", weights=False)
    return line.removeprefix(f"model.path={folder}: ")


VISION, TEXT = "vision_config", "text_config"
SECTIONS = {"rope_type": "default", "rope_theta": 1e4}


@pytest.mark.parametrize(
    ("base", "part", "fields", "line"),
    [
        (
            "qwen3_vl",
            VISION,
            {"hidden_act": "silu"},
            'vision_config has hidden_act="silu", which cannot be trained; only',
        ),
        ("qwen3_vl", VISION, {"temporal_patch_size": 1}, "vision_config has temporal_patch_size=1, which cannot be"),
        ("qwen3_vl", VISION, {"in_channels": 1}, "vision_config has in_channels=1, which cannot be trained; only"),
        ("qwen3_vl", VISION, {"head_dim": 8}, "vision_config has head_dim=8, which cannot be trained; remove it"),
        (
            "qwen3_vl",
            VISION,
            {"rope_parameters": {"rope_type": "axial", "rope_theta": 100.0}},
            'vision_config has rope_parameters={"rope_type": "axial", "rope_theta": 100.0}, which cannot be trained',
        ),
        ("qwen3_vl", VISION, {"out_hidden_size": 32}, "vision_config has out_hidden_size=32, and hidden_size=64; mend"),
        ("qwen3_vl", VISION, {"num_heads": 3}, "vision_config has hidden_size=32 and num_heads=3; a head of the tower"),
        ("qwen3_vl", VISION, {"depth": "3"}, "config.json has no whole number above 0 under vision_config.depth"),
        (
            "qwen3_vl",
            VISION,
            {"num_position_embeddings": 24},
            "vision_config has num_position_embeddings=24, which is no",
        ),
        ("qwen3_vl", VISION, {"deepstack_visual_indexes": [1, 0]}, "vision_config has deepstack_visual_indexes=[1, 0]"),
        ("qwen3_vl", VISION, {"deepstack_visual_indexes": [0, 3]}, "vision_config has deepstack_visual_indexes=[0, 3]"),
        ("qwen2_5_vl", VISION, {"window_size": 4}, "vision_config has window_size=4, under the 8 pixels of a token"),
        ("qwen2_5_vl", VISION, {"fullatt_block_indexes": 1}, "vision_config has fullatt_block_indexes=1, which is no"),
        ("qwen2_5_vl", "", {"vision_config": ...}, "config.json has no vision_config"),
        ("qwen2_5_vl", TEXT, {"tie_word_embeddings": False}, "tie_word_embeddings=false in text_config, and true at"),
        (
            "qwen3_vl",
            "",
            {"tie_word_embeddings": ...},
            "tie_word_embeddings=true in text_config, and not there at the top",
        ),
        (
            "qwen3_vl",
            TEXT,
            {"attention_bias": True},
            "attention_bias=true cannot be trained; only attention_bias=false",
        ),
        ("qwen3_vl", "", {"quantization_config": {"bits": 4}}, 'quantization_config={"bits": 4} cannot be trained'),
        (
            "qwen2_5_vl",
            TEXT,
            {"rope_parameters": SECTIONS | {"mrope_section": [2, 2, 2]}},
            "rope_parameters has mrope_section=[2, 2, 2], which are not three whole numbers that add up to 8",
        ),
        (
            "qwen2_5_vl",
            TEXT,
            {"rope_parameters": SECTIONS},
            "rope_parameters has mrope_section=null, which are not three",
        ),
        (
            "qwen2_5_vl",
            TEXT,
            {"rope_parameters": SECTIONS | {"mrope_section": [4, 2, 2], "mrope_interleaved": True}},
            "rope_parameters needs mrope_interleaved=false, as a Qwen2_5_VL has it",
        ),
        (
            "qwen3_vl",
            TEXT,
            {"rope_parameters": SECTIONS | {"mrope_section": [6, 5, 5]}},
            "rope_parameters needs mrope_interleaved=true, as a Qwen3VL has it",
        ),
        (
            "qwen3_vl",
            TEXT,
            {"rope_parameters": SECTIONS | {"rope_type": "linear", "factor": 2.0, "mrope_section": [6, 5, 5]}},
            'rope_parameters has rope_type="linear", which cannot be trained; use one of default',
        ),
    ],
)
def test_a_field_that_is_not_trained_is_refused(
    make: Make, base: str, part: str, fields: dict[str, Any], line: str
) -> None:
    assert said(make(base, part, **fields)).startswith(line)


def test_experts_are_refused(make: Make) -> None:
    folder = make("qwen3_vl", architectures=["Qwen3VLMoeForConditionalGeneration"])
    with pytest.raises(ConfigError, match="architecture Qwen3VLMoeForConditionalGeneration is not supported; use one"):
        model_facts(str(folder))


def test_older_spellings_of_a_folder(make: Make) -> None:
    """The language model's fields at the top, `rope_scaling` with the type mrope, and names with other prefixes: the
    same model for transformers, and the same facts here."""
    folder = make("qwen2_5_vl")
    facts, config = model_facts(str(folder)), json.loads((folder / "config.json").read_text())
    model = AutoModelForImageTextToText.from_pretrained(folder).float()
    tokens = torch.arange(3, 40)[None]
    text = config.pop("text_config")
    rope = text.pop("rope_parameters")
    text |= {
        "rope_theta": rope["rope_theta"],
        "rope_scaling": {"type": "mrope", "mrope_section": rope["mrope_section"]},
    }
    flat = {**text, **config}
    flat["vision_config"] = {
        k: v for k, v in flat["vision_config"].items() if k not in ("rope_parameters", "model_type")
    }
    (folder / "config.json").write_text(json.dumps(flat))
    assert folders.mistakes(str(folder), "model.path") == []
    assert model_facts(str(folder)) == facts
    renamed = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        new = f"model.{name}" if name.startswith("visual.") else name.replace("model.", "model.language_model.", 1)
        renamed[new] = tensor
    save_file(renamed, folder / "model.safetensors", {"format": "pt"})
    assert folders.mistakes(str(folder), "model.path") == []
    assert model_facts(str(folder)) == facts
    older = AutoModelForImageTextToText.from_pretrained(folder).float()
    with torch.no_grad():
        assert torch.equal(older(tokens).logits, model(tokens).logits)


@pytest.mark.parametrize("family", list(CLASSES))
def test_tensors_that_are_missing_or_of_another_shape(make: Make, family: str) -> None:
    folder = make(family)
    whole = load_file(folder / "model.safetensors")
    name = next(name for name in whole if name.endswith("blocks.2.attn.proj.bias"))
    for spoilt, line in (
        ({k: v for k, v in whole.items() if k != name}, f"its weight files have no {name}; save the model with"),
        (whole | {name: torch.zeros(8)}, f"{name} is [8], and config.json makes it [32]; mend config.json"),
        (whole | {f"{name}s": torch.zeros(8)}, f"its weight files have {name}s, which no model of this architecture"),
    ):
        save_file(spoilt, folder / "model.safetensors", {"format": "pt"})
        (found,) = folders.mistakes(str(folder), "model.path")
        assert found.startswith(f"model.path={folder}: {line}")


@pytest.mark.parametrize("family", list(CLASSES))
def test_parameters_and_costs_are_those_of_transformers_model(bases: dict[str, str], family: str) -> None:
    model = AutoModelForImageTextToText.from_pretrained(bases[family])
    facts = model_facts(bases[family])
    assert facts.vision is not None
    assert facts.vision.parameters == sum(p.numel() for p in model.model.visual.parameters())
    assert facts.parameters == facts.language_parameters + facts.vision.parameters
    language = sum(p.numel() for p in model.model.language_model.parameters() if p.ndim > 1)
    assert facts.language_parameters == language
    # 4 x 32^2 of attention, 3 or 2 matrices of 48 x 32, in 3 layers; the patch; mergers of 128 x (128 + 64), a quarter.
    if family == "qwen2_5_vl":  # in two layers 16 patches see each other
        assert facts.vision.per_patch == 3 * (4096 + 3 * 1536) + 96 * 32 + 6144 + 2 * 2 * 32 * 16
        assert (facts.vision.per_pair, facts.vision.deepstack) == (2 * 32, 0)
    else:
        assert facts.vision.per_patch == 3 * (4096 + 2 * 1536) + 96 * 32 + 3 * 6144
        assert (facts.vision.per_pair, facts.vision.deepstack) == (3 * 2 * 32, 2)
    trained, frozen = facts.image_cost(trained=True), facts.image_cost(trained=False)
    assert trained.patch == pytest.approx(facts.vision.per_patch / (language))  # the head is tied: as many as weights
    assert frozen.patch == pytest.approx(trained.patch / 3) and frozen.pair == pytest.approx(trained.pair / 3)


@pytest.mark.parametrize("family", list(CLASSES))
def test_every_field_that_transformers_reads_is_decided(
    bases: dict[str, str], monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    """Whatever the code of the tower itself asks its config for; the language models are Qwen2's and Qwen3's."""
    model = AutoModelForImageTextToText.from_pretrained(bases[family])
    config, seen = type(model.config.vision_config), set()
    given = config.__getattribute__

    def read(self: Any, field: str) -> Any:
        if re.search(rf"models/{family}/|vision_utils", sys._getframe(1).f_code.co_filename):
            seen.add(field)
        return given(self, field)

    monkeypatch.setattr(config, "__getattribute__", read)
    again = AutoModelForImageTextToText.from_pretrained(bases[family])
    again.model.visual(torch.zeros(16, 96), grid_thw=torch.tensor([[1, 4, 4]]))
    monkeypatch.undo()
    tower = FAMILIES[family].tower
    assert tower is not None
    assert {"patch_size", "spatial_merge_size", "rope_parameters", "head_dim"} <= seen
    # An old name of one of them, and how attention is worked out, which is the trainer's own.
    others = {"num_attention_heads", "_attn_implementation", "hidden_act", "default_rope_type"}
    assert seen - {*TOWER_SIZES, *VALUES, *tower.obeys, *tower.values} - others == set()


# --- settings


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    monkeypatch.setattr("yatt.config.rules.local_gpus", lambda: 0)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "x", "image": "a.png"}\n')
    (tmp_path / "run.yaml").write_text("{}")

    def lines(folder: str | Path, *words: str) -> list[str]:
        given = (f"model.path={folder}", "model.dtype=float32", "model.context_length=64", "rollout.max_tokens=32")
        given += (f"data.path={tmp_path / 'rows.jsonl'}", "reward.function=exact_match", "train.steps=4")
        given += ("train.batch_size=8", "rollout.n=4", "data.media_key=image", "train.tokens_per_micro_batch=64")
        try:
            check(load_config(str(tmp_path / "run.yaml"), [*given, *words]))
        except ConfigError as error:
            return str(error).splitlines()
        return []

    return lines


def test_settings_of_a_policy_that_sees(refused: Any, bases: dict[str, str], make: Make, tmp_path: Path) -> None:
    folder = bases["qwen3_vl"]
    assert (
        refused(folder, "train.vision=trained", "train.optimizer.vision_rate=0.1", "train.pp=2", "cluster.slots=2")
        == []
    )
    (line,) = refused(folder, "train.optimizer.vision_rate=0.1")
    assert line == "train.optimizer.vision_rate=0.1 needs train.vision=trained, not frozen; unset it"
    (line,) = refused(folder, "train.pp=4", "cluster.slots=4")
    assert line == (
        "train.pp=4 leaves the first stage 1 layers, and features of its vision tower go into the first 2; use 1 or 2"
    )
    assert refused(bases["qwen2_5_vl"], "train.pp=4", "cluster.slots=4") == []
    kl = "algorithm.kl.coefficient=0.1"
    *_, line = refused(folder, kl, f"model.reference={bases['text']}")
    assert line.endswith("is a Qwen3ForCausalLM, which sees no images as the policy does; use one that sees")
    other = make("qwen3_vl")
    processor = json.loads((other / "preprocessor_config.json").read_text())
    (other / "preprocessor_config.json").write_text(json.dumps(processor | {"image_std": [0.5] * 3}))
    (line,) = refused(folder, kl, f"model.reference={other}")
    assert line.startswith(f"model.reference={other}: its image processor has image_std=[0.5, 0.5, 0.5] and the")
    (other / "preprocessor_config.json").write_text(json.dumps(processor | {"patch_size": 14}))
    (line,) = refused(other)
    assert line.startswith(f"model.path={other}: its image processor has patch_size=14, and its vision tower 4; mend")
    (other / "preprocessor_config.json").unlink()
    assert "preprocessor_config.json" in refused(other)[0]
    assert refused(other, "data.media_key=null") == []


def test_a_tower_lies_whole_on_each_rank_of_the_first_stage(bases: dict[str, str]) -> None:
    facts = model_facts(bases["qwen3_vl"])
    assert facts.vision is not None

    def memory(**train: Any) -> Any:
        given = {"steps": 1, "batch_size": 8, **train}
        config = Config(model={"path": "x", "dtype": "float32"}, train=given, algorithm={"name": "grpo"})
        return trainer_memory(config, facts, ranks=2)

    language, tower = facts.language_parameters / 4, facts.vision.parameters
    for vision, learning in (("frozen", language), ("trained", language + tower)):
        found = memory(tp=2, pp=2, vision=vision)
        assert (found.learning, found.weights) == (learning, 4 * (language + tower))
        assert (found.gradients, found.states) == (4 * learning, 8 * learning / 2)

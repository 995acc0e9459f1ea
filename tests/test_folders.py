"""Model folders of which two readers would not see one model are refused by name; the others are read as transformers
reads them."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from tests.megatron_cases import config as trained
from tests.megatron_pool import play
from tests.tiny_models import ARCHITECTURES, Architecture, save_tiny
from yatt.checksums import write_json
from yatt.config import folders
from yatt.config.facts import model_facts
from yatt.config.load import load_config
from yatt.config.rules import check, check_plan
from yatt.config.weight_files import INDEX, WHOLE, stored
from yatt.errors import CheckpointError, ConfigError
from yatt.faces.init import init
from yatt.models.fields import allowed, obeyed
from yatt.models.table import FAMILIES
from yatt.training.identity import DESCRIPTION, identity, verify

Make = Callable[..., Path]
TIED = ("qwen3", "gemma2", "gemma3_text")


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("bases")
    made = {name: save_tiny(root / name, name, tie=name in TIED, seed=i) for i, name in enumerate(ARCHITECTURES)}
    return made | {"scorer": save_tiny(root / "scorer", "qwen2", labels=1)}


@pytest.fixture
def make(bases: dict[str, str], tmp_path: Path) -> Make:
    """A copy of a base folder, with these fields in its config.json."""
    count = iter(range(1000))

    def copy(base: str, **fields: Any) -> Path:
        folder = Path(shutil.copytree(bases[base], tmp_path / f"{base}-{next(count)}"))
        edit(folder / "config.json", **fields)
        return folder

    return copy


def edit(file: Path, **fields: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / WHOLE)


def shards(folder: Path, *, more: dict[str, torch.Tensor] | None = None, keep: bool = False) -> dict[str, str]:
    """Write the folder's model in two files and their index, with `more` in the second; returns the weight_map."""
    whole = weights(folder)
    names = sorted(whole)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, held in parts.items():
        extra = (more or {}) if file == "b.safetensors" else {}
        save_file({name: whole[name] for name in held} | extra, folder / file, {"format": "pt"})
    if not keep:
        (folder / WHOLE).unlink()
    index = {name: file for file, held in parts.items() for name in held}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return index


def said(folder: Path, **options: Any) -> str:
    """What is said against a folder: one line."""
    (line,) = folders.mistakes(str(folder), "model.path", **options)
    return line.removeprefix(f"model.path={folder}: ")


# --- fields of config.json


@pytest.mark.parametrize(
    ("base", "fields", "line"),
    [
        ("qwen2", {"is_causal": False}, "is_causal=false cannot be trained; only is_causal=true can"),
        ("llama", {"is_causal": None}, "is_causal=null cannot be trained; only is_causal=true can"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5 cannot be trained; only"),
        ("llama", {"rotary_pct": 0.25}, "rotary_pct=0.25 cannot be trained; only rotary_pct=1.0 can"),
        ("llama", {"logit_scale": 0.5}, "logit_scale=0.5 cannot be trained; only logit_scale=1.0 can"),
        ("llama", {"sliding_window": 16}, "sliding_window=16 cannot be trained; remove it"),
        ("llama", {"bias": True}, "bias=true cannot be trained; only bias=false can"),
        ("llama", {"qkv_bias": True}, "qkv_bias=true cannot be trained; only qkv_bias=false can"),
        ("llama", {"attention_bias": True}, "attention_bias=true cannot be trained; only attention_bias=false can"),
        ("llama", {"mlp_bias": True}, "mlp_bias=true cannot be trained; only mlp_bias=false can"),
        ("qwen3", {"attention_bias": True}, "attention_bias=true cannot be trained; only attention_bias=false can"),
        ("qwen2", {"qk_norm": True}, "qk_norm=true cannot be trained; only qk_norm=false can"),
        ("qwen3", {"hidden_act": "gelu"}, 'hidden_act="gelu" cannot be trained; only hidden_act="silu" can'),
        ("qwen2", {"use_sliding_window": True}, "use_sliding_window=true cannot be trained; only"),
        ("qwen3", {"attention_dropout": 0.1}, "attention_dropout=0.1 cannot be trained; only attention_dropout=0.0"),
        (
            "qwen3",
            {"layer_types": ["full_attention", "sliding_attention"]},
            'layer_types has "sliding_attention", which cannot be trained; only full_attention can',
        ),
        ("qwen3", {"layer_types": ["full_attention"]}, "layer_types has 1 layers, and num_hidden_layers=2; write one"),
        (
            "llama",
            {"quantization_config": {"quant_method": "fp8"}},
            'quantization_config={"quant_method": "fp8"} cannot',
        ),
        ("qwen2", {"compression_config": {"format": "int"}}, 'compression_config={"format": "int"} cannot be trained'),
        ("qwen2", {"dual_chunk_attention_config": {"chunk_size": 8}}, 'dual_chunk_attention_config={"chunk_size": 8}'),
        ("qwen3", {"text_config": {"hidden_size": 8}}, 'text_config={"hidden_size": 8} cannot be trained; remove it'),
        ("qwen3", {"transformers_weights": "b.safetensors"}, 'transformers_weights="b.safetensors" cannot be trained'),
        ("llama", {"residual_multiplier": 0.22}, "residual_multiplier=0.22 cannot be trained; only"),
        ("llama", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping=50.0 cannot be trained; remove it"),
        ("llama", {"num_nextn_predict_layers": 1}, "num_nextn_predict_layers=1 cannot be trained; only"),
        ("llama", {"attention_chunk_size": 8}, "attention_chunk_size=8 cannot be trained; remove it"),
        (
            "qwen2",
            {"auto_map": {"AutoModelForCausalLM": "m.M"}},
            "auto_map has code of its own for AutoModelForCausalLM",
        ),
        ("llama", {"model_type": "mistral"}, 'model_type="mistral" is not LlamaForCausalLM\'s; set it to llama'),
        (
            "qwen2",
            {"head_dim": 8},
            "head_dim=8 is not hidden_size=64 / num_attention_heads=4, which engines take instead",
        ),
        ("llama", {"num_key_value_heads": 3}, "num_key_value_heads=3 does not divide num_attention_heads=4"),
        ("llama", {"tie_word_embeddings": "no"}, 'tie_word_embeddings="no" is neither true nor false'),
        ("llama", {"rms_norm_eps": None}, "rms_norm_eps=null is no number above 0"),
        ("mistral", {"sliding_window": 0}, "sliding_window=0 is no whole number above 0"),
        ("mistral", {"layer_types": ["full_attention"] * 2}, 'layer_types=["full_attention", "full_attention"] cannot'),
        ("mistral", {"attention_bias": True}, "attention_bias=true cannot be trained; only attention_bias=false can"),
        ("olmo2", {"attention_bias": True}, "attention_bias=true cannot be trained; only attention_bias=false can"),
        ("olmo2", {"clip_qkv": 8.0}, "clip_qkv=8.0 cannot be trained; remove it"),
        ("phi3", {"resid_pdrop": 0.1}, "resid_pdrop=0.1 cannot be trained; only resid_pdrop=0.0 can"),
        (
            "phi3",
            {"rope_parameters": {"rope_type": "longrope", "short_factor": [1.0] * 8}},
            'rope_parameters has rope_type="longrope", which cannot be trained; use one of default',
        ),
        (
            "phi3",
            {"partial_rotary_factor": 0.25},
            "partial_rotary_factor=0.25 and, in rope_parameters, partial_rotary_factor=0.5; keep one of them",
        ),
        ("glm4", {"attention_bias": "yes"}, 'attention_bias="yes" is neither true nor false'),
        (
            "glm4",
            {"rope_parameters": {"partial_rotary_factor": 0.1}, "partial_rotary_factor": 0.1},
            "partial_rotary_factor=0.1 turns 3 of head_dim=32; a rotary embedding turns pairs",
        ),
        (
            "gemma2",
            {"tie_word_embeddings": False},
            "tie_word_embeddings=false cannot be trained; only tie_word_embeddings=true can",
        ),
        (
            "gemma2",
            {"hidden_activation": "gelu"},
            'hidden_activation="gelu" cannot be trained; only hidden_activation=',
        ),
        ("gemma2", {"sliding_window": None}, "sliding_window=null is no whole number above 0"),
        ("gemma2", {"attn_logit_softcapping": -1.0}, "attn_logit_softcapping=-1.0 is no number above 0"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention=true cannot be trained"),
        ("gemma3_text", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping=50.0 cannot be trained; remove it"),
        (
            "gemma3_text",
            {"rope_parameters": {"rope_theta": 10000.0}},
            "rope_parameters has rope_theta=10000.0, which is no kind of layer; remove it",
        ),
    ],
)
def test_a_field_that_is_not_trained_is_refused(make: Make, base: str, fields: dict[str, Any], line: str) -> None:
    assert said(make(base, **fields), weights=False).startswith(line)


ROPE = {"rope_theta": 10000.0}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, **ROPE}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, **ROPE}


@pytest.mark.parametrize(
    ("rope", "line"),
    [
        ({"rope_type": "dynamic", "factor": 2.0}, 'rope_type="dynamic", which cannot be trained; use one of default, '),
        ({"type": "su", "short_factor": [1.0]}, 'rope_type="su", which cannot be trained'),
        ({"rope_type": "default", "mrope_section": [8, 8]}, "mrope_section=[8, 8], which is not of rope_type=default"),
        ({"rope_type": "default", "rope_dim": 8}, "rope_dim=8, which is not of rope_type=default; remove it"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5, which cannot be trained"),
        ({"full_attention": ROPE}, 'full_attention={"rope_theta": 10000.0}, which is not of rope_type=default'),
        ({"rope_type": "linear"}, "factor=null; rope_type=linear needs a number above 0"),
        ({"rope_type": "linear", "factor": 2}, "factor=2, which an engine reads as a decimal only; write 2.0"),
        ({"rope_type": "yarn", "type": "linear", "factor": 2.0}, 'rope_type="yarn" and type="linear"; keep one'),
        (LLAMA3 | {"high_freq_factor": 1.0}, "high_freq_factor=1.0, which is not above low_freq_factor=1.0"),
        (YARN | {"beta_fast": None}, "beta_fast=null; rope_type=yarn needs a number above 0"),
        (
            YARN | {"factor": 2.0},
            "max_position_embeddings=512 is over rope_parameters's original_max_position_embeddings",
        ),
    ],
)
def test_rotary_parameters_that_are_not_trained_are_refused(make: Make, rope: dict[str, Any], line: str) -> None:
    assert line in said(make("llama", rope_parameters=rope), weights=False)


def test_the_older_name_of_the_rotary_parameters_is_read_first(make: Make) -> None:
    linear = {"type": "linear", "factor": 2.0}
    folder = make("llama", rope_scaling={"type": "dynamic", "factor": 2.0}, rope_parameters=linear)
    assert said(folder, weights=False).startswith('rope_scaling has rope_type="dynamic"')
    for fields in ({"rope_scaling": linear}, {"rope_scaling": None, "rope_theta": 5e5}, {"rope_parameters": None}):
        assert folders.mistakes(str(make("llama", **fields)), "model.path") == []
    assert said(make("llama", rope_parameters=None, rope_theta=0)) == "rope_theta=0 is no number above 0"


NEUTRAL: dict[str, Any] = {
    "_name_or_path": "someone/model",
    "pretraining_tp": 2,
    "use_cache": False,
    "initializer_range": 0.5,
    "quantization_config": None,
    "partial_rotary_factor": 1.0,
    "attention_dropout": 0.0,
    "is_causal": True,
    "logit_scale": 1,
    "sliding_window": None,
    "unheard_of": {"anything": 1},
    "auto_map": {"AutoTokenizer": ["tokenization.T", None]},
}


def test_what_changes_nothing_stops_no_run(make: Make) -> None:
    for base in ("llama", "qwen2", "qwen3", "scorer"):
        assert folders.mistakes(str(make(base, **NEUTRAL)), "model.path") == []
    tokens = torch.arange(3, 40)[None]
    plain, marked = (AutoModelForCausalLM.from_pretrained(make("llama", **f)).float() for f in ({}, NEUTRAL))
    assert torch.allclose(plain(tokens).logits, marked(tokens).logits, atol=1e-6, rtol=0)
    # Fields of a Llama that Qwen2 does not look at, and a window that is switched off.
    idle = {"attention_bias": True, "mlp_bias": True, "bias": True, "sliding_window": 4096, "max_window_layers": 1}
    assert folders.mistakes(str(make("qwen2", **idle)), "model.path") == []
    assert folders.mistakes(str(make("llama", rope_parameters=LLAMA3)), "model.path") == []
    assert folders.mistakes(str(make("llama", rope_parameters=YARN | {"truncate": False})), "model.path") == []


HARMLESS = {
    # Of a class, not of a file; sizes of what is read, not what is computed; names and versions.
    *("max_position_embeddings", "initializer_range", "use_cache", "pretraining_tp", "dtype", "architectures"),
    *("name_or_path", "transformers_version", "sub_configs", "model_type", "has_no_defaults_at_init"),
    *("default_theta", "default_rope_type", "ignore_keys_at_rope_validation", "gradient_checkpointing"),
    *("base_model_tp_plan", "base_model_pp_plan", "base_model_ep_plan", "base_model_fsdp_plan"),
    # Labels, outputs, tokens: not of a causal model's forward pass.
    *("num_labels", "id2label", "label2id", "problem_type", "return_dict", "output_hidden_states", "output_attentions"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "chunk_size_feed_forward", "is_heterogeneous"),
    # Looked for in models of other kinds; the window has its switch in the table of its family.
    *("mtp_layer_types", "mlp_layer_types", "num_heads", "fusion_config", "max_window_layers"),
    *("vision_aspect_ratio", "vision_feature_layer", "vision_feature_select_strategy"),
    # Checked by functions of their own.
    *("partial_rotary_factor", "original_max_position_embeddings"),
    *("layer_types", "rope_parameters", "rope_theta", "tie_word_embeddings", "auto_map", "sliding_window"),
}


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_every_field_that_transformers_reads_is_decided(
    bases: dict[str, str], monkeypatch: pytest.MonkeyPatch, name: Architecture
) -> None:
    made, seen = ARCHITECTURES[name][0], set()

    def read(config: Any, field: str) -> Any:
        seen.add(field)
        return object.__getattribute__(config, field)

    monkeypatch.setattr(made, "__getattribute__", read)
    model = AutoModelForCausalLM.from_pretrained(bases[name])
    model(torch.tensor([[3, 4, 5]]))
    model.generate(torch.tensor([[3, 4, 5]]), max_new_tokens=2, do_sample=False)
    monkeypatch.undo()
    generation = set(model.generation_config.to_dict())
    fields = {f for f in seen if not f.startswith("_") and not callable(getattr(made, f, None))}
    decided = {*obeyed(FAMILIES[name]), *allowed(FAMILIES[name]), *HARMLESS}
    assert {"rms_norm_eps", "is_causal", "attention_dropout"} <= fields
    assert fields - decided - generation == set()


def test_a_checkpoint_is_of_a_model_with_its_angles_and_norms(make: Make, tmp_path: Path) -> None:
    def described(**fields: Any) -> dict[str, Any]:
        return identity(AutoConfig.from_pretrained(make("llama", **fields)), "float32")

    write_json(tmp_path / DESCRIPTION, {"shards": 0, "model": described(rope_parameters=YARN), "state": {}})
    verify(str(tmp_path), described(rope_parameters=YARN))
    for name, value in (
        ("rms_norm_eps", 1e-5),
        ("rope_parameters", YARN | {"rope_theta": 5e5}),
        ("rope_parameters", YARN | {"factor": 8.0}),
        ("hidden_act", "gelu"),
    ):
        with pytest.raises(CheckpointError, match=f"is of another model: {name}="):
            verify(str(tmp_path), described(**{"rope_parameters": YARN, name: value}))


# --- weight files


def test_tied_embeddings_with_another_head(make: Make) -> None:
    folder = make("qwen3")
    tied = weights(folder)
    embedding = tied["model.embed_tokens.weight"]
    save_file(tied | {"lm_head.weight": embedding.clone()}, folder / WHOLE, {"format": "pt"})
    assert folders.mistakes(str(folder), "model.path") == []
    for head in (embedding + 1e-7 * (torch.arange(96) == 95)[:, None], embedding.bfloat16()):
        save_file(tied | {"lm_head.weight": head}, folder / WHOLE, {"format": "pt"})
        line = "config.json ties the embeddings, but lm_head.weight is there and differs; "
        assert said(folder) == line + "set tie_word_embeddings to false"
    edit(folder / "config.json", tie_word_embeddings=False)
    assert folders.mistakes(str(folder), "model.path") == []


def test_tensors_that_are_missing_or_left_over_or_of_another_shape(make: Make) -> None:
    folder = make("qwen2")
    whole = weights(folder)

    def write(**changes: torch.Tensor | None) -> None:
        save_file({n: t for n, t in (whole | changes).items() if t is not None}, folder / WHOLE, {"format": "pt"})

    write(**{"model.layers.1.self_attn.k_proj.bias": None})
    line = "its weight files have no model.layers.1.self_attn.k_proj.bias; save the model with save_pretrained"
    assert said(folder) == line
    write(**{"lm_head.weight": None})
    assert said(folder) == "its weight files have no lm_head.weight; save the model with save_pretrained"
    write(**{"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)})
    assert folders.mistakes(str(folder), "model.path") == []
    for name in (
        "model.layers.0.self_attn.o_proj.bias",
        "model.layers.0.mlp.up_proj.weight_scale_inv",
        "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight",
        "model.layers.2.input_layernorm.weight",
        "score.weight",
    ):
        write(**{name: torch.ones(64)})
        assert (
            said(folder) == f"its weight files have {name}, which no model of this architecture has; use another model"
        )
    write(**{"model.norm.weight": torch.ones(32)})
    assert said(folder) == "model.norm.weight is [32], and config.json makes it [64]; mend config.json"


@pytest.mark.parametrize(
    ("dtype", "shown"), [(torch.float8_e4m3fn, "F8_E4M3"), (torch.int8, "I8"), (torch.uint8, "U8")]
)
def test_codes_are_no_weights(make: Make, dtype: torch.dtype, shown: str) -> None:
    folder = make("llama")
    name = "model.layers.0.self_attn.q_proj.weight"
    save_file(weights(folder) | {name: weights(folder)[name].to(dtype)}, folder / WHOLE, {"format": "pt"})
    assert said(folder) == f"{name} is {shown}, which is a code for a number; save the model in float32 or bfloat16"
    for fine in (torch.float64, torch.float16, torch.bfloat16):
        save_file(weights(folder) | {name: torch.ones(128, 64, dtype=fine)}, folder / WHOLE, {"format": "pt"})
        assert folders.mistakes(str(folder), "model.path") == []


def test_files_that_two_readers_would_choose_differently(make: Make) -> None:
    noise = {"model.norm.weight": torch.zeros(64)}
    beside = make("llama")
    save_file(noise, beside / "extra.safetensors")
    line = "transformers reads model.safetensors and an engine extra.safetensors and 1 more; move the others away"
    assert said(beside) == line
    both = make("llama")
    shards(both, keep=True)
    line = "transformers reads model.safetensors and an engine a.safetensors and 1 more; keep one of them"
    assert said(both) == line
    mistral = make("llama")
    (mistral / "original").mkdir()
    save_file(noise, mistral / "original" / "consolidated.00.safetensors")
    line = "an engine would read original/consolidated.00.safetensors in place of the model; move it away"
    assert said(mistral) == line
    for name in ("adapter_config.json", "hf_quant_config.json"):
        folder = make("llama")
        (folder / name).write_text("{}")
        assert said(folder).startswith(f"{name} is ")
    head = make("qwen3")
    shards(head)
    save_file({"lm_head.weight": torch.zeros(96, 64)}, head / "old.safetensors")
    line = "config.json ties the embeddings, but old.safetensors has a lm_head.weight; move the file away"
    assert said(head) == line


def test_an_index_that_is_not_true(make: Make) -> None:
    twice = make("qwen2")
    shards(twice, more={"lm_head.weight": torch.zeros(96, 64)})  # it is in a.safetensors too
    assert said(twice) == "lm_head.weight is in a.safetensors and in b.safetensors; keep one of them"
    unnamed = make("qwen2")
    index = shards(unnamed)
    for name in ("model.norm.weight", "lm_head.weight"):
        index.pop(name)
    edit(unnamed / INDEX, weight_map=index)
    line = f"{INDEX} does not name lm_head.weight and 1 more, which a.safetensors has; write the index anew"
    assert said(unnamed) == line
    false = make("qwen2")
    edit(false / INDEX, weight_map=shards(false) | {"model.norm.weight": "b.safetensors"})
    line = f"{INDEX} says that model.norm.weight is in b.safetensors, which does not have it; copy the folder again"
    assert said(false) == line
    for given, words in (
        ({}, "the weight_map of model.safetensors.index.json names no weights"),
        ({"a": "../other/model.safetensors"}, "names ../other/model.safetensors, which is no safetensors file of this"),
        ({"a": "part/model.safetensors"}, "names part/model.safetensors, which is no safetensors file of this folder"),
        ({"a": "pytorch_model.bin"}, "names pytorch_model.bin, which is no safetensors file of this folder"),
        ({"a": "c.safetensors"}, "weight file(s) missing: c.safetensors"),
    ):
        edit(false / INDEX, weight_map=given)
        with pytest.raises(ConfigError, match=re.escape(words)):
            model_facts(str(false))


def test_weights_are_those_that_transformers_loads(make: Make) -> None:
    """Also by the ranks, from an index beside which a file lies that is not of the model, as an old one would."""
    folder = make("qwen2")
    index = shards(folder)
    save_file(
        {name: torch.full_like(t, 9.0) for name, t in load_file(folder / "a.safetensors").items()},
        folder / "z.safetensors",
    )
    assert folders.mistakes(str(folder), "model.path") == []
    loaded = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    found = stored(folder)
    assert {name: tensor.file.name for name, tensor in found.items()} == index
    for name, tensor in found.items():
        with safe_open(tensor.file, "pt") as file:
            assert torch.equal(file.get_tensor(name), loaded[name]), name
    (exported,) = play(1, trained(str(folder)), [("export",)])[0]
    assert exported.keys() == loaded.keys()
    assert all((loaded[name].numpy() == exported[name]).all() for name in loaded)


# --- who asks


@pytest.fixture
def settings(bases: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    monkeypatch.setattr("yatt.config.rules.local_gpus", lambda: 0)
    (tmp_path / "d.jsonl").write_text('{"prompt": "1"}\n')

    def build(path: object, *words: str) -> Any:
        base = [f"model.path={path}", "train.steps=4", "train.batch_size=8", "model.context_length=64"]
        base += ["rollout.max_tokens=32", f"data.path={tmp_path}/d.jsonl", "reward.function=exact_match"]
        return load_config(None, [*base, *words])

    return build


def refused(config: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        check(config)
    return str(caught.value).splitlines()


def test_each_setting_that_names_a_folder_is_blamed(make: Make, settings: Any, tmp_path: Path) -> None:
    good, line = make("qwen3"), "is_causal=false cannot be trained; only is_causal=true can"
    odd = make("qwen3", is_causal=False)
    ppo = ["algorithm.name=ppo", "algorithm.kl={place: reward, coefficient: 0.1}", "rollout.n=1"]
    distil = ["algorithm.name=distillation", "reward.function=null"]
    assert refused(settings(odd)) == [f"model.path={odd}: {line}"]
    assert refused(settings(good, *ppo, f"model.reference={odd}")) == [f"model.reference={odd}: {line}"]
    assert refused(settings(good, *ppo, f"critic.path={odd}")) == [f"critic.path={odd}: {line}"]
    assert refused(settings(good, *distil, f"model.teacher={odd}")) == [f"model.teacher={odd}: {line}"]
    with pytest.raises(ConfigError, match=f"--model={odd}: is_causal"):
        init(tmp_path / "run", model=str(odd))
    with pytest.raises(ConfigError, match=f"model.path={odd}: is_causal"):
        check_plan(settings(odd), [1])


def test_a_judge_is_for_the_engine_alone(make: Make, settings: Any) -> None:
    """Which may read more than is trained, quantized weights too, but not other files than transformers."""
    good, judge = make("qwen3"), make("llama", quantization_config={"quant_method": "fp8"}, is_causal=False)
    save_file({"a": torch.ones(4, dtype=torch.int8)}, judge / WHOLE)
    words = [f"reward.models.j={{path: {judge}, parser: number, template: '{{response}}', max_tokens: 8}}"]
    assert check(settings(good, *words)) == []
    save_file({"a": torch.ones(4)}, judge / "more.safetensors")
    (line,) = refused(settings(good, *words))
    assert line.startswith(f"reward.models.j.path={judge}: transformers reads model.safetensors and an engine model.")
    scorer = make("scorer")
    headless = {name: tensor for name, tensor in weights(scorer).items() if name != "score.weight"}
    save_file(headless, scorer / WHOLE, {"format": "pt"})
    (line,) = refused(settings(good, f"reward.models.j={{path: {scorer}, kind: classifier}}"))
    assert line.startswith(f"reward.models.j.path={scorer}: its weight files have no score.weight")


def test_sizes_that_config_leaves_out_are_those_of_transformers(make: Make) -> None:
    """Qwen2 and Qwen3 have 32 key/value heads and Qwen3 heads of 128 then; a Llama as many as attention heads."""
    found = {}
    for base in ("llama", "qwen2", "qwen3"):
        folder = make(base, num_attention_heads=32)
        left = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(
            json.dumps({k: v for k, v in left.items() if k not in ("num_key_value_heads", "head_dim")})
        )
        facts, theirs = model_facts(str(folder), weights=False), ARCHITECTURES[base][0].from_pretrained(folder)
        found[base] = (facts.kv_heads, facts.head_dim)
        assert facts.kv_heads == theirs.num_key_value_heads
        assert facts.head_dim == getattr(theirs, "head_dim", 64 // 32)
    assert found == {"llama": (32, 2), "qwen2": (32, 2), "qwen3": (32, 128)}


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_parameters_are_those_of_the_matrices(bases: dict[str, str], name: Architecture) -> None:
    matrices = [tensor.shape for tensor in stored(Path(bases[name])).values() if len(tensor.shape) == 2]
    assert model_facts(bases[name]).parameters == sum(math.prod(shape) for shape in matrices)


@pytest.mark.parametrize(
    ("option", "line"),
    [
        ("hf_overrides={rope_theta: 5}", "hf_overrides={'rope_theta': 5} has the engine read another model than is"),
        ("quantization=fp8", "quantization=fp8 has the engine read another model than is trained; unset it"),
        ("load_format=dummy", "load_format=dummy has the engine read another model than is trained; unset it"),
        (
            "tensor_parallel_size=3",
            "tensor_parallel_size=3 does not divide 4 attention heads and 128 MLP columns and 2 ",
        ),
    ],
)
def test_engine_options_that_make_another_model(make: Make, settings: Any, option: str, line: str) -> None:
    slots = ["cluster.address=head:6379", "cluster.slots=12"]
    (found,) = refused(settings(make("qwen3"), *slots, f"rollout.engine_args.{option}"))
    assert found.startswith(f"rollout.engine_args.{line}")
    for fine in ("load_format=safetensors", "quantization=null", "tensor_parallel_size=4"):
        assert check(settings(make("qwen3"), *slots, f"rollout.engine_args.{fine}")) == []


def test_tp_divides_all_but_the_vocabulary(make: Make, settings: Any, tmp_path: Path) -> None:
    odd = save_tiny(tmp_path / "odd", vocab_size=97)
    assert check(settings(odd, "train.tp=2", "cluster.slots=2")) == []
    (line,) = refused(settings(odd, "train.tp=4", "cluster.slots=4"))
    assert line == "train.tp=4 does not divide 2 key/value heads; use 1 or 2"

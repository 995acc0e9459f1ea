"""Which folders the trainer of any family takes, by their config.json alone, and how large their models are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers.models.auto import modeling_auto

from yatt.config import folders
from yatt.config.facts import model_facts
from yatt.errors import ConfigError
from yatt.models.generic import can_score, causal_architectures, layer_sizes, scoring_architectures

LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}
TAKEN = {
    "LlamaForCausalLM": {"attention_bias": True},
    "MistralForCausalLM": {"sliding_window": 16},
    "Qwen3MoeForCausalLM": {"model_type": "qwen3_moe", "num_experts": 8, "num_experts_per_tok": 2},
    "Gemma2ForCausalLM": {"model_type": "gemma2"},
    "Gemma3ForCausalLM": {"model_type": "gemma3_text"},
    "PhiForCausalLM": {"model_type": "phi"},
    "GptOssForCausalLM": {"model_type": "gpt_oss"},
    "DeepseekV3ForCausalLM": {"model_type": "deepseek_v3"},
    "SmolLM3ForCausalLM": {"model_type": "smollm3"},
    "GraniteForCausalLM": {"model_type": "granite", "residual_multiplier": 0.2},
    "CohereForCausalLM": {"model_type": "cohere", "logit_scale": 0.1},
    "Starcoder2ForCausalLM": {"model_type": "starcoder2"},
    "GPTNeoXForCausalLM": {"model_type": "gpt_neox"},
}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "another family's": ({"model_type": "qwen3"}, 'model_type="qwen3" is not LlamaForCausalLM\'s in the installed'),
    "codes": ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config="),
    "its own code": (
        {"auto_map": {"AutoModelForCausalLM": "m.M"}},
        "auto_map has code of its own",
    ),
    "dynamic angles": ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type=dynamic turns by what else"),
    "long angles": ({"rope_parameters": {"rope_type": "longrope"}}, "rope_type=longrope turns by what else"),
    "both ways": ({"is_causal": False}, "is_causal=false cannot be trained; only is_causal=true can"),
    "convolutions": (
        {"model_type": "lfm2", "architectures": ["Lfm2ForCausalLM"], "layer_types": ["conv", "full_attention"]},
        'layer_types has "conv", whose state would pass',
    ),
    "a state": (
        {"model_type": "mamba", "architectures": ["MambaForCausalLM"]},
        "transformers' MambaForCausalLM has attention of its own",
    ),
    "linear attention": (
        {"model_type": "qwen3_next", "architectures": ["Qwen3NextForCausalLM"]},
        "transformers' Qwen3NextForCausalLM has attention of its own",
    ),
    "chunks": (
        {"model_type": "llama4_text", "architectures": ["Llama4ForCausalLM"]},
        "transformers' Llama4ForCausalLM has attention of its own",
    ),
    "windows in masks alone": (
        {"model_type": "phimoe", "architectures": ["PhimoeForCausalLM"]},
        "transformers' PhimoeForCausalLM has attention of its own",
    ),
    "slopes": (
        {"model_type": "bloom", "architectures": ["BloomForCausalLM"]},
        "transformers' BloomForCausalLM has attention of its own",
    ),
}


def make(folder: Path, **fields: Any) -> str:
    (folder / "config.json").write_text(json.dumps(LLAMA | fields))
    return str(folder)


@pytest.mark.parametrize("architecture", list(TAKEN))
def test_families_that_are_taken(tmp_path: Path, architecture: str) -> None:
    own = {"model_type": architecture.removesuffix("ForCausalLM").lower()} | TAKEN[architecture]
    path = make(tmp_path, architectures=[architecture], **own)
    assert folders.mistakes(path, "model.path", weights=False, any_family=True) == []
    assert model_facts(path, weights=False, any_family=True).architecture == architecture


@pytest.mark.parametrize("name", list(REFUSED))
def test_what_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    fields, text = REFUSED[name]
    (line,) = folders.mistakes(make(tmp_path, **fields), "model.path", weights=False, any_family=True)
    assert line.startswith(f"model.path={tmp_path}: ") and text in line and "\n" not in line


@pytest.mark.parametrize(
    ("architecture", "text"),
    [
        ("NoSuchForCausalLM", "architecture NoSuchForCausalLM is no causal language model of the installed"),
        ("T5ForConditionalGeneration", "architecture T5ForConditionalGeneration is no causal language model"),
        ("LlamaForSequenceClassification", "architecture LlamaForSequenceClassification is no causal"),
        ("Qwen3VLForConditionalGeneration", "train.backend=fsdp trains no Qwen3VLForConditionalGeneration, which sees"),
    ],
)
def test_architectures_that_are_refused(tmp_path: Path, architecture: str, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        model_facts(make(tmp_path, architectures=[architecture]), weights=False, any_family=True)


def test_a_classifier_of_one_label_is_trained_to_score(tmp_path: Path) -> None:
    path = make(tmp_path, architectures=["LlamaForSequenceClassification"], num_labels=1)
    assert model_facts(path, weights=False, any_family=True, scalar=True).tied
    with pytest.raises(ConfigError, match="its head has 3 labels"):
        path = make(tmp_path, architectures=["LlamaForSequenceClassification"], num_labels=3)
        model_facts(path, weights=False, any_family=True, scalar=True)


def test_which_families_have_a_classifier() -> None:
    assert can_score("LlamaForCausalLM") and can_score("LlamaForSequenceClassification")
    assert not can_score("GraniteForCausalLM")


def test_older_names_of_sizes(tmp_path: Path) -> None:
    own = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_embd": 32, "n_layer": 3, "n_head": 2}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(own | {"n_positions": 64, "vocab_size": 50, "tie_word_embeddings": True}))
    facts = model_facts(str(tmp_path), weights=False, any_family=True)
    assert (facts.hidden_size, facts.layers, facts.heads, facts.max_positions) == (32, 3, 2, 64)
    assert facts.intermediate_size == 128


def test_a_token_passes_through_the_experts_it_is_sent_to() -> None:
    """Two layers: attention 4 x 64 x 64, a router 8 x 64, and 8 experts of 3 x 64 x 32, of which 2 are chosen."""
    config = {"num_experts": 8, "num_experts_per_tok": 2}
    shapes = {}
    for layer in range(2):
        shapes |= {f"model.layers.{layer}.self_attn.{name}_proj.weight": (64, 64) for name in "qkvo"}
        shapes |= {
            f"model.layers.{layer}.mlp.gate.weight": (8, 64),
            f"model.layers.{layer}.input_layernorm.weight": (64,),
        }
        for expert in range(8):
            at = f"model.layers.{layer}.mlp.experts.{expert}"
            shapes |= {f"{at}.{name}_proj.weight": (32, 64) for name in ("gate", "up", "down")}
    rest, expert = 2 * (4 * 64 * 64 + 8 * 64), 3 * 32 * 64
    assert layer_sizes(config, shapes | {"lm_head.weight": (100, 64)}) == (rest + 16 * expert, rest + 4 * expert)


def test_transformers_tables_are_read() -> None:
    """Against transformers' own, which reads them by importing itself."""
    theirs = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    assert len(causal_architectures()) > 100
    assert causal_architectures().items() <= theirs.items()
    assert scoring_architectures() == dict(modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES)

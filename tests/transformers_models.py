"""Tiny random folders of families that transformers has, for the trainer that takes any of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from tests.tiny_models import OWN, tiny_tokenizer

SMALL = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": OWN["mistral"],
    "qwen2": {},
    "qwen3": {"tie_word_embeddings": True},
    "qwen3_moe": {**EXPERTS, "num_experts": 4, "norm_topk_prob": True},
    "gemma2": {**OWN["gemma2"], "tie_word_embeddings": True},
    "gemma3_text": {**OWN["gemma3_text"], "tie_word_embeddings": True},
    "phi": {"partial_rotary_factor": 0.5, "hidden_act": "gelu_new"},
    "phi3": OWN["phi3"],
    "olmo2": {},
    "glm4": OWN["glm4"],
    "gpt_oss": {
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": 16,
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
    "deepseek_v3": {
        **EXPERTS,
        "n_routed_experts": 8,
        "n_group": 2,
        "topk_group": 1,
        "n_shared_experts": 1,
        "first_k_dense_replace": 1,
        "kv_lora_rank": 16,
        "q_lora_rank": 24,
        "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 8,
        "v_head_dim": 16,
        "num_key_value_heads": 4,
        "head_dim": 8,
    },
    "smollm3": {"no_rope_layers": [1, 0], "tie_word_embeddings": True},
    "granite": {
        "embedding_multiplier": 3.0,
        "logits_scaling": 2.0,
        "residual_multiplier": 0.5,
        "attention_multiplier": 0.2,
    },
}
"""model_type -> what its family alone has, small enough to be met within a few tokens."""


def transformers_model(
    family: str, *, seed: int = 0, spread: float = 2.0, labels: int | None = None, **fields: Any
) -> PreTrainedModel:
    """A random float32 model; `spread` multiplies its matrices. With `labels`, a sequence classifier."""
    settings = SMALL | FAMILIES[family] | fields | ({} if labels is None else {"num_labels": labels})
    config = AutoConfig.for_model(family, **settings)
    torch.manual_seed(seed)
    made = AutoModelForCausalLM if labels is None else AutoModelForSequenceClassification
    model = made.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(spread)
            else:
                parameter.add_(0.1 * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.copy_(0.05 * torch.randn_like(buffer))
    return model


def save_family(folder: Path | str, family: str, **options: Any) -> str:
    """Write `transformers_model` and a tokenizer to `folder`; returns the folder's path."""
    transformers_model(family, **options).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)

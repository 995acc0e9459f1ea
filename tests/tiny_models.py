"""Tiny random Hugging Face folders, of every family that is trained, with a tokenizer, built offline in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForSequenceClassification,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    Glm4Config,
    Glm4ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

Architecture = Literal["qwen3", "qwen2", "llama", "mistral", "olmo2", "phi3", "glm4", "gemma2", "gemma3_text"]

ARCHITECTURES: dict[str, tuple[type, type]] = {
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "llama": (LlamaConfig, LlamaForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
    "olmo2": (Olmo2Config, Olmo2ForCausalLM),
    "phi3": (Phi3Config, Phi3ForCausalLM),
    "glm4": (Glm4Config, Glm4ForCausalLM),
    "gemma2": (Gemma2Config, Gemma2ForCausalLM),
    "gemma3_text": (Gemma3TextConfig, Gemma3ForCausalLM),
}
PARTIAL = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
OWN: dict[str, dict[str, Any]] = {
    "qwen2": {"head_dim": 16},
    "mistral": {"sliding_window": 16},
    "phi3": {"sliding_window": 20, "rope_parameters": PARTIAL},
    "glm4": {"attention_bias": True},
    "gemma2": {
        "sliding_window": 16,
        "query_pre_attn_scalar": 24,
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 8.0,
    },
    "gemma3_text": {
        "sliding_window": 16,
        "query_pre_attn_scalar": 24,
        "final_logit_softcapping": 8.0,
        "layer_types": ["sliding_attention", "full_attention"],
    },
}
"""What each family alone has, small enough to be met within a few tokens."""
SPECIALS = ("<pad>", "<eos>", "<bos>")
CHARACTERS = "\n abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+-*/=.,:;?!<>()[]{}'\"_#|"
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token per character (91 tokens with `<pad>` 0, `<eos>` 1, `<bos>` 2), with a chat template."""
    vocabulary = {token: i for i, token in enumerate((*SPECIALS, *CHARACTERS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>", padding_side="left"
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def tiny_model(
    architecture: Architecture = "qwen3",
    *,
    seed: int = 0,
    tie: bool = True,
    spread: float = 3.0,
    labels: int | None = None,
    **overrides: Any,
) -> PreTrainedModel:
    """A random float32 model; `spread` multiplies its matrices so that its distributions are far from uniform. With
    `labels`, a sequence classifier."""
    config_class, model_class = ARCHITECTURES[architecture]
    settings: dict[str, Any] = dict(
        vocab_size=96,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=512,
        tie_word_embeddings=tie,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
    )
    settings |= OWN.get(architecture, {}) | overrides
    torch.manual_seed(seed)
    if labels is None:
        model = model_class(config_class(**settings)).float().eval()
    else:
        config = config_class(**settings, num_labels=labels)
        model = AutoModelForSequenceClassification.from_config(config).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(spread)
            else:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def save_tiny(folder: Path | str, architecture: Architecture = "qwen3", **options: Any) -> str:
    """Write `tiny_model(architecture, **options)` and its tokenizer to `folder`; returns the folder's path."""
    tiny_model(architecture, **options).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)

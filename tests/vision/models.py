"""Tiny random folders of the families that see, with tokenizer and processor files, built offline in seconds.

A patch is 4 x 4 pixels, and 2 x 2 of them are a token of the language model. Everything of the real models is there:
windows and full attention (Qwen2.5-VL), learned positions and deepstack (Qwen3-VL), sections of both kinds."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from tests.tiny_models import tiny_tokenizer

Seeing = Literal["qwen2_5_vl", "qwen3_vl"]
CLASSES: dict[str, tuple[type, type]] = {
    "qwen2_5_vl": (Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration),
    "qwen3_vl": (Qwen3VLConfig, Qwen3VLForConditionalGeneration),
}
VISION_START, IMAGE, VISION_END, VIDEO = 91, 92, 93, 94
MARKS = ("<|vision_start|>", "<|image_pad|>", "<|vision_end|>", "<|video_pad|>")
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for part in m['content'] %}{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
PATCH, MERGE = 4, 2
PIXELS = (PATCH * MERGE) ** 2
"""Of a token."""


def seeing_tokenizer() -> PreTrainedTokenizerFast:
    """`tiny_tokenizer` with the marks of images, 95 tokens in all."""
    fast = tiny_tokenizer()
    fast.add_special_tokens({"additional_special_tokens": list(MARKS)})
    fast.chat_template = CHAT_TEMPLATE
    return fast


def seeing_model(
    family: Seeing,
    *,
    seed: int = 0,
    tie: bool = True,
    spread: float = 3.0,
    vision: dict[str, Any] | None = None,
    **text: Any,
) -> PreTrainedModel:
    """A random float32 model; `spread` multiplies its matrices, so that its distributions are far from uniform."""
    language: dict[str, Any] = dict(
        vocab_size=96,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=tie,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]},
    )
    tower: dict[str, Any] = dict(
        depth=3,
        hidden_size=32,
        intermediate_size=48,
        num_heads=2,
        out_hidden_size=64,
        patch_size=PATCH,
        spatial_merge_size=MERGE,
        temporal_patch_size=2,
    )
    if family == "qwen2_5_vl":
        tower |= {"window_size": 16, "fullatt_block_indexes": [1]}  # a window of 2 x 2 tokens
    else:
        language |= {"head_dim": 32}
        language["rope_parameters"] |= {"mrope_section": [6, 5, 5], "mrope_interleaved": True}
        tower |= {"num_position_embeddings": 25, "deepstack_visual_indexes": [0, 1]}
    config_class, model_class = CLASSES[family]
    config = config_class(
        text_config=language | text,
        vision_config=tower | (vision or {}),
        tie_word_embeddings=tie,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=VISION_START,
        vision_end_token_id=VISION_END,
    )
    torch.manual_seed(seed)
    model: PreTrainedModel = model_class(config).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(spread)
            else:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def save_seeing(folder: Path | str, family: Seeing, *, max_tokens: int = 64, **options: Any) -> str:
    """Write `seeing_model(family, **options)`, its tokenizer, and a processor that makes at most `max_tokens` tokens of
    an image; returns the folder's path."""
    model = seeing_model(family, **options)
    model.save_pretrained(folder)
    seeing_tokenizer().save_pretrained(folder)
    processor = {
        "image_processor_type": "Qwen2VLImageProcessorFast",
        "patch_size": PATCH,
        "merge_size": MERGE,
        "temporal_patch_size": 2,
        "size": {"shortest_edge": PIXELS, "longest_edge": max_tokens * PIXELS},
        "image_mean": [0.48, 0.46, 0.41],
        "image_std": [0.27, 0.26, 0.28],
        "rescale_factor": 1 / 255,
        "resample": 3,
        **dict.fromkeys(("do_resize", "do_rescale", "do_normalize", "do_convert_rgb"), True),
    }
    (Path(folder) / "preprocessor_config.json").write_text(json.dumps(processor, indent=1))
    return str(folder)


def png(seed: int, width: int, height: int) -> np.ndarray:
    """The bytes of a picture of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return np.frombuffer(file.getvalue(), np.uint8)

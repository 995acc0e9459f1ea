"""Tiny random vision-language models, with the files of a processor. A patch is 4 x 4 pixels and a token 2 x 2 patches:
an image of 24 x 16 pixels has 24 patches and takes 6 tokens."""

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

SeeingFamily = Literal["qwen2_5_vl", "qwen3_vl"]

PATCH, MERGE = 4, 2
MARKS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for part in m['content'] %}{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def seeing_tokenizer() -> PreTrainedTokenizerFast:
    """`tiny_tokenizer` with the marks of images, the ids after its own, and a template that places them."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": list(MARKS)})
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def mark(name: str) -> int:
    """The id of one of `MARKS`."""
    return int(seeing_tokenizer().convert_tokens_to_ids(f"<|{name}|>"))


def tiny_seeing_model(family: SeeingFamily, *, seed: int = 0, spread: float = 3.0, depth: int = 3) -> PreTrainedModel:
    """A random float32 model of everything that a family has: windows and full attention (2.5), learned positions and
    deepstack (3). `spread` multiplies its matrices."""
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 6, 6]}
    text: dict[str, Any] = dict(
        vocab_size=104,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
        rope_parameters=rope,
    )
    tower: dict[str, Any] = dict(
        depth=depth,
        hidden_size=64,
        intermediate_size=96,
        num_heads=2,
        out_hidden_size=64,
        patch_size=PATCH,
        spatial_merge_size=MERGE,
        temporal_patch_size=2,
    )
    ids = {
        "vision_start_token_id": mark("vision_start"),
        "vision_end_token_id": mark("vision_end"),
        "image_token_id": mark("image_pad"),
        "video_token_id": mark("video_pad"),
    }
    torch.manual_seed(seed)
    model: PreTrainedModel
    if family == "qwen2_5_vl":
        tower |= {"in_chans": 3, "window_size": 4 * PATCH, "fullatt_block_indexes": [depth - 1]}
        model = Qwen2_5_VLForConditionalGeneration(
            Qwen2_5_VLConfig(text_config=text, vision_config=tower, tie_word_embeddings=True, **ids)
        )
    else:
        rope["mrope_interleaved"] = True
        tower |= {"in_channels": 3, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}
        model = Qwen3VLForConditionalGeneration(
            Qwen3VLConfig(text_config=text | {"head_dim": 32}, vision_config=tower, tie_word_embeddings=True, **ids)
        )
    model = model.float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(spread)
            else:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def save_seeing(folder: Path | str, family: SeeingFamily, **options: Any) -> str:
    """Write the model, its tokenizer and the files of its processor; returns the folder's path."""
    tiny_seeing_model(family, **options).save_pretrained(folder)
    seeing_tokenizer().save_pretrained(folder)
    pixels = (PATCH * MERGE) ** 2
    settings = dict(
        patch_size=PATCH,
        merge_size=MERGE,
        temporal_patch_size=2,
        size={"shortest_edge": pixels, "longest_edge": 64 * pixels},
        image_mean=[0.48, 0.46, 0.41],
        image_std=[0.27, 0.26, 0.28],
        do_resize=True,
        do_rescale=True,
        do_normalize=True,
        do_convert_rgb=True,
        rescale_factor=1 / 255,
        resample=3,
    )
    name = {"qwen2_5_vl": "Qwen2_5_VLProcessor", "qwen3_vl": "Qwen3VLProcessor"}[family]
    video = {"qwen2_5_vl": "Qwen2VLVideoProcessor", "qwen3_vl": "Qwen3VLVideoProcessor"}[family]
    image = {"processor_class": name, "image_processor_type": "Qwen2VLImageProcessorFast"}
    for file, kind in (("preprocessor", image), ("video_preprocessor", {"video_processor_type": video})):
        (Path(folder) / f"{file}_config.json").write_text(json.dumps(kind | settings))
    return str(folder)


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """The bytes of a PNG file of random colours, uint8 [N]."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return np.frombuffer(file.getvalue(), np.uint8)

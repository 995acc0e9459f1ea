"""Encoded images, and the smallest model folder of which images can be read: no weights."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tiny_models import tiny_tokenizer
from transformers import PreTrainedTokenizerFast

START, PAD, END, VIDEO = "<|vision_start|>", "<|image_pad|>", "<|vision_end|>", "<|video_pad|>"
SIDE = 8
"""Pixels of a token's side: patches of 4 pixels, 2 by 2 of them a token."""
PARTS = (
    "{% for m in messages %}{{ m['role'] }}: {% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for part in m['content'] %}{% if part['type'] == 'image' %}"
    + START
    + PAD
    + END
    + "{% else %}{{ part['text'] }}"
    "{% endif %}{% endfor %}{% endif %}{{ '\n' }}{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)


def seeing_tokenizer(template: str | None = PARTS) -> PreTrainedTokenizerFast:
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [START, PAD, END, VIDEO]})
    tokenizer.chat_template = template
    return tokenizer


def seeing_folder(folder: Path, template: str | None = PARTS, **processor: Any) -> str:
    """A folder of what data need of a model that sees; `processor` is what its image processor has otherwise."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = seeing_tokenizer(template)
    tokenizer.save_pretrained(folder)
    ids = {
        f"{name}_token_id": tokenizer.convert_tokens_to_ids(token)
        for name, token in (("vision_start", START), ("image", PAD), ("vision_end", END), ("video", VIDEO))
    }
    config = {"architectures": ["Qwen3VLForConditionalGeneration"], "vision_config": {"spatial_merge_size": 2}}
    (folder / "config.json").write_text(json.dumps(config | ids))
    given = {
        "image_processor_type": "Qwen2VLImageProcessorFast",
        "patch_size": SIDE // 2,
        "merge_size": 2,
        "temporal_patch_size": 2,
        "size": {"shortest_edge": SIDE**2, "longest_edge": 64 * SIDE**2},
        "image_mean": [0.48, 0.46, 0.41],
        "image_std": [0.27, 0.26, 0.28],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(given | processor))
    return str(folder)


def pixels(height: int, width: int, seed: int = 0) -> Image.Image:
    """A picture with shapes larger than a pixel, so that resizing it matters."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (-(-height // 3), -(-width // 3), 3), dtype=np.uint8)
    return Image.fromarray(np.kron(coarse, np.ones((3, 3, 1), np.uint8))[:height, :width])


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def picture(height: int = 16, width: int = 24, seed: int = 0, kind: str = "PNG") -> bytes:
    return encoded(pixels(height, width, seed), kind)


def as_array(data: bytes) -> np.ndarray:
    return np.frombuffer(data, np.uint8)

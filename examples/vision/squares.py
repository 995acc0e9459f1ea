"""Make what `make vision` starts from: a tiny untrained Qwen3-VL, and pictures of two squares with a question.

    python examples/vision/squares.py --seed 0 --out examples/vision/work

"What colour is the left square ?" The same seed makes the same files. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import torch
from PIL import Image
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3VLConfig, Qwen3VLForConditionalGeneration

HERE = Path(__file__).resolve().parent
WORK = HERE / "work"
sys.path.insert(0, str(HERE.parent / "quickstart"))  # whose run.py and prepare.py the example's run.py takes

PATCH, MERGE = 4, 2
CELL = PATCH * MERGE
"""Pixels of a cell's side: one token."""
CELLS = 3
COLOURS = {"red": (220, 40, 40), "green": (40, 180, 60), "blue": (50, 80, 220), "yellow": (230, 210, 40)}
QUESTION = "What colour is the left square ?"
SPECIAL = (
    "<pad>",
    *("<|im_start|>", "<|im_end|>"),
    *("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"),
)
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}{{ '\\n' }}{% if m['content'] is string %}{{ m['content'] }}"
    "{% else %}{% for part in m['content'] %}{% if part['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>{{ '\\n' }}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant{{ '\\n' }}{% endif %}"
)
DEMONSTRATIONS, TRAIN_PROMPTS, EVAL_PROMPTS = 6_400, 2_560, 256


def picture(random: np.random.Generator) -> tuple[np.ndarray, str]:
    """An RGB picture [24, 24, 3] of two squares in one row of cells, and the colour of the left one."""
    side = CELLS * CELL
    image = random.integers(225, 256, (side, side, 3), dtype=np.uint8)
    row = int(random.integers(CELLS))
    names = random.permutation(list(COLOURS))[:2]
    for column, name in zip(sorted(random.permutation(CELLS)[:2]), names, strict=True):
        size = int(random.integers(5, CELL + 1))
        y, x = (CELL * cell + int(random.integers(CELL - size + 1)) for cell in (row, int(column)))
        shade = np.clip(np.array(COLOURS[str(name)]) + random.integers(-20, 21, 3), 0, 255)
        image[y : y + size, x : x + size] = shade
    return image, str(names[0])


def png(image: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG")
    return out.getvalue()


def write_rows(path: Path, count: int, answers: str, seed: list[int]) -> None:
    """A Parquet file of `count` rows: `images`, `prompt`, and the right word in the column `answers`."""
    random = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for _ in range(count):
        image, colour = picture(random)
        rows.append({"images": [{"bytes": png(image), "path": None}], "prompt": f"<image>{QUESTION}", answers: colour})
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def tokenizer() -> PreTrainedTokenizerFast:
    """One token per word, with the blank before it where there is one; a word that it does not know is an error."""
    first, *words = QUESTION.split()
    texts = (*SPECIAL, "\n", first, *(f" {word}" for word in words), *COLOURS, "user", "assistant", "system")
    backend = Tokenizer(models.WordLevel({text: number for number, text in enumerate(texts)}))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n| ?[^ \n]+"), "isolated")
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL])
    words_of = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<|im_end|>", clean_up_tokenization_spaces=False
    )
    words_of.chat_template = TEMPLATE
    return words_of


def model(seed: int, words: PreTrainedTokenizerFast) -> Qwen3VLForConditionalGeneration:
    """A Qwen3-VL of 0.7 million parameters with random weights drawn from the seed: learned positions and deepstack
    in its tower, three axes of positions in its language model."""
    text = {
        "vocab_size": -(-len(words) // 8) * 8,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 256,
        "tie_word_embeddings": True,
        "pad_token_id": words.pad_token_id,
        "eos_token_id": words.eos_token_id,
        "bos_token_id": None,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e4,
            "mrope_section": [4, 6, 6],
            "mrope_interleaved": True,
        },
    }
    vision = {
        "depth": 2,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_heads": 4,
        "out_hidden_size": 128,
        "patch_size": PATCH,
        "spatial_merge_size": MERGE,
        "temporal_patch_size": 2,
        "in_channels": 3,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0, 1],
    }
    names = {"image_token_id": "image_pad", "video_token_id": "video_pad"}
    names |= {f"vision_{end}_token_id": f"vision_{end}" for end in ("start", "end")}
    ids = {key: words.convert_tokens_to_ids(f"<|{name}|>") for key, name in names.items()}
    config = Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True, dtype="float32", **ids)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen3VLForConditionalGeneration(config).float()


def processor() -> dict[str, Any]:
    """The files of an image processor, as transformers would save them."""
    token = CELL**2
    return {
        "image_processor_type": "Qwen2VLImageProcessorFast",
        "processor_class": "Qwen3VLProcessor",
        "patch_size": PATCH,
        "merge_size": MERGE,
        "temporal_patch_size": 2,
        "size": {"shortest_edge": token, "longest_edge": 64 * token},
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "resample": 3,
        **dict.fromkeys(("do_resize", "do_rescale", "do_normalize", "do_convert_rgb"), True),
        "rescale_factor": 1 / 255,
    }


def prepare(seed: int, out: Path = WORK) -> bool:
    """Write everything under `out`; False when it was there already, made by this file from the same seed."""
    stamp = out / "stamp.json"
    recipe = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    identity = json.dumps({"seed": seed, "recipe": recipe}) + "\n"
    if stamp.exists() and stamp.read_text() == identity:
        return False
    shutil.rmtree(out, ignore_errors=True)
    (out / "model").mkdir(parents=True)
    words = tokenizer()
    words.save_pretrained(out / "model")
    model(seed, words).save_pretrained(out / "model")
    image = processor()
    video = image | {"video_processor_type": "Qwen3VLVideoProcessor"}
    del video["image_processor_type"]
    for name, content in (("preprocessor", image), ("video_preprocessor", video)):
        (out / "model" / f"{name}_config.json").write_text(json.dumps(content, indent=1) + "\n")
    write_rows(out / "demonstrations.parquet", DEMONSTRATIONS, "response", [seed, 0])
    write_rows(out / "train.parquet", TRAIN_PROMPTS, "answer", [seed, 1])
    write_rows(out / "eval.parquet", EVAL_PROMPTS, "answer", [seed, 2])
    stamp.write_text(identity)  # last: a half-written folder has no stamp
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=WORK)
    options = parser.parse_args()
    made = prepare(options.seed, options.out)
    print(f"{'made' if made else 'already there'}: {options.out}")


if __name__ == "__main__":
    main()

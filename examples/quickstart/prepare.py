"""Make what the quickstart starts from: a tiny untrained model, demonstrations, prompts and held-out prompts.

    python examples/quickstart/prepare.py --seed 0 --out examples/quickstart/work

The same seed makes the same files. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import shutil
from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

WORK = Path(__file__).resolve().parent / "work"
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
CHARACTERS = "0123456789+-*/=,.:;?!()[]{}%^_ 'abcdefghijklmnopqrstuvwxyz"
PAD, EOS = "<pad>", "<eos>"

DEMONSTRATIONS = 20_000
WORKED_SHARE = 0.4
TRAIN_PROMPTS = 4_000
EVAL_PROMPTS = 200


def work(a: int, b: int) -> str:
    """Column addition of two 3-digit numbers, units first: digit + digit + carry = sum.

    >>> work(583, 767)
    '3+7+0=10,8+6+1=15,5+7+1=13'
    """
    columns, carry = [], 0
    for place in (1, 10, 100):
        x, y = a // place % 10, b // place % 10
        columns.append(f"{x}+{y}+{carry}={x + y + carry}")
        carry = (x + y + carry) // 10
    return ",".join(columns)


def prompt(a: int, b: int) -> str:
    """The question as the model reads it."""
    return f"{a}+{b}="


def response(a: int, b: int, worked: bool) -> str:
    """A correct response, bare or with its work shown."""
    thought = f"<think>{work(a, b)}</think>" if worked else ""
    return f"{thought}<answer>{a + b}</answer>"


def tokenizer() -> PreTrainedTokenizerFast:
    """One token per character and per tag, 64 in all; no chat template; a character it does not know is an error."""
    vocabulary = {token: i for i, token in enumerate((PAD, EOS, *TAGS, *CHARACTERS))}
    backend = Tokenizer(models.WordLevel(vocabulary))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    # Tags are not "special", so that whoever decodes without special tokens keeps them.
    backend.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in TAGS])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=PAD, eos_token=EOS, clean_up_tokenization_spaces=False, model_max_length=128
    )


def model(seed: int, words: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """A Qwen3 of 525,376 parameters with random weights drawn from the seed."""
    config = Qwen3Config(
        vocab_size=len(words),
        hidden_size=128,
        num_hidden_layers=3,
        intermediate_size=320,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        initializer_range=0.05,  # the customary 0.02 is for wider models; this one learns the columns slower with it
        pad_token_id=words.pad_token_id,
        eos_token_id=words.eos_token_id,
        bos_token_id=None,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen3ForCausalLM(config)


def pairs(seed: int, count: int) -> list[tuple[int, int]]:
    """`count` pairs of 3-digit numbers, no two alike even when swapped."""
    draw, seen, chosen = random.Random(seed), set(), []
    while len(chosen) < count:
        a, b = draw.randint(100, 999), draw.randint(100, 999)
        key = (min(a, b), max(a, b))
        if key not in seen:
            seen.add(key)
            chosen.append((a, b))
    return chosen


def rows(seed: int) -> dict[str, list[dict[str, str]]]:
    """Every data file's rows, by file name. The three files share no pair of numbers."""
    drawn = pairs(seed, EVAL_PROMPTS + TRAIN_PROMPTS + DEMONSTRATIONS)
    held_out, rest = drawn[:EVAL_PROMPTS], drawn[EVAL_PROMPTS:]
    asked, shown = rest[:TRAIN_PROMPTS], rest[TRAIN_PROMPTS:]
    worked = [i < WORKED_SHARE * len(shown) for i in range(len(shown))]
    random.Random(seed).shuffle(worked)
    return {
        "eval.jsonl": [{"prompt": prompt(a, b), "answer": str(a + b)} for a, b in held_out],
        "train.jsonl": [{"prompt": prompt(a, b), "answer": str(a + b)} for a, b in asked],
        "demonstrations.jsonl": [
            {"prompt": prompt(a, b), "response": response(a, b, w)} for (a, b), w in zip(shown, worked, strict=True)
        ],
    }


def write_jsonl(path: Path, lines: Iterable[dict[str, str]]) -> None:
    """One JSON object a line."""
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def prepare(seed: int, out: Path = WORK) -> bool:
    """Write everything under `out`; False when it was there already, made by this file from the same seed."""
    stamp = out / "stamp.json"
    recipe = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    identity = json.dumps({"seed": seed, "recipe": recipe}) + "\n"
    if stamp.exists() and stamp.read_text() == identity:
        return False
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    words = tokenizer()
    words.save_pretrained(out / "model")
    model(seed, words).save_pretrained(out / "model")
    for name, lines in rows(seed).items():
        write_jsonl(out / name, lines)
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

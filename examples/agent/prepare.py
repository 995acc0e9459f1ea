"""Make what the agent starts from: a tiny untrained model that knows of tools, demonstrations, questions and held-out
questions; and the same for the game.

    python examples/agent/prepare.py --seed 0 --out examples/agent/work

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
from typing import Any

import torch
from game import TwoGuesses
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

WORK = Path(__file__).resolve().parent / "work"
PAD, END = "<pad>", "<end>"
ROLES = ("<tools>", "<user>", "<assistant>", "<tool_response>")
# The two halves of a call around its expression, each one token: the text is as other models write it.
CALL = ('<tool_call>\n{"name": "calculate", "arguments": {"expression": "', '"}}\n</tool_call>')
CHARACTERS = "0123456789+-*/=,.:;?!()[]{}%^_ \n'\"\\<>" + "abcdefghijklmnopqrstuvwxyz" + "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
TEMPLATE = (
    "{% if tools %}<tools>{% for t in tools %}{{ t.function.name }}{% endfor %}{% endif %}"
    "{% for m in messages %}{% if m.role == 'assistant' %}<assistant>{{ m.content }}{% for c in m.tool_calls or [] %}"
    '<tool_call>\n{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}'
    "{{ '\\n' }}</tool_call>{% endfor %}{% elif m.role == 'tool' %}<tool_response>{{ m.content }}"
    "{% else %}<user>{{ m.content }}{% endif %}<end>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
TOOLS = [{"type": "function", "function": {"name": "calculate"}}]

DEMONSTRATIONS = 12_000
CALLING = 0.35
"""The share of demonstrations that call the calculator; the others answer at once, and the model gets those wrong."""
TRAIN_PROMPTS, EVAL_PROMPTS = 4_000, 200
GAMES = 2_000
"""Demonstrations of the game, of two turns each: any digit, whatever was said."""


def question(a: int, b: int) -> str:
    """What the user says."""
    return f"{a}*{b}"


def call(a: int, b: int) -> str:
    """A call of the calculator, as text."""
    return f"{CALL[0]}{a}*{b}{CALL[1]}"


def tokenizer() -> PreTrainedTokenizerFast:
    """One token per character, per role and per half of a call; a chat template that names the tools."""
    vocabulary = {token: i for i, token in enumerate((PAD, END, *ROLES, *CALL, *CHARACTERS))}
    backend = Tokenizer(models.WordLevel(vocabulary))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in CALL])
    backend.add_special_tokens([AddedToken(token, special=True) for token in (PAD, END, *ROLES)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=PAD, eos_token=END, clean_up_tokenization_spaces=False, model_max_length=128
    )
    fast.chat_template = TEMPLATE
    return fast


def model(seed: int, words: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """A Qwen3 of half a million parameters with random weights drawn from the seed."""
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
        initializer_range=0.05,
        pad_token_id=words.pad_token_id,
        eos_token_id=words.eos_token_id,
        bos_token_id=None,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen3ForCausalLM(config)


def pairs(seed: int, count: int) -> list[tuple[int, int]]:
    """`count` different pairs of 4-digit numbers."""
    draw, chosen = random.Random(seed), dict[tuple[int, int], None]()
    while len(chosen) < count:
        chosen[draw.randint(1000, 9999), draw.randint(1000, 9999)] = None
    return list(chosen)


def demonstrations(words: PreTrainedTokenizerFast, a: int, b: int, calls: bool) -> list[dict[str, str]]:
    """One row for each turn of a conversation, as the policy reads and writes it."""
    asked: list[dict[str, Any]] = [{"role": "user", "content": question(a, b)}]
    if not calls:
        return [{"prompt": rendered(words, asked), "response": str(a * b)}]
    function = {"name": "calculate", "arguments": {"expression": f"{a}*{b}"}}
    told = [
        *asked,
        {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]},
        {"role": "tool", "content": str(a * b)},
    ]
    return [
        {"prompt": rendered(words, asked), "response": call(a, b)},
        {"prompt": rendered(words, told), "response": str(a * b)},
    ]


def rendered(words: PreTrainedTokenizerFast, messages: list[dict[str, Any]], tools: Any = TOOLS) -> str:
    return str(words.apply_chat_template(messages, tools=tools, tokenize=False, add_generation_prompt=True))


def game(words: PreTrainedTokenizerFast, draw: random.Random) -> list[dict[str, str]]:
    """One row for each turn of a game that is played without thought."""
    world, guesses = TwoGuesses(), [str(draw.randint(1, 9)) for _ in range(2)]
    asked: list[dict[str, Any]] = [{"role": "user", "content": world.reset(uid=draw.randrange(1 << 30))}]
    lines = [{"prompt": rendered(words, asked, None), "response": guesses[0]}]
    if (hint := world.step(guesses[0])) is not None:
        told = [*asked, {"role": "assistant", "content": guesses[0]}, {"role": "user", "content": hint}]
        lines.append({"prompt": rendered(words, told, None), "response": guesses[1]})
    return lines


def rows(seed: int, words: PreTrainedTokenizerFast) -> dict[str, list[dict[str, str]]]:
    """Every data file's rows, by file name. The three files share no pair of numbers."""
    drawn = pairs(seed, EVAL_PROMPTS + TRAIN_PROMPTS + DEMONSTRATIONS)
    held_out, rest = drawn[:EVAL_PROMPTS], drawn[EVAL_PROMPTS:]
    asked, shown = rest[:TRAIN_PROMPTS], rest[TRAIN_PROMPTS:]
    calling = [i < CALLING * len(shown) for i in range(len(shown))]
    random.Random(seed).shuffle(calling)
    draw = random.Random(seed)
    return {
        "game-demonstrations.jsonl": [row for _ in range(GAMES) for row in game(words, draw)],
        "game.jsonl": [{"prompt": "Let us play."}] * TRAIN_PROMPTS,
        "game-eval.jsonl": [{"prompt": "Let us play."}] * EVAL_PROMPTS,
        "eval.jsonl": [{"prompt": question(a, b), "answer": str(a * b)} for a, b in held_out],
        "train.jsonl": [{"prompt": question(a, b), "answer": str(a * b)} for a, b in asked],
        "demonstrations.jsonl": [
            row for (a, b), calls in zip(shown, calling, strict=True) for row in demonstrations(words, a, b, calls)
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
    for name, lines in rows(seed, words).items():
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

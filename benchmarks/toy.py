"""The quickstart's model and sequences: what the benchmarks of both engines work on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from examples.quickstart import prepare
from yatt.types import Sample, SampleKey

CONTEXT, LONGER_CONTEXT = 64, 144
# Of these many parameters; larger ones than the quickstart's, with a vocabulary of 1,000.
SHAPES = {
    "1.0M": dict(hidden_size=128, num_hidden_layers=5, intermediate_size=320, num_attention_heads=4, head_dim=32),
    "9.5M": dict(hidden_size=384, num_hidden_layers=6, intermediate_size=1024, num_attention_heads=6, head_dim=64),
}
VOCABULARY = 1000


def save_model(folder: Path | str, size: str = "0.5M") -> str:
    """A random Qwen3 of so many parameters and the quickstart's tokenizer, as a Hugging Face folder."""
    words = prepare.tokenizer()
    words.save_pretrained(folder)
    model = prepare.model(0, words)
    if size in SHAPES:
        shape = dict(SHAPES[size], vocab_size=VOCABULARY, max_position_embeddings=LONGER_CONTEXT)
        torch.manual_seed(0)
        model = Qwen3ForCausalLM(Qwen3Config.from_dict(model.config.to_dict() | shape | {"layer_types": None}))
    model.save_pretrained(folder)
    return str(folder)


def random_samples(count: int, *, prompt: int, longest: int, ragged: bool) -> list[Sample]:
    """Prompts and responses of random tokens. Responses have `longest` tokens; ragged, a lognormal number of them,
    in the median a third of that, and at least 4."""
    random, made = np.random.default_rng(0), []
    for uid in range(count):
        drawn = int(np.clip(random.lognormal(np.log(longest / 3), 0.6), 4, longest))
        length = prompt + (drawn if ragged else longest)
        tokens = random.integers(5, VOCABULARY, length).astype(np.int32)
        mask, logprobs = np.arange(length) >= prompt, np.zeros(length, dtype=np.float32)
        sample = dict(key=SampleKey(uid, 0), tokens=tokens, loss_mask=mask, rollout_logprobs=logprobs)
        made.append(Sample(**sample, advantage=float(random.normal())))
    return made


def prompts(count: int) -> list[np.ndarray]:
    """Questions, 8 tokens each."""
    words = prepare.tokenizer()
    return [np.array(words(prepare.prompt(a, b))["input_ids"], dtype=np.int32) for a, b in prepare.pairs(0, count)]


def samples(count: int) -> list[Sample]:
    """Questions with their worked answers, 40 to 43 tokens each, and advantages of both signs."""
    words, random = prepare.tokenizer(), np.random.default_rng(0)
    made = []
    for uid, (a, b) in enumerate(prepare.pairs(0, count)):
        question = words(prepare.prompt(a, b))["input_ids"]
        answer = words(prepare.response(a, b, worked=True))["input_ids"]
        tokens = np.array([*question, *answer, words.eos_token_id], dtype=np.int32)
        mask, logprobs = np.arange(len(tokens)) >= len(question), np.zeros(len(tokens), dtype=np.float32)
        sample = dict(key=SampleKey(uid, 0), tokens=tokens, loss_mask=mask, rollout_logprobs=logprobs)
        made.append(Sample(**sample, advantage=float(random.normal())))
    return made

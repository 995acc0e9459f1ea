"""The quickstart's model and sequences: what the benchmarks of both engines work on."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from examples.quickstart import prepare
from yatt.types import Sample, SampleKey

CONTEXT = 64


def save_model(folder: Path | str) -> str:
    """A random Qwen3 of 525k parameters and its tokenizer, as a Hugging Face folder."""
    words = prepare.tokenizer()
    words.save_pretrained(folder)
    prepare.model(0, words).save_pretrained(folder)
    return str(folder)


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

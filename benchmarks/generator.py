"""Our generator against Hugging Face `generate`: the same prompts and responses of given lengths, one thread each.

    python -m benchmarks.generator --engine sglang

Hugging Face runs in a process of its own, since engines patch torch. Its batch lasts as long as its longest response;
only tokens that were asked for are counted. Our side also returns every token's logprob.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from benchmarks import toy
from benchmarks.common import DEVICE, alternate, main, median, ratio, significant
from yatt.config.schema import EngineName, RolloutConfig
from yatt.generation.stepped import SteppedGenerator
from yatt.types import Request, SampleKey, SamplingParams
from yatt.weights import writer_for

SIBLINGS = 8
NEVER = 1_000_000  # a stop token outside the vocabulary: every response has its full length


@cache
def _plain_model(folder: str) -> PreTrainedModel:
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(DEVICE).eval()
    model.generation_config.eos_token_id = None
    return model


def plain_generate(folder: str, tokens: np.ndarray, length: int) -> int:
    """Sample from the whole distribution at temperature 1; how many tokens that gave."""
    prompts = torch.from_numpy(tokens).long().to(DEVICE)
    whole = dict(do_sample=True, temperature=1.0, top_k=0, top_p=1.0, attention_mask=torch.ones_like(prompts))
    drawn = _plain_model(folder).generate(prompts, max_new_tokens=length, **whole)
    return drawn.shape[0] * (drawn.shape[1] - prompts.shape[1])


def request(i: int, tokens: np.ndarray, length: int) -> Request:
    """The i-th prompt for ours, with the length of its response."""
    key, params = SampleKey(i // SIBLINGS, i % SIBLINGS), SamplingParams(max_tokens=length)
    return Request(key=key, tokens=tokens, params=params, seed=i)


async def our_generate(generator: SteppedGenerator, asked: list[Request]) -> None:
    """Draw them all, and be sure of it."""
    drawn = sum([len(c.tokens) async for batch in generator.generate(asked) for c in batch])
    if drawn != sum(request.params.max_tokens for request in asked):
        raise RuntimeError("our side drew another number of tokens")


def measure(quick: bool, engine: EngineName | None) -> dict[str, Any]:
    engine = engine or "vllm"
    sequences, longest, rounds = (8, 4, 1) if quick else (192, 30, 5)
    prompts = np.repeat(np.stack(toy.prompts(sequences // SIBLINGS)), SIBLINGS, axis=0)
    # As when the quickstart's GRPO begins: six answers in ten are bare, a fifth as long as the worked ones.
    mixed = [longest if i % 10 < 4 else longest // 5 + 1 for i in range(sequences)]
    process = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
    with tempfile.TemporaryDirectory() as folder, process, asyncio.Runner() as loop:
        generator = _generator(toy.save_model(folder), engine)
        start = time.perf_counter()
        loop.run(generator.start())
        started = time.perf_counter() - start

        def plain() -> None:
            if process.submit(plain_generate, folder, prompts, longest).result() != sequences * longest:
                raise RuntimeError("Hugging Face drew another number of tokens")

        results = []
        for name, lengths in (("equal", [longest] * sequences), ("mixed", mixed)):
            asked = [request(i, *pair) for i, pair in enumerate(zip(prompts, lengths, strict=True))]
            seconds = alternate(rounds, yatt=lambda a=asked: loop.run(our_generate(generator, a)), hugging_face=plain)
            results.append(
                {"lengths": name, "sequences": sequences, "tokens": sum(lengths)}
                | {f"{side}_tokens_per_s": significant(sum(lengths) / median(s)) for side, s in seconds.items()}
                | ratio(seconds["hugging_face"], seconds["yatt"])
            )
        moves = phases(loop, generator, asked, folder, rounds)
        loop.run(generator.close())
    about: dict[str, Any] = {"engine": engine, "ratio_of": "tokens per second, YATT / Hugging Face"}
    about["start_seconds"] = significant(started)
    return about | moves | {"rounds": rounds, "results": results}


def phases(
    loop: asyncio.Runner, generator: SteppedGenerator, asked: list[Request], folder: str, rounds: int
) -> dict[str, float]:
    """Seconds of what lies between two rollouts: sleep, wake, and a load from shared memory, checksum and all."""
    writer = writer_for("shm", None, "benchmark")

    def rollout() -> None:
        loop.run(generator.resume())
        loop.run(our_generate(generator, asked))

    try:
        manifest = writer.write(load_file(f"{folder}/model.safetensors").items(), version=1)
        seconds = alternate(
            rounds,
            sleep=lambda: loop.run(generator.sleep()),
            load=lambda: loop.run(generator.load(manifest)),
            wake=lambda: loop.run(generator.wake()),
            rollout=rollout,  # so that there is a cache to free
        )
    finally:
        writer.close()
    return {f"{name}_seconds": median(seconds[name]) for name in ("sleep", "wake", "load")}


def _generator(folder: str, engine: EngineName) -> SteppedGenerator:
    config = RolloutConfig(engine=engine)
    settings = dict(context_length=toy.CONTEXT, dtype="float32", device=DEVICE, seed=0, stop_token_ids=(NEVER,))
    return SteppedGenerator(model=folder, config=config, **settings)


if __name__ == "__main__":
    main("generator", measure, {"engine": str})

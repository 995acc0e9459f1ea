"""One Megatron rank against Hugging Face with torch's AdamW, and against TRL where it is installed: CPU time of an
optimizer update, one process, one thread.

All start from the same samples and weights, and must agree on the gradient's norm. YATT packs sequences end to end;
the others pad them into one batch. YATT's side also measures entropy and the gap to the sampler, TRL's the entropy.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch.nn.utils import clip_grad_norm_
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM

from benchmarks import toy, trainer_trl
from benchmarks.common import DEVICE, alternate, main, median, ratio
from yatt.config.schema import AlgorithmConfig, Config, ModelConfig, OptimizerConfig, TrainConfig
from yatt.training.meeting import reserve_port
from yatt.training.megatron.backend import open_rank
from yatt.training.rank import TrainerRank
from yatt.types import Denominator, Sample, Share

RATE, BETAS, CLIP = 1e-4, (0.9, 0.95), 1.0
CLIP_LOW, CLIP_HIGH = 0.2, 0.28


class Plain:
    """The usual loop: pad, forward, loss, backward, clip, AdamW."""

    def __init__(self, folder: str, algorithm: str) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(DEVICE)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=RATE, betas=BETAS, weight_decay=0.0)
        self.algorithm = algorithm

    def update(self, samples: list[Sample]) -> float:
        """One update; the norm of its gradient."""
        tokens = _padded([s.tokens for s in samples]).long()
        attended = _padded([s.tokens >= 0 for s in samples])
        mask = _padded([s.loss_mask for s in samples])[:, 1:]
        logits = self.model(input_ids=tokens, attention_mask=attended).logits[:, :-1]
        logprobs = logits.log_softmax(-1).gather(-1, tokens[:, 1:, None])[..., 0]
        if self.algorithm == "sft":
            losses = -logprobs
        else:
            advantages = torch.tensor([[s.advantage] for s in samples], device=DEVICE)
            change = torch.exp(logprobs - logprobs.detach())
            clipped = change.clamp(1 - CLIP_LOW, 1 + CLIP_HIGH)
            losses = -torch.minimum(change * advantages, clipped * advantages)
        (losses[mask].sum() / mask.sum()).backward()
        norm = clip_grad_norm_(self.model.parameters(), CLIP).item()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return norm


def _padded(columns: list[Any]) -> torch.Tensor:
    return pad_sequence([torch.from_numpy(column) for column in columns], batch_first=True).to(DEVICE)


def _rank(folder: str, algorithm: str, context: int) -> TrainerRank:
    optimizer = OptimizerConfig(learning_rate=RATE, betas=BETAS, clip_grad=CLIP)
    config = Config(
        model=ModelConfig(path=folder, dtype="float32", context_length=context),
        algorithm=AlgorithmConfig(name=algorithm, clip_low=CLIP_LOW, clip_high=CLIP_HIGH),
        train=TrainConfig(steps=1000, batch_size=1, optimizer=optimizer),
    )
    with reserve_port() as keeper:
        port = keeper.getsockname()[1]
    return open_rank(config, rank=0, world_size=1, address="127.0.0.1", port=port)


def _share(samples: list[Sample]) -> list[Share]:
    total = Denominator(tokens=sum(s.trained_tokens for s in samples), sequences=len(samples))
    return [Share(step=0, rank=0, controller=0, senders=(0,), updates=((tuple(samples),),), denominators=(total,))]


def _cases(quick: bool) -> Iterator[tuple[str, str, list[Sample]]]:
    """Algorithm, model and samples of each."""
    for algorithm in ("grpo", "sft"):
        for size in (4,) if quick else (32, 192):
            yield algorithm, "0.5M", toy.samples(size)
    if not quick:
        yield "grpo", "1.0M", toy.random_samples(32 * 8, prompt=8, longest=32, ragged=False)
        yield "grpo", "9.5M", toy.random_samples(16 * 8, prompt=8, longest=128, ragged=True)


def _compare(rounds: int, algorithm: str, model: str, samples: list[Sample]) -> dict[str, Any]:
    shares = _share(samples)
    with tempfile.TemporaryDirectory() as folder:
        toy.save_model(folder, model)
        context = toy.LONGER_CONTEXT if model in toy.SHAPES else toy.CONTEXT
        rank, plain = _rank(folder, algorithm, context), Plain(folder, algorithm)
        rank.start()
        sides: dict[str, Callable[[], Any]] = {"hugging_face": partial(plain.update, samples)}
        if trainer_trl.INSTALLED and algorithm == "grpo":
            settings = dict(learning_rate=RATE, adam_beta2=BETAS[1], max_grad_norm=CLIP, epsilon_high=CLIP_HIGH)
            sides["trl"] = partial(trainer_trl.Trl(folder, len(samples), **settings).update, samples)
        ours = rank.update(shares).grad_norm
        for name, update in sides.items():
            if abs(ours - (theirs := update())) > 1e-3 * theirs:
                raise RuntimeError(f"{algorithm}: gradient norms {ours} and {theirs} of {name}: not the same work")
        seconds = alternate(rounds, time.process_time, yatt=partial(rank.update, shares), **sides)
        rank.close()
    tokens = sum(len(s.tokens) for s in samples)
    return (
        {"algorithm": algorithm, "model": model, "sequences": len(samples), "tokens": tokens}
        | {f"{side}_ms": median(seconds[side], 1e3) for side in ("yatt", "hugging_face")}
        | {"yatt_us_per_token": median(seconds["yatt"], 1e6 / tokens)}
        | ratio(seconds["yatt"], seconds["hugging_face"])
        | {"trl_ms": median(seconds["trl"], 1e3) if "trl" in seconds else None}
        | {"ratio_to_trl": ratio(seconds["yatt"], seconds["trl"])["ratio"] if "trl" in seconds else None}
    )


def measure(quick: bool) -> dict[str, Any]:
    rounds = 1 if quick else 5
    results = [_compare(rounds, *case) for case in _cases(quick)]
    return {"ratio_of": "CPU time per update, YATT / Hugging Face", "rounds": rounds, "results": results}


if __name__ == "__main__":
    main("trainer", measure)

"""One Megatron rank against Hugging Face with torch's AdamW: time of an optimizer update, one process, one thread.

Both start from the same samples and weights, and must agree on the gradient's norm. YATT packs sequences end to end;
the other side pads them into one batch. YATT's side also measures entropy and the gap to the sampler.
"""

from __future__ import annotations

import socket
import tempfile
from functools import partial
from typing import Any

import torch
from torch.nn.utils import clip_grad_norm_
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM

from benchmarks import toy
from benchmarks.common import DEVICE, alternate, main, median, ratio
from yatt.config.schema import AlgorithmConfig, Config, ModelConfig, OptimizerConfig, TrainConfig
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


def _rank(folder: str, algorithm: str) -> TrainerRank:
    optimizer = OptimizerConfig(learning_rate=RATE, betas=BETAS, clip_grad=CLIP)
    config = Config(
        model=ModelConfig(path=folder, dtype="float32", context_length=toy.CONTEXT),
        algorithm=AlgorithmConfig(name=algorithm, clip_low=CLIP_LOW, clip_high=CLIP_HIGH),
        train=TrainConfig(steps=1000, batch_size=1, optimizer=optimizer),
    )
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    return open_rank(config, rank=0, world_size=1, address="127.0.0.1", port=port)


def _share(samples: list[Sample]) -> list[Share]:
    total = Denominator(tokens=sum(s.trained_tokens for s in samples), sequences=len(samples))
    return [Share(step=0, rank=0, controller=0, senders=(0,), updates=((tuple(samples),),), denominators=(total,))]


def measure(quick: bool) -> dict[str, Any]:
    rounds, sizes = (1, (4,)) if quick else (9, (32, 192))
    results = []
    with tempfile.TemporaryDirectory() as folder:
        toy.save_model(folder)
        for algorithm in ("grpo", "sft"):
            rank, plain = _rank(folder, algorithm), Plain(folder, algorithm)
            rank.start()
            for size in sizes:
                samples = toy.samples(size)
                shares = _share(samples)
                if size == sizes[0]:
                    ours, theirs = rank.update(shares).grad_norm, plain.update(samples)
                    if abs(ours - theirs) > 1e-3 * theirs:
                        raise RuntimeError(f"{algorithm}: gradient norms {ours} and {theirs}: not the same work")
                ours, theirs = partial(rank.update, shares), partial(plain.update, samples)
                seconds = alternate(rounds, yatt=ours, hugging_face=theirs)
                results.append(
                    {"algorithm": algorithm, "sequences": size, "tokens": sum(len(s.tokens) for s in samples)}
                    | {f"{side}_ms": median(s, 1e3) for side, s in seconds.items()}
                    | ratio(seconds["yatt"], seconds["hugging_face"])
                )
            rank.close()
    return {"ratio_of": "time per update, YATT / Hugging Face", "rounds": rounds, "results": results}


if __name__ == "__main__":
    main("trainer", measure)

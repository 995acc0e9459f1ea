"""Samples, shares and a plain reference (Hugging Face, torch AdamW) for tests of the Megatron trainer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from yatt.types import Denominator, Pair, Sample, SampleKey, Share

OPTIMIZER = {
    "learning_rate": 1e-3,
    "min_learning_rate": 1e-4,
    "schedule": "linear",
    "warmup_steps": 2,
    "weight_decay": 0.1,
    "eps": 1e-6,
    "clip_grad": 1.0,
}
# Warm-up 1/2, 2/2; then the first update of 8 that fall linearly from 1e-3 to 1e-4.
RATES = (5e-4, 1e-3, 1e-3)


def config(folder: str, **train: Any) -> dict[str, Any]:
    return {
        "model": {"path": folder, "dtype": "float32"},
        "algorithm": {"name": "grpo"},
        "rollout": {"temperature": 0.7},
        "train": {"steps": 10, "batch_size": 8, "optimizer": OPTIMIZER, **train},
    }


def make_samples(seed: int, count: int = 8) -> list[Sample]:
    random = np.random.default_rng(seed)
    samples = []
    for uid in range(count):
        length = int(random.integers(3, 60))
        mask = random.random(length) < 0.7
        mask[: int(random.integers(0, 3))] = False
        # Not the padding token: Hugging Face gives its embedding no gradient.
        tokens = random.integers(3, 96, length).astype(np.int32)
        samples.append(
            Sample(
                key=SampleKey(uid, 0),
                tokens=tokens,
                loss_mask=mask,
                rollout_logprobs=np.zeros(length, dtype=np.float32),
                advantage=float(random.normal()),
            )
        )
    return samples


def denominator(samples: list[Sample]) -> Denominator:
    return Denominator(tokens=sum(s.trained_tokens for s in samples), sequences=len(samples))


def pair(uid: int, tokens: Sequence[np.ndarray], masks: Sequence[np.ndarray], reward: float) -> Pair:
    """Of two sequences."""
    first, second = (
        Sample(key=SampleKey(uid, 0), tokens=one, loss_mask=mask, reward=reward)
        for one, mask in zip(tokens, masks, strict=True)
    )
    return Pair(first=first, second=second)


def shares(samples: list[Sample], replicas: int, micro_batches: int = 2, controllers: int = 1) -> list[list[Share]]:
    """By replica, then controller: samples dealt to replicas, then micro-batches, then controllers, one update."""
    total = denominator(samples)
    by_replica = []
    for r in range(replicas):
        mine = samples[r::replicas]
        parts = [mine[m::micro_batches] for m in range(micro_batches)]
        by_replica.append(
            [
                Share(
                    step=1,
                    rank=r,
                    controller=c,
                    senders=tuple(range(controllers)),
                    updates=(tuple(tuple(part[c::controllers]) for part in parts),),
                    denominators=(total,),
                )
                for c in range(controllers)
            ]
        )
    return by_replica


def hf_logprobs(model: torch.nn.Module, sample: Sample, temperature: float) -> torch.Tensor:
    """[T], 0 for the first token; the sequence on its own, unpadded."""
    tokens = torch.from_numpy(sample.tokens.astype(np.int64))
    logits = model(tokens[None]).logits[0] / temperature
    chosen = torch.log_softmax(logits[:-1], -1).gather(1, tokens[1:, None])[:, 0]
    return torch.cat([torch.zeros(1), chosen])


class Reference:
    """Hugging Face and torch AdamW in one process. Weight decay on matrices only, as Megatron has it."""

    def __init__(self, folder: str, temperature: float = 0.7) -> None:
        self.model = self.open(folder)
        self.temperature, self.clip = temperature, 1.0
        vectors = [p for n, p in self.model.named_parameters() if p.ndim == 1 or n.endswith("bias")]
        matrices = [p for n, p in self.model.named_parameters() if p.ndim > 1 and not n.endswith("bias")]
        groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), eps=1e-6)

    def open(self, folder: str) -> Any:
        # Not SDPA, which passes over a Gemma-2's bound of scores.
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")

    def logprobs(self, sample: Sample) -> torch.Tensor:
        return hf_logprobs(self.model, sample, self.temperature)

    def annotate(self, samples: list[Sample]) -> list[Sample]:
        """The same samples with these weights' logprobs as the sampler's."""
        with torch.no_grad():
            columns = [self.logprobs(s).numpy() for s in samples]
        return [replace(s, rollout_logprobs=c) for s, c in zip(samples, columns, strict=True)]

    def step(self, samples: list[Sample], rate: float) -> tuple[float, float]:
        """On-policy: the ratio is 1, so the loss is -mean(advantage) with the gradient of -advantage x logprob."""
        self.optimizer.zero_grad()
        loss = torch.zeros(())
        for s in samples:
            logprobs = self.logprobs(s)
            mask = torch.from_numpy(s.loss_mask.copy())
            mask[0] = False
            loss = loss - s.advantage * torch.exp(logprobs - logprobs.detach())[mask].sum()
        loss = loss / sum(s.trained_tokens for s in samples)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        return loss.item(), norm.item()

    def weights(self) -> dict[str, np.ndarray]:
        tied = self.model.config.tie_word_embeddings
        return {
            name: value.detach().clone().numpy()
            for name, value in self.model.state_dict().items()
            if not (tied and name == "lm_head.weight")
        }


def worst(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> float:
    assert ours.keys() == theirs.keys()
    return max(float(np.abs(ours[name] - theirs[name]).max()) for name in theirs)

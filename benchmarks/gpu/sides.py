"""The sides of a comparison: a rank of this trainer, and the plainest loops over transformers' models."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.nn.utils.rnn import pad_sequence

from benchmarks.gpu import models
from yatt.config.schema import AlgorithmConfig, Config, ModelConfig, OptimizerConfig, RolloutConfig, TrainConfig
from yatt.training.batch import pack, token_logprobs
from yatt.training.layout import Layout
from yatt.training.meeting import reserve_port
from yatt.training.megatron.backend import MegatronBackend
from yatt.training.rank import open_training
from yatt.training.update import Training
from yatt.types import Sample

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
OPTIMIZER = OptimizerConfig(learning_rate=1e-4, betas=(0.9, 0.95), eps=1e-6, clip_grad=1.0)
Recompute = Literal["none", "full"]


def config(path: str, dtype: str, *, tokens: int, recompute: str = "none", attention: str = "auto") -> Config:
    """Supervised fine-tuning: the loss both sides have."""
    train = {"recompute": recompute, "attention": attention, "tokens_per_micro_batch": tokens, "optimizer": OPTIMIZER}
    return Config(
        model=ModelConfig(path=path, dtype=dtype, context_length=tokens),
        algorithm=AlgorithmConfig(name="sft"),
        rollout=RolloutConfig(max_tokens=tokens),
        train=TrainConfig(steps=1000, batch_size=1, **train),
    )


@contextmanager
def joined(settings: Config) -> Iterator[Layout]:
    """The groups of one rank, as a run has them: NCCL's on a GPU, gloo's on a CPU."""
    backend = MegatronBackend()
    with reserve_port() as keeper:
        port = keeper.getsockname()[1]
        layout = backend.join(settings, rank=0, world_size=1, address="127.0.0.1", port=port)
    try:
        yield layout
    finally:
        backend.leave()


def open_yatt(settings: Config, layout: Layout) -> Training:
    """A rank's models, their weights drawn."""
    with models.drawn():
        return open_training(MegatronBackend(), settings, layout)


def logprobs(training: Training, batch: list[Sample]) -> Tensor:
    """Of every token [T] but the first of each sequence, under the weights as they are."""
    micro = pack(batch, models.denominator(batch), training.layout.device, 1)
    columns: list[Tensor] = []
    training.policy.infer(
        [micro], lambda m, logits: columns.append(token_logprobs(logits, m.batch, 1.0, training.layout.tp)[0])
    )
    return columns[0][micro.batch.position_ids > 0].cpu()


class Plain:
    """transformers and AdamW. `packed`: sequences end to end, told apart by their positions; else padded."""

    def __init__(
        self, path: str, device: torch.device, dtype: torch.dtype, attention: str, *, packed: bool, recompute: str
    ) -> None:
        self.device, self.packed = device, packed
        self.model = models.transformer(path, device, dtype, attention)
        self.model.train()
        if recompute == "full":
            self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        options: dict[str, Any] = {"fused": True} if device.type == "cuda" else {}
        rate, betas, eps = OPTIMIZER.learning_rate, OPTIMIZER.betas, OPTIMIZER.eps
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=rate, betas=betas, eps=eps, weight_decay=0.0, **options
        )

    def update(self, micro_batches: list[list[Sample]]) -> tuple[float, float]:
        """One update; its loss and its gradient's norm."""
        total, loss = sum(s.trained_tokens for micro in micro_batches for s in micro), 0.0
        for micro in micro_batches:
            part = -self._chosen(micro).sum() / total
            part.backward()
            loss += part.item()
        norm = clip_grad_norm_(self.model.parameters(), OPTIMIZER.clip_grad).item()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss, norm

    @torch.no_grad()
    def logprobs(self, batch: list[Sample]) -> Tensor:
        """As `sides.logprobs`, each sequence by itself."""
        return torch.cat([self._chosen([sample]) for sample in batch]).cpu()

    def _chosen(self, micro: list[Sample]) -> Tensor:
        """Log-probability of each token but the first of each sequence."""
        columns = [torch.from_numpy(s.tokens).long().to(self.device) for s in micro]
        if self.packed:
            tokens = torch.cat(columns)[None]
            positions = torch.cat([torch.arange(len(c), device=self.device) for c in columns])[None]
            logits = self.model(input_ids=tokens, position_ids=positions, use_cache=False).logits
            counted = positions[0, 1:] > 0
        else:
            tokens = pad_sequence(columns, batch_first=True)
            lengths = torch.tensor([len(c) for c in columns], device=self.device)
            attended = (torch.arange(tokens.shape[1], device=self.device) < lengths[:, None]).long()
            logits = self.model(input_ids=tokens, attention_mask=attended, use_cache=False).logits
            counted = attended[:, 1:].bool()
        logits, targets = logits[:, :-1], tokens[:, 1:]
        if self.packed:
            counted = counted[None]
        return -F.cross_entropy(logits[counted].float(), targets[counted], reduction="none")


def padded(batch: list[Sample], budget: int) -> list[list[Sample]]:
    """Micro-batches in the order of the samples, each at most `budget` tokens with its padding, or one sample."""
    parts: list[list[Sample]] = [[]]
    for sample in batch:
        longest = max(len(s.tokens) for s in [*parts[-1], sample])
        if parts[-1] and longest * (len(parts[-1]) + 1) > budget:
            parts.append([])
        parts[-1].append(sample)
    return parts

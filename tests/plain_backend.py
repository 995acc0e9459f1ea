"""A double of a trainer backend: transformers' own model and torch's AdamW, whole on every rank, one replica a rank."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from yatt.config.schema import Config, OptimizerConfig
from yatt.training.batch import MicroBatch
from yatt.training.layout import Layout
from yatt.training.model import Head, OnOutput
from yatt.training.rank import TrainerRank
from yatt.training.schedule import learning_rate


class PlainModel:
    """Implements `yatt.training.model.Model`: each sequence on its own, unpadded."""

    def __init__(self, path: str, head: Head = "tokens") -> None:
        self.head = head
        if head == "tokens":
            self.module = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        else:
            self.module = AutoModelForSequenceClassification.from_pretrained(path, dtype=torch.float32, num_labels=1)
        self.identity: dict[str, Any] = {"path": path}

    def infer(self, micro_batches: Sequence[MicroBatch], on_output: Callable[[MicroBatch, Tensor], None]) -> None:
        with torch.no_grad():
            for micro in micro_batches:
                on_output(micro, self.forward(micro))

    def forward(self, micro: MicroBatch) -> Tensor:
        """Logits [1, T, V], or values [1, T, 1]."""
        sequences = micro.batch.tokens.tensor_split(micro.batch.cu_seqlens[1:-1].cpu())
        if self.head == "tokens":
            return torch.cat([self.module(tokens[None]).logits for tokens in sequences], dim=1)
        hidden = [self.module.model(tokens[None]).last_hidden_state for tokens in sequences]
        return self.module.score(torch.cat(hidden, dim=1))

    def export(self) -> Iterator[tuple[str, Tensor]]:
        tied = self.module.config.tie_word_embeddings and self.head == "tokens"
        for name, tensor in self.module.state_dict().items():
            if not (tied and name == "lm_head.weight"):
                yield name, tensor

    @contextmanager
    def aboard(self) -> Iterator[None]:
        yield

    def put_away(self) -> None:
        """There is no other memory."""

    def take_back(self) -> None:
        """It never left."""


class PlainLearner(PlainModel):
    """Implements `yatt.training.model.Learner`."""

    def __init__(self, path: str, head: Head, settings: OptimizerConfig, planned: int) -> None:
        super().__init__(path, head)
        self._settings, self._planned, self._updates = settings, planned, 0
        self._parameters = list(self.module.parameters())
        matrices = [p for p in self._parameters if p.ndim > 1]
        vectors = [p for p in self._parameters if p.ndim == 1]
        self._optimizer = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": settings.weight_decay},
                {"params": vectors, "weight_decay": 0.0},
            ],
            betas=settings.betas,
            eps=settings.eps,
        )

    @property
    def rate(self) -> float:
        return learning_rate(self._settings, self._updates, self._planned)

    def learn(self, micro_batches: Sequence[MicroBatch], loss: OnOutput) -> None:
        for parameter in self._parameters:
            parameter.grad = torch.zeros_like(parameter)
        for micro in micro_batches:
            loss(micro, self.forward(micro)).backward()
        for parameter in self._parameters:
            dist.all_reduce(parameter.grad)

    def without_adapters(self) -> None:
        """It has none."""

    def step(self) -> tuple[float, bool]:
        rate = self.rate
        self._updates += 1
        norm = float(torch.nn.utils.get_total_norm([p.grad for p in self._parameters if p.grad is not None]))
        if not math.isfinite(norm):
            return norm, False
        if self._settings.clip_grad:
            torch.nn.utils.clip_grad_norm_(self._parameters, self._settings.clip_grad)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        return norm, True

    def save(self, path: str, more: dict[str, Any]) -> Callable[[], None]:
        Path(path).mkdir(parents=True, exist_ok=True)
        states = {"module": self.module.state_dict(), "optimizer": self._optimizer.state_dict()}
        torch.save({**states, "more": {"updates": self._updates, **more}}, Path(path) / "plain.pt")
        return lambda: None

    def load(self, path: str) -> dict[str, Any]:
        saved = torch.load(Path(path) / "plain.pt")
        self.module.load_state_dict(saved["module"])
        self._optimizer.load_state_dict(saved["optimizer"])
        self._updates = saved["more"]["updates"]
        return dict(saved["more"])


class PlainBackend:
    """Implements `yatt.training.model.Backend`."""

    def join(self, config: Config, *, rank: int, world_size: int, address: str, port: int) -> Layout:
        wait = timedelta(seconds=60)
        store = dist.TCPStore(address, port, world_size, rank == 0, timeout=wait)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size, timeout=wait)
        alone = [dist.new_group([other]) for other in range(world_size)][rank]
        assert dist.group.WORLD is not None
        return Layout(rank, torch.device("cpu"), tp=alone, pp=alone, dp=dist.group.WORLD)

    def leave(self) -> None:
        if dist.is_initialized():
            dist.destroy_process_group()

    def frozen(self, config: Config, layout: Layout, path: str, setting: str) -> PlainModel:
        return PlainModel(path)

    def learner(
        self,
        config: Config,
        layout: Layout,
        path: str,
        setting: str,
        head: Head,
        *,
        settings: OptimizerConfig,
        planned: int,
    ) -> PlainLearner:
        return PlainLearner(path, head, settings, planned)


def open_rank(config: Config, **place: Any) -> TrainerRank:
    return TrainerRank(PlainBackend(), config, **place)

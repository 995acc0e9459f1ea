"""AdamW on the shards that a rank holds, as plain tensors: what it does to an element depends on no other."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from yatt.config.schema import OptimizerConfig
from yatt.training.fsdp.model import Opened, local, row_range
from yatt.training.layout import Layout
from yatt.training.shard_files import Box

MODEL, MOMENTS = "model", ("exp_avg", "exp_avg_sq")
EPSILON = 1e-6
"""Keeps the factor of a clipped gradient finite, as in torch's `clip_grad_norm_`."""


class Optimizer:
    """AdamW and its states for this rank's shards. Biases and norms get no weight decay."""

    def __init__(self, settings: OptimizerConfig, opened: Opened, layout: Layout) -> None:
        self._settings, self._layout = settings, layout
        trained = [(name, p) for name, p in opened.module.named_parameters() if p.requires_grad]
        self._parameters = [(opened.name(name), p, nn.Parameter(local(p))) for name, p in trained]
        decayed, plain = list[Tensor](), list[Tensor]()
        for name, parameter, shard in self._parameters:
            if shard.numel():
                (plain if parameter.ndim == 1 or name.endswith("bias") else decayed).append(shard)
        groups = ((decayed, settings.weight_decay), (plain, 0.0))
        self._adamw = torch.optim.AdamW(
            [{"params": shards, "weight_decay": decay} for shards, decay in groups if shards],
            betas=settings.betas,
            eps=settings.eps,
            fused=True,
        )
        # Now: memory is then what it will be, and a checkpoint can be had before the first update.
        for group in self._adamw.param_groups:
            for shard in group["params"]:
                moments = {name: torch.zeros_like(shard) for name in MOMENTS}
                self._adamw.state[shard] = {"step": torch.zeros((), device=shard.device), **moments}

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for _, parameter, shard in self._parameters:
            parameter.grad = shard.grad = None

    @torch.no_grad()
    def step(self, rate: float) -> tuple[float, bool]:
        """Clip and apply the gradients; returns their norm over the whole model and whether they were applied.

        Gradients whose norm is not finite are dropped, on every rank alike. Collective over all ranks."""
        shards = [shard for _, _, shard in self._parameters]
        for _, parameter, shard in self._parameters:
            shard.grad = None if parameter.grad is None else local(parameter.grad)
        gradients = [shard.grad for shard in shards if shard.grad is not None]
        norm = self._norm(gradients)
        if not math.isfinite(norm):
            return norm, False
        largest = self._settings.clip_grad
        if largest > 0 and (factor := largest / (norm + EPSILON)) < 1:
            torch._foreach_mul_(gradients, factor)
        for group in self._adamw.param_groups:
            group["lr"] = rate
        self._adamw.step()
        return norm, True

    def _norm(self, gradients: list[Tensor]) -> float:
        norms = torch._foreach_norm(gradients, dtype=torch.float64) if gradients else [torch.zeros(())]
        square = torch.stack([norm.to(self._layout.device, torch.float64) for norm in norms]).square().sum()
        dist.all_reduce(square, group=self._layout.dp)
        return float(square.sqrt())

    def tensors(self) -> Iterator[Tensor]:
        """The weights and their moments."""
        for _, _, shard in self._parameters:
            yield shard
            yield from (self._adamw.state[shard][name] for name in MOMENTS if shard in self._adamw.state)

    def boxes(self) -> Iterator[Box]:
        """This rank's part of the weights and moments, as boxes of whole tensors."""
        for name, parameter, shard in self._parameters:
            if shard in self._adamw.state:
                held = {MODEL: shard.detach()}
                held |= {f"optimizer.{moment}": self._adamw.state[shard][moment] for moment in MOMENTS}
                yield from (box(f"{kind}.{name}", parameter, values) for kind, values in held.items())

    @property
    def updates(self) -> float:
        """How many updates AdamW has counted: the same for all parameters."""
        return max((float(states["step"]) for states in self._adamw.state.values()), default=0.0)

    @updates.setter
    def updates(self, count: float) -> None:
        for states in self._adamw.state.values():
            states["step"].fill_(count)


def box(name: str, parameter: Tensor, values: Tensor) -> Box:
    """This rank's part of a parameter, or of a state of its shape."""
    start = row_range(parameter)[0] if isinstance(parameter, DTensor) else 0
    return Box(name, tuple(parameter.shape), (start, *(0 for _ in parameter.shape[1:])), values)

"""AdamW over Megatron's distributed optimizer: states sharded over data parallelism."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.models.gpt import GPTModel
from megatron.core.optimizer import (
    ChainedOptimizer,
    OptimizerConfig,
    ParamKey,
    get_megatron_optimizer,
    get_standard_config_overrides,
)
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32
from torch import Tensor

from yatt.config.schema import OptimizerConfig as Settings


def wrap(model: GPTModel) -> DistributedDataParallel:
    """Give the model float32 gradient buffers, reduced once per update."""
    settings = DistributedDataParallelConfig(use_distributed_optimizer=True, grad_reduce_in_fp32=True)
    return DistributedDataParallel(model.config, settings, model)


def build(settings: Settings, dtype: torch.dtype, model: DistributedDataParallel) -> ChainedOptimizer:
    """The optimizer of this rank. Biases and norms get no weight decay. A vision tower has groups of its own, which are
    marked."""
    config = OptimizerConfig(
        optimizer="adam",
        lr=settings.learning_rate,
        min_lr=settings.min_learning_rate,
        weight_decay=settings.weight_decay,
        adam_beta1=settings.betas[0],
        adam_beta2=settings.betas[1],
        adam_eps=settings.eps,
        clip_grad=settings.clip_grad,
        use_distributed_optimizer=True,
        bf16=dtype == torch.bfloat16,
        params_dtype=dtype,
    )
    of_tower: Any = {VISION: True}
    optimizer = get_megatron_optimizer(
        config,
        [model],
        config_overrides={**get_standard_config_overrides(config), ParamKey(name="*visual.*"): of_tower},
        use_gloo_process_groups=False,
    )
    _fill(optimizer)
    return optimizer


VISION = "vision"
"""Marks the optimizer's groups of a vision tower."""
FUSED = ("cuda",)
"""Devices on which AdamW is one kernel. Elsewhere it is several, which would hold a copy of the weights in between."""


def counter(parameter: Tensor, updates: float) -> Tensor:
    """AdamW's count of a parameter's updates: its one kernel reads it on the device."""
    return torch.tensor(updates, device=parameter.device if parameter.device.type in FUSED else None)


def _fill(optimizer: ChainedOptimizer) -> None:
    """Make the moments now: memory is then what it will be, and a checkpoint can be had before the first update."""
    for part in optimizer.chained_optimizers:
        if not isinstance(part.optimizer, torch.optim.AdamW):
            continue
        for group in part.optimizer.param_groups:
            for parameter in group["params"]:
                part.optimizer.state[parameter] = {
                    "step": counter(parameter, 0.0),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }


def tensors(optimizer: ChainedOptimizer) -> Iterator[Tensor]:
    """The moments, and the main weights: a float32 model's are its own."""
    for part in optimizer.chained_optimizers:
        for group in part.optimizer.param_groups:
            yield from group["params"]
        for values in part.optimizer.state.values():
            yield from (value for value in values.values() if isinstance(value, Tensor))


@torch.no_grad()
def step(optimizer: ChainedOptimizer, rate: float, vision_rate: float) -> tuple[float, bool]:
    """Clip and apply the gradients; returns their norm over the whole model and whether they were applied. A vision
    tower learns at `rate` times `vision_rate`.

    Gradients whose norm is not finite are dropped, on every rank alike. Collective over all ranks."""
    settings = optimizer.config
    for group in optimizer.param_groups:
        # The settings', every time: Megatron leaves two to its own scheduler, and a checkpoint brings all of its own.
        group["lr"] = rate * (vision_rate if group.get(VISION) else 1.0)
        group["weight_decay"] = settings.weight_decay * group["wd_mult"]
        group["betas"], group["eps"] = (settings.adam_beta1, settings.adam_beta2), settings.adam_eps
        if "fused" in group:  # torch's
            group["fused"] = all(parameter.device.type in FUSED for parameter in group["params"]) or None
    optimizer.prepare_grads()
    norm = float(optimizer.get_grad_norm())
    if not math.isfinite(norm):
        return norm, False
    largest = settings.clip_grad
    if largest > 0:
        for part in optimizer.chained_optimizers:
            clip_grad_by_total_norm_fp32(part.get_parameters(), largest, norm)
    optimizer.step_with_ready_grads()
    return norm, True

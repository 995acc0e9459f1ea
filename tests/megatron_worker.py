"""What a process of `megatron_pool` does with a script."""

from __future__ import annotations

import resource
from typing import Any

import numpy as np
import psutil
import torch

from tests import plain_backend
from yatt.config.schema import Config
from yatt.training.fsdp import backend as fsdp_backend
from yatt.training.megatron.backend import export_checkpoint, open_rank
from yatt.training.rank import TrainerRank

BACKENDS = {"megatron": open_rank, "fsdp": fsdp_backend.open_rank, "plain": plain_backend.open_rank}


def play(
    backend: str, rank: int, world: int, port: int, config: dict[str, Any], actions: list[tuple[Any, ...]]
) -> list[Any]:
    backend = config["train"].get("backend", backend)
    if backend == "fsdp":
        config = {**config, "train": {**config["train"], "backend": "fsdp"}}
    if actions and actions[0][0] == "export_checkpoint":
        made = {"megatron": export_checkpoint, "fsdp": fsdp_backend.export_checkpoint}[backend]
        return [made(Config(**config), *actions[0][1:])]
    trainer = BACKENDS[backend](Config(**config), rank=rank, world_size=world, address="127.0.0.1", port=port)
    results: list[Any] = []
    try:
        trainer.start()
        for name, *arguments in actions:
            results.append(ACTIONS[name](trainer, *arguments))
    except Exception as error:
        results.append(("error", type(error).__name__, str(error)))
    finally:
        trainer.close()
    return results


def _update(trainer: TrainerRank, shares_by_replica: list[list[Any]]) -> Any:
    return trainer.update(shares_by_replica[trainer.dp_rank])


def _evaluate(trainer: TrainerRank, shares_by_replica: list[list[Any]]) -> Any:
    return trainer.evaluate(shares_by_replica[trainer.dp_rank])


def _reference(trainer: TrainerRank, shares_by_replica: list[list[Any]]) -> Any:
    return trainer.reference(shares_by_replica[trainer.dp_rank])


def _gradients(trainer: TrainerRank, shares_by_replica: list[list[Any]]) -> dict[str, Any]:
    """Of one update's loss, before they are clipped, in full; of a frozen weight none. One replica only: several have a
    part of the sum each."""
    training = trainer._started
    (update,), seen = training._begin(shares_by_replica[trainer.dp_rank], 1)
    policy: Any = training.policy
    policy.learn(update.micro_batches, lambda micro, output: training._loss(micro, output, seen))
    with torch.no_grad():
        kept = [parameter.clone() for parameter in policy.bare.parameters()]
        for parameter in policy.bare.parameters():
            parameter.copy_(getattr(parameter, "main_grad", torch.full_like(parameter, torch.nan)))
        gradients = _export(trainer)
        for parameter, weight in zip(policy.bare.parameters(), kept, strict=True):
            parameter.copy_(weight)
    return {name: value for name, value in gradients.items() if not np.isnan(value).any()}


def _export(trainer: TrainerRank) -> dict[str, Any]:
    return {name: tensor.float().cpu().clone().numpy() for name, tensor in trainer.export()}


def _call(trainer: TrainerRank, method: str, *arguments: Any) -> Any:
    return getattr(trainer, method)(*arguments)


def _save_failing(trainer: TrainerRank, path: str, rank: int, limit: int) -> tuple[str, str]:
    """Save while one rank cannot write files longer than `limit` bytes, as on a full disk."""
    whole = resource.getrlimit(resource.RLIMIT_FSIZE)
    if trainer.rank == rank:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, whole[1]))
    try:
        trainer.save(path)
    except Exception as error:
        return type(error).__name__, str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, whole)
    return "saved", path


def _coordinates(trainer: TrainerRank) -> tuple[int, int]:
    return trainer.dp_rank, trainer.dp_size


def _listeners(trainer: TrainerRank) -> list[str]:
    """The addresses at which this process listens."""
    return [c.laddr.ip for c in psutil.Process().net_connections("inet") if c.status == psutil.CONN_LISTEN]


ACTIONS = {
    "listeners": _listeners,
    "update": _update,
    "evaluate": _evaluate,
    "reference": _reference,
    "gradients": _gradients,
    "export": _export,
    "call": _call,
    "coordinates": _coordinates,
    "save_failing": _save_failing,
}

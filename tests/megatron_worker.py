"""What a process of `megatron_pool` does with a script."""

from __future__ import annotations

from typing import Any

from yatt.config.schema import Config
from yatt.training.megatron.rank import MegatronRank


def play(rank: int, world: int, port: int, config: dict[str, Any], actions: list[tuple[Any, ...]]) -> list[Any]:
    trainer = MegatronRank(Config(**config), rank=rank, world_size=world, address="127.0.0.1", port=port)
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


def _update(trainer: MegatronRank, shares_by_replica: list[list[Any]]) -> Any:
    return trainer.update(shares_by_replica[trainer.dp_rank])


def _export(trainer: MegatronRank) -> dict[str, Any]:
    return {name: tensor.float().cpu().clone().numpy() for name, tensor in trainer.export()}


def _call(trainer: MegatronRank, method: str, *arguments: Any) -> Any:
    return getattr(trainer, method)(*arguments)


def _coordinates(trainer: MegatronRank) -> tuple[int, int, bool]:
    return trainer.dp_rank, trainer.dp_size, trainer.is_model_parallel_writer


ACTIONS = {"update": _update, "export": _export, "call": _call, "coordinates": _coordinates}

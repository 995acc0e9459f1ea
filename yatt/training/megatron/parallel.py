"""The process groups of one rank."""

from __future__ import annotations

import math

from megatron.core import parallel_state, tensor_parallel

from yatt.config.schema import Config
from yatt.errors import ConfigError
from yatt.training.layout import Layout
from yatt.training.world import join_world, leave_world


def start(config: Config, *, rank: int, world_size: int, address: str, port: int) -> Layout:
    """Join the other ranks as `join_world` does. Ranks are ordered with tensor-parallel neighbours first, then
    replicas, then stages."""
    tp, pp = config.train.tp, config.train.pp
    if world_size % (tp * pp):
        raise ConfigError(
            f"train.tp={tp} x train.pp={pp} does not divide {world_size} ranks; use cluster.slots={tp * pp}"
        )
    device = join_world(config, rank=rank, world_size=world_size, address=address, port=port)
    minutes = math.ceil(config.cluster.step_timeout / 60)
    parallel_state.initialize_model_parallel(
        tp, pp, create_gloo_process_groups=False, distributed_timeout_minutes=minutes
    )
    tensor_parallel.model_parallel_cuda_manual_seed(config.run.seed)
    return Layout(
        rank,
        device,
        tp=parallel_state.get_tensor_model_parallel_group(),
        pp=parallel_state.get_pipeline_model_parallel_group(),
        dp=parallel_state.get_data_parallel_group(with_context_parallel=True),
    )


def stop() -> None:
    """Leave the groups; waits for nobody."""
    parallel_state.destroy_model_parallel()
    leave_world()

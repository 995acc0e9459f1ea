"""Process groups of one rank: who it is, and whom it shares weights, layers and data with."""

from __future__ import annotations

import gc
import math
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from megatron.core import parallel_state, tensor_parallel

from yatt.errors import BackendError, ConfigError, WaitTimeout


@dataclass(frozen=True, slots=True)
class Groups:
    """The coordinates of this rank and the groups it talks in."""

    rank: int
    world_size: int
    device: torch.device
    tp: dist.ProcessGroup
    pp: dist.ProcessGroup
    dp: dist.ProcessGroup

    @property
    def first_stage(self) -> bool:
        return self.pp.rank() == 0

    @property
    def last_stage(self) -> bool:
        return self.pp.rank() == self.pp.size() - 1

    @property
    def reports(self) -> bool:
        """True on one rank of each data-parallel replica: the one whose numbers count."""
        return self.last_stage and self.tp.rank() == 0


def start(
    *,
    rank: int,
    world_size: int,
    address: str,
    port: int,
    tp: int,
    pp: int,
    seed: int,
    start_timeout: float,
    step_timeout: float,
) -> Groups:
    """Join the other ranks, of which rank 0 listens at `address` and `port`.

    Waits for all of them, `start_timeout` seconds at most, then raises WaitTimeout; later no collective waits longer
    than `step_timeout`. Ranks are ordered with tensor-parallel neighbours first, then replicas, then stages."""
    if world_size % (tp * pp):
        raise ConfigError(
            f"train.tp={tp} x train.pp={pp} does not divide {world_size} ranks; use cluster.slots={tp * pp}"
        )
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", rank % torch.cuda.device_count()) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    try:
        store = dist.TCPStore(address, port, world_size, rank == 0, timeout=timedelta(seconds=start_timeout))
    except dist.DistNetworkError as error:
        if rank == 0:
            raise BackendError(f"trainer rank 0 cannot listen at {address}:{port}: {error}; free the port") from error
        raise WaitTimeout(
            f"trainer rank {rank} waited {start_timeout:g} s for rank 0 at {address}:{port}: {error}"
        ) from error
    except dist.DistStoreError as error:
        raise WaitTimeout(
            f"trainer rank {rank} waited {start_timeout:g} s for {world_size - 1} other rank(s): {error}"
        ) from error
    limit = timedelta(seconds=step_timeout)
    dist.init_process_group("nccl" if cuda else "gloo", store=store, rank=rank, world_size=world_size, timeout=limit)
    parallel_state.initialize_model_parallel(
        tp, pp, create_gloo_process_groups=False, distributed_timeout_minutes=max(1, math.ceil(step_timeout / 60))
    )
    tensor_parallel.model_parallel_cuda_manual_seed(seed)
    return Groups(
        rank=rank,
        world_size=world_size,
        device=device,
        tp=parallel_state.get_tensor_model_parallel_group(),
        pp=parallel_state.get_pipeline_model_parallel_group(),
        dp=parallel_state.get_data_parallel_group(with_context_parallel=True),
    )


def stop() -> None:
    """Leave the groups; waits for nobody."""
    parallel_state.destroy_model_parallel()
    if dist.is_initialized():
        dist.destroy_process_group()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()

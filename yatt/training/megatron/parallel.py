"""The process groups of one rank."""

from __future__ import annotations

import gc
import math
import os
from datetime import timedelta

import torch
import torch.distributed as dist
from megatron.core import parallel_state, tensor_parallel
from torch._C._distributed_c10d import TCPStore

from yatt.config.schema import Config
from yatt.errors import ConfigError, WaitTimeout
from yatt.training.layout import Layout
from yatt.training.meeting import listen, loopback


def start(config: Config, *, rank: int, world_size: int, address: str, port: int) -> Layout:
    """Join the other ranks, of which rank 0 listens at `address` and `port`.

    Waits for all of them, `cluster.start_timeout` at most, then raises WaitTimeout; later no collective waits longer
    than `cluster.step_timeout`. Ranks are ordered with tensor-parallel neighbours first, then replicas, then stages."""
    tp, pp, limits = config.train.tp, config.train.pp, config.cluster
    if world_size % (tp * pp):
        raise ConfigError(
            f"train.tp={tp} x train.pp={pp} does not divide {world_size} ranks; use cluster.slots={tp * pp}"
        )
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", rank % torch.cuda.device_count()) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if loopback(address):
        for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            os.environ.setdefault(name, "lo")
    store = _meet(rank, world_size, address, port, limits.start_timeout)
    limit = timedelta(seconds=limits.step_timeout)
    dist.init_process_group("nccl" if cuda else "gloo", store=store, rank=rank, world_size=world_size, timeout=limit)
    minutes = math.ceil(limits.step_timeout / 60)
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


def _meet(rank: int, world_size: int, address: str, port: int, timeout: float) -> TCPStore:
    waited = f"trainer rank {rank} waited {timeout:g} s for"
    wait, listener = timedelta(seconds=timeout), listen(address, port).detach() if rank == 0 else None
    try:
        return TCPStore(address, port, world_size, rank == 0, timeout=wait, master_listen_fd=listener)
    except dist.DistNetworkError as error:
        raise WaitTimeout(f"{waited} rank 0 at {address}:{port}: {error}") from error
    except dist.DistStoreError as error:
        raise WaitTimeout(f"{waited} {world_size - 1} other rank(s): {error}") from error


def stop() -> None:
    """Leave the groups; waits for nobody."""
    parallel_state.destroy_model_parallel()
    if dist.is_initialized():
        dist.destroy_process_group()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()

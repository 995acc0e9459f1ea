"""How the ranks of a trainer become one world: its device, and the group of all."""

from __future__ import annotations

import gc
import os
from datetime import timedelta

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import TCPStore

from yatt.config.schema import Config
from yatt.errors import WaitTimeout
from yatt.training.meeting import listen, loopback


def join_world(config: Config, *, rank: int, world_size: int, address: str, port: int) -> torch.device:
    """Join the other ranks, of which rank 0 listens at `address` and `port`; returns this rank's device.

    Waits for all of them, `cluster.start_timeout` at most, then raises WaitTimeout; later no collective waits longer
    than `cluster.step_timeout`."""
    cuda, limits = torch.cuda.is_available(), config.cluster
    device = torch.device("cuda", rank % torch.cuda.device_count()) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if loopback(address):
        for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            os.environ.setdefault(name, "lo")
    store = _meet(rank, world_size, address, port, limits.start_timeout)
    limit = timedelta(seconds=limits.step_timeout)
    dist.init_process_group("nccl" if cuda else "gloo", store=store, rank=rank, world_size=world_size, timeout=limit)
    return device


def leave_world() -> None:
    """Leave all groups; waits for nobody."""
    if dist.is_initialized():
        dist.destroy_process_group()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _meet(rank: int, world_size: int, address: str, port: int, timeout: float) -> TCPStore:
    waited = f"trainer rank {rank} waited {timeout:g} s for"
    wait, listener = timedelta(seconds=timeout), listen(address, port).detach() if rank == 0 else None
    try:
        return TCPStore(address, port, world_size, rank == 0, timeout=wait, master_listen_fd=listener)
    except dist.DistNetworkError as error:
        raise WaitTimeout(f"{waited} rank 0 at {address}:{port}: {error}") from error
    except dist.DistStoreError as error:
        raise WaitTimeout(f"{waited} {world_size - 1} other rank(s): {error}") from error

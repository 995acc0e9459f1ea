"""What vLLM's workers run for us: weight loads, and a sleep that frees memory on a CPU. Imported by vLLM, by name."""

from __future__ import annotations

import ctypes
import mmap
import os
from typing import Any

import torch
import vllm.model_executor.layers.utils as linear_dispatch
from vllm.platforms import current_platform

from yatt.errors import BackendError
from yatt.types import WeightManifest
from yatt.weights import read

MADV_DONTNEED = 4


def _plain_linear(layer: torch.nn.Module, remove_weight: bool) -> None:
    layer.__dict__["cpu_linear"] = torch.nn.functional.linear


if current_platform.is_cpu():
    # vLLM packs linear weights into copies that a later load does not reach (a tied lm_head keeps stale ones,
    # without an error). Plain weights cost a few per cent of speed and make every load correct.
    linear_dispatch.dispatch_cpu_unquantized_gemm = _plain_linear


class WorkerExtension:
    """Mixed into vLLM's worker class; each method is called on every worker of an engine by `collective_rpc`."""

    model_runner: Any  # the worker's

    def yatt_load(self, manifest: WeightManifest) -> None:
        """Copy verified weights into the model."""
        self.model_runner.model.load_weights(read(manifest, verified=True))

    def yatt_free_kv_cache(self) -> int:
        """Give the KV cache's pages back to the system (CPU only); returns the bytes that were resident.

        Addresses stay valid: a page that is touched again is a fresh one of zeros, so that waking is free.
        """
        before = _resident_bytes()
        libc = ctypes.CDLL(None, use_errno=True)
        for address, size in self._kv_storages().items():
            start = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
            length = (address + size - start) // mmap.PAGESIZE * mmap.PAGESIZE
            if libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), MADV_DONTNEED) != 0:
                raise BackendError(f"the KV cache cannot be freed: {os.strerror(ctypes.get_errno())}")
        return max(0, before - _resident_bytes())

    def yatt_device_bytes(self) -> int:
        """Bytes in use on this worker's device (CUDA only)."""
        free, total = torch.cuda.mem_get_info()
        return total - free

    def _kv_storages(self) -> dict[int, int]:
        storages = [cache.untyped_storage() for cache in self.model_runner.kv_caches]
        return {storage.data_ptr(): storage.nbytes() for storage in storages}


def _resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * mmap.PAGESIZE

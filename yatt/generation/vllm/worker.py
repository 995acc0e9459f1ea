"""Methods that vLLM's workers run for us: weight loads, and a sleep that frees memory on a CPU. Imported by vLLM, by
name."""

from __future__ import annotations

from typing import Any

import torch
import vllm.model_executor.layers.utils as linear_dispatch
from vllm.platforms import current_platform

from yatt.generation.memory import device_bytes, free_pages
from yatt.types import WeightManifest
from yatt.weights import read


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
        """Give the KV cache's pages back to the system (CPU only); returns the bytes that were resident."""
        return free_pages(self.model_runner.kv_caches)

    def yatt_device_bytes(self) -> int:
        """Bytes in use on this worker's device (CUDA only)."""
        return device_bytes()

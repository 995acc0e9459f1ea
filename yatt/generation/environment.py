"""The environment variables an engine's process must have before Python imports anything of it. Torch-free."""

from __future__ import annotations

from typing import Literal

ALWAYS = {
    # The engine runs in our process, stepped by our thread.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_DO_NOT_TRACK": "1",
    "VLLM_PLUGINS": "",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
}
PER_DEVICE = {
    "cpu": {
        "TORCHDYNAMO_DISABLE": "1",
        # Several engines share the machine: each pinned to "its" cores would fight over the first ones.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    },
    "cuda": {"VLLM_WORKER_MULTIPROC_METHOD": "spawn"},
}


def environment(device: Literal["cpu", "cuda"]) -> dict[str, str]:
    """Variables for a generator's process. OMP_NUM_THREADS is the runtime's to choose."""
    return ALWAYS | PER_DEVICE[device]

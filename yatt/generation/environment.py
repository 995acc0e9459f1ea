"""The environment variables an engine's process must have before Python imports anything of it. Torch-free."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
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


def vllm_lists(architecture: str) -> bool:
    """Whether vLLM's registry names the architecture, or for a classifier the model below its head. True also where
    there is no registry to look at. Does not import vLLM."""
    vllm = find_spec("vllm")
    folders = vllm.submodule_search_locations if vllm is not None else None
    registry = Path(folders[0] if folders else "") / "model_executor/models/registry.py"
    if not registry.is_file():
        return True
    names = registry.read_text(encoding="utf-8")
    below = architecture.replace("ForSequenceClassification", "ForCausalLM")
    return any(f'"{name}"' in names for name in (architecture, below))

"""The environment variables of vLLM's process, set before Python starts, and the models that the installed vLLM serves.
Does not import vLLM."""

from __future__ import annotations

from yatt.generation.kind import Device, folder_of

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
PER_DEVICE: dict[Device, dict[str, str]] = {
    "cpu": {
        "TORCHDYNAMO_DISABLE": "1",
        # Several engines share the machine: each pinned to "its" cores would fight over the first ones.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    },
    "cuda": {"VLLM_WORKER_MULTIPROC_METHOD": "spawn"},
}
PROBE = """
import vllm
from vllm.platforms import current_platform
from vllm.v1.engine.async_llm import AsyncLLM
assert current_platform.device_type, "vLLM knows no device here; its build does not fit the machine"
say(f"{vllm.__version__}, platform {current_platform.device_type}")
"""


def environment(device: Device) -> dict[str, str]:
    """Variables for a generator's process. OMP_NUM_THREADS is the runtime's to choose."""
    return ALWAYS | PER_DEVICE[device]


def lists(architecture: str) -> bool:
    """Whether vLLM's registry names the architecture, or for a classifier the model below its head. True also where
    there is no registry to look at."""
    folder = folder_of("vllm")
    registry = folder / "model_executor/models/registry.py" if folder is not None else None
    if registry is None or not registry.is_file():
        return True
    names = registry.read_text(encoding="utf-8")
    below = architecture.replace("ForSequenceClassification", "ForCausalLM")
    return any(f'"{name}"' in names for name in (architecture, below))

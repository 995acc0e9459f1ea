"""The environment variables of SGLang's process, set before Python starts, and the models that the installed SGLang
serves. Does not import it."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

from yatt.generation.kind import Device, folder_of

ALWAYS = {
    # The adapter counts a response's tokens itself, and asks for a context a little longer than the model's.
    "SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN": "1",
    "SGLANG_EXTERNAL_MODEL_PACKAGE": "yatt.generation.sglang.models",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
}
PER_DEVICE: dict[Device, dict[str, str]] = {
    "cpu": {"SGLANG_USE_CPU_ENGINE": "1", "TORCHDYNAMO_DISABLE": "1"},
    "cuda": {},
}
PROBE = """
import yatt.generation.sglang.standins
import sglang
from sglang.srt.managers.scheduler import Scheduler
from sglang.srt.utils import get_device
say(f"{sglang.__version__}, device {get_device()}")
"""


def environment(device: Device) -> dict[str, str]:
    """Variables for a generator's process. OMP_NUM_THREADS is the runtime's to choose."""
    return ALWAYS | PER_DEVICE[device]


def lists(architecture: str) -> bool:
    """Whether SGLang has a model of this very architecture; a classifier is not made from the model below its head.
    True also where SGLang is not installed."""
    folder = folder_of("sglang")
    return folder is None or architecture in model_files(folder / "srt/models")


@cache
def model_files(folder: Path) -> dict[str, str]:
    """Each architecture that a model file of the folder gives as its EntryClass, and the file's module."""
    files: dict[str, str] = {}
    for file in folder.glob("*.py"):
        source = file.read_text(encoding="utf-8")
        if "\nEntryClass" not in source:
            continue
        # The assignment stands at the end of a file, and only it has to be parsed.
        given = ast.parse(source[source.rindex("\nEntryClass") + 1 :])
        names = {node.id for node in ast.walk(given) if isinstance(node, ast.Name)} - {"EntryClass"}
        files |= dict.fromkeys(names, f"sglang.srt.models.{file.stem}")
    return files

"""Which class stands behind a backend's name. It is imported in the process that hosts it, and nowhere else."""

from __future__ import annotations

import importlib
from typing import Any

GENERATORS = {"vllm": "yatt.generation.vllm:VllmGenerator"}
TRAINERS = {"megatron": "yatt.training.megatron.rank:MegatronRank"}


def load(backend: str) -> Any:
    """The class at "module:name"."""
    module, name = backend.split(":")
    return getattr(importlib.import_module(module), name)

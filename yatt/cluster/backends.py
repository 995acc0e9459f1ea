"""Which class stands behind a backend's name. It is imported in the process that hosts it, and nowhere else."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Backends:
    """The classes that a cluster is made of, each as "module:name", called as its default is."""

    generator: str = "yatt.generation.stepped:SteppedGenerator"
    classifier: str = "yatt.generation.stepped:SteppedClassifier"
    trainer: str = "yatt.training.megatron.backend:open_rank"
    scorer: str = "yatt.reward.mixed:open_scorer"
    tokenizer: str = "yatt.data.prompts:load_tokenizer"


def load(backend: str) -> Any:
    """The object at "module:name"."""
    module, name = backend.split(":")
    return getattr(importlib.import_module(module), name)

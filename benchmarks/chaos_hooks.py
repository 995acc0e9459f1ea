"""What stands in `sitecustomize.py` of the runs that `benchmarks.chaos` disturbs: holds a process at the beginning of a
phase, so that whoever is to die dies within it.

A run has a folder, CHAOS. Once `armed` there names a phase, the first process that comes to it writes `reached`, and
waits until `go` is there. Imports Python's own modules alone, for it is in every process.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import os
import sys
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

# A phase begins where one of these is called: a module, a class, a method.
POINTS = {
    ("yatt.generation.stepped", "SteppedGenerator", "_step"): "rollout",
    ("yatt.training.rank", "TrainerRank", "update"): "train",
    ("yatt.training.rank", "TrainerRank", "export"): "sync",
    ("yatt.training.rank", "TrainerRank", "begin_save"): "checkpoint",
}
LONGEST = 300.0
"""Seconds that a process is held where nobody lets it go."""


def hold(phase: str) -> None:
    """Wait here, if this is what is waited for."""
    folder = os.environ.get("CHAOS", "")
    try:
        with open(f"{folder}/armed") as armed:
            if armed.read() != phase:
                return
        os.close(os.open(f"{folder}/reached", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except OSError:
        return
    deadline = time.monotonic() + LONGEST
    while not os.path.exists(f"{folder}/go") and time.monotonic() < deadline:
        time.sleep(0.02)


def held(method: Callable[..., Any], phase: str) -> Callable[..., Any]:
    def first_hold(*arguments: Any, **keywords: Any) -> Any:
        hold(phase)
        return method(*arguments, **keywords)

    return first_hold


class Loader(importlib.abc.Loader):
    """Loads a module as ever, and then has its methods hold."""

    def __init__(self, loader: importlib.abc.Loader) -> None:
        self._loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        for (name, owner, method), phase in POINTS.items():
            if name == module.__name__:
                of = getattr(module, owner)
                setattr(of, method, held(getattr(of, method), phase))


class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> Any:
        if name not in {point[0] for point in POINTS}:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = Loader(spec.loader)
        return spec


if os.environ.get("CHAOS"):
    sys.meta_path.insert(0, Finder())

"""The kinds of actor processes: the environment that each starts in, and what it imports before its work."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from yatt.cluster.backends import Backends
from yatt.config.schema import ClusterConfig, Config
from yatt.generation.table import ENGINES
from yatt.placement.cost import engine_of
from yatt.placement.plan import Role

FIRST = ("numpy", "torch", "yatt.config.schema")
"""What every kind imports. None of it reads a variable of a kind's `own`."""
CONTROLLER = ("transformers", "yatt.controller.assembly", "yatt.controller.offline", "yatt.data.source")


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """One device: a GPU of a node, or a share of a node's cores."""

    index: int
    node: str
    device: Literal["cpu", "cuda"]
    device_index: int
    threads: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """Processes that start alike. `slot` are variables of their threads and devices, set before Python starts; `own`
    those of the kind, which no later than its modules are imported."""

    slot: tuple[tuple[str, str], ...]
    own: tuple[tuple[str, str], ...]
    modules: tuple[str, ...]

    @property
    def environment(self) -> dict[str, str]:
        return dict(self.slot + self.own)


def generator_kind(config: Config, role: Role, slots: Sequence[Slot], backends: Backends) -> Kind:
    """An engine on these slots."""
    engine = ENGINES[engine_of(config, role)]
    environment = slot_environment(slots[0])
    if slots[0].device == "cuda":
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(str(slot.device_index) for slot in slots)
    return _kind(environment, engine.environment(slots[0].device), (backends.generator, engine.engine))


def rank_kind(slot: Slot, backends: Backends) -> Kind:
    """A trainer rank."""
    return _kind(slot_environment(slot), {}, (backends.trainer,))


def controller_kind(slot: Slot, backends: Backends) -> Kind:
    """A controller; it computes nothing on the slot's device."""
    environment = slot_environment(replace(slot, device="cpu", threads=1))
    return _kind(environment, {}, (*CONTROLLER, backends.scorer, backends.tokenizer))


def _kind(slot: dict[str, str], own: dict[str, str], backends: tuple[str, ...]) -> Kind:
    modules = tuple(backend.split(":")[0] for backend in backends)
    return Kind(slot=tuple(slot.items()), own=tuple(own.items()), modules=modules)


def threads_of(config: ClusterConfig, slots_on_node: int) -> int:
    """The threads of a slot's process."""
    return config.threads or max(1, (os.cpu_count() or 1) // slots_on_node)


def slot_environment(slot: Slot) -> dict[str, str]:
    """Threads and devices of a process on a slot; what torch and OpenMP read when they start."""
    environment = {"OMP_NUM_THREADS": str(slot.threads), "MKL_NUM_THREADS": str(slot.threads)}
    environment["OPENBLAS_NUM_THREADS"] = "1"  # numpy's own, which start as it is imported, and have nothing to do
    # A process on a CPU must not find the GPUs that its machine may have.
    environment["CUDA_VISIBLE_DEVICES"] = str(slot.device_index) if slot.device == "cuda" else ""
    if slot.device == "cuda":
        environment["RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"] = "1"
    return environment

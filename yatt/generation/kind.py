"""An engine's options, environment and models, known without importing it. Torch-free."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple

Device = Literal["cpu", "cuda"]


class Need(NamedTuple):
    """Bytes on one slot."""

    awake: float
    asleep: float


@dataclass(frozen=True, slots=True, kw_only=True)
class OptionNames:
    """The engine's own names of the options that its shape is read from."""

    tensor_parallel: str
    running: str
    device_share: str
    cache: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineShape:
    """The size of one engine, as placement, planning and routing see it.

    It lies on `tensor_parallel` slots and decodes up to `running` requests at once. On a GPU it takes `device_share` of
    each device's memory. On a CPU its KV cache takes `cache_bytes` of each slot, or holds `cache_tokens` tokens where
    that is how its user bounds it. `names` are for messages.
    """

    names: OptionNames
    tensor_parallel: int
    running: int
    device_share: float
    cache_bytes: float
    cache_tokens: int | None = None

    def need(self, *, weights: float, token: float, device: Device, capacity: float) -> Need:
        """The memory it takes of each of its slots, of `capacity` bytes; its model has `weights` bytes, and the KV
        cache `token` bytes a token. Asleep, a GPU's engine has its weights in the host's memory, a CPU's keeps them."""
        if device == "cuda":
            return Need(capacity * self.device_share, 0.0)
        weight_bytes = weights / self.tensor_parallel
        tokens = self.cache_tokens
        cache = self.cache_bytes if tokens is None else tokens * token / self.tensor_parallel
        return Need(weight_bytes + cache, weight_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineKind:
    """One row of the table of engines.

    `packages` has the distribution that brings the importable `module` for each device. `engine` is the class behind
    `yatt.generation.engine.Engine`, as "module:name", imported only in the process that hosts it. `reserved` are the
    options that other settings say (named), or that the adapter depends on (None); `of_a_judge` are those that a
    judge's own settings say. `as_it_stands` are options that make another model of the folder, with the values that do
    not; `counts` more options that are whole numbers above 0. `known_options` are read from the installed package, and
    None where it is not installed; `lists` says whether it serves an architecture. `probe` is code that fails where the
    library does not work, and may `say` more than its version. `socket_folder` is the variable that says where its
    sockets go, where it has one.
    """

    title: str
    module: str
    packages: Mapping[Device, str]
    engine: str
    names: OptionNames
    reserved: Mapping[str, str | None]
    of_a_judge: Mapping[str, str]
    as_it_stands: Mapping[str, tuple[Any, ...]]
    known_options: Callable[[], frozenset[str] | None]
    lists: Callable[[str], bool]
    shape: Callable[[Mapping[str, Any]], EngineShape]
    environment: Callable[[Device], dict[str, str]]
    probe: str
    counts: tuple[str, ...] = ()
    socket_folder: str = ""

    @property
    def installed(self) -> bool:
        """Whether its module can be found; it is not imported."""
        return folder_of(self.module) is not None


def folder_of(module: str) -> Path | None:
    """Where an installed package lies, without importing it."""
    spec = find_spec(module)
    folders = spec.submodule_search_locations if spec is not None else None
    return Path(next(iter(folders))) if folders else None


@cache
def fields_of(file: Path, name: str | None = None) -> frozenset[str]:
    """Annotated fields of the class `name` (of every class without one) in a Python file that is not imported."""
    classes = [node for node in ast.parse(file.read_text(encoding="utf-8")).body if isinstance(node, ast.ClassDef)]
    return frozenset(
        statement.target.id
        for node in classes
        if name in (None, node.name)
        for statement in node.body
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
    )

"""Stand-ins for packages that an engine imports whatever the device, and that nothing calls on a CPU: kernels,
compilers, notebooks, the parts of an HTTP server. They must be put in place before the engine is imported.

Only what is not installed is stood in for: on a machine with the real packages nothing happens here. To look a name
up, to decorate with it, to subclass it or to ask `isinstance` works; to launch a kernel raises.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from transformers.utils import import_utils

# transformers asks once and remembers; it is not to take a stand-in for the package.
ASKED = ("is_torchvision_available", "is_torchvision_v2_available", "is_triton_available", "is_gguf_available")


class Absent:
    """A function or value of a package that is not there."""

    def __init__(self, name: str) -> None:
        self.__name__ = self.__qualname__ = name
        self.__module__ = name.rpartition(".")[0]

    def __getattr__(self, name: str) -> Any:
        return look_up(self.__name__, name)

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        raise NotImplementedError(f"{self.__name__} was called, and its package is not installed")

    def __getitem__(self, key: Any) -> Absent:
        return self  # a kernel with its grid, a type with its parameters

    def __or__(self, other: Any) -> Absent:
        return self

    __ror__ = __or__


class AbsentClass(type):
    """The class of classes of such a package; their members, as of an enumeration, can be looked up."""

    def __getattr__(cls, name: str) -> Any:
        return look_up(f"{cls.__module__}.{cls.__name__}", name)


def look_up(owner: str, name: str) -> Any:
    """The name `name` of the stand-in `owner`. Special names have no stand-in, so that Python asks elsewhere."""
    if name.startswith("__"):
        raise AttributeError(f"{owner} has no {name}")
    full = f"{owner}.{name}"
    if full not in KNOWN:
        is_class = name[:1].isupper() and not name.isupper()
        KNOWN[full] = AbsentClass(name, (), {"__module__": owner}) if is_class else Absent(full)
    return KNOWN[full]


def decorator(*arguments: Any, **keywords: Any) -> Any:
    """Stands in for a decorator, with or without arguments: the function it decorates becomes a kernel that is not
    there."""
    if len(arguments) == 1 and not keywords and callable(arguments[0]):
        return Absent(f"{arguments[0].__module__}.{arguments[0].__qualname__}")
    return decorator


class Settings:
    """Stands in for an object that only carries settings."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        self.__dict__.update(keywords)


def constant(value: Any) -> Any:
    return value


# Names that modules call while they are imported.
KNOWN: dict[str, Any] = {
    **{f"triton.{name}": decorator for name in ("jit", "autotune", "heuristics")},
    "triton.Config": Settings,
    "triton.language.constexpr": constant,
}


class StandIns(MetaPathFinder, Loader):
    """Finds every module of the packages that are missing."""

    def __init__(self, missing: frozenset[str]) -> None:
        self._missing = missing

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        missing = fullname.partition(".")[0] in self._missing
        return ModuleSpec(fullname, self, is_package=True) if missing else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = ModuleType(spec.name)
        names: dict[str, Any] = {"__path__": [], "__version__": "0.0.0"}
        get: Callable[[str], Any] = lambda name: look_up(spec.name, name)  # noqa: E731
        module.__dict__.update(names | {"__getattr__": get})
        return module

    def exec_module(self, module: ModuleType) -> None:
        """There is nothing to run."""


def install(packages: Sequence[str]) -> None:
    """Stand in for each of the packages that is not installed."""
    for question in ASKED:
        getattr(import_utils, question, bool)()
    missing = frozenset(n for n in packages if n not in sys.modules and importlib.util.find_spec(n) is None)
    if missing:
        sys.meta_path.append(StandIns(missing))

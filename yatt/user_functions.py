"""A user's own function, named FILE.py:NAME or package.module:NAME, or given to a call from Python: found, imported,
and called. Light: reward workers import it."""

from __future__ import annotations

import importlib
import importlib.util
import json
import pickle
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from yatt.config.paths import OBJECT
from yatt.errors import BackendError, ConfigError

T = TypeVar("T")


def find(setting: str, reference: str, builtins: Mapping[str, str] | None = None) -> Callable[..., Any]:
    """The function that `setting` names by `reference`, or by a key of `builtins`. Raises ConfigError where there is
    none, or its module does not import."""
    known, written = builtins or {}, f"{setting}={reference}"
    location, _, name = known.get(reference, reference).rpartition(":")
    if not location:
        others = f" or one of {', '.join(known)}" if known else ""
        raise ConfigError(f"{written} is not built in{nearest(name, known)}; use FILE.py:NAME{others}")
    if location.endswith((".py", OBJECT)) and not Path(location).is_file():
        raise ConfigError(f"{written}: there is no file {location}")
    if location.endswith(OBJECT):
        return _unpacked(written, Path(location))
    try:
        module = (
            _import_file(Path(location).resolve()) if location.endswith(".py") else importlib.import_module(location)
        )
    except BaseException as error:
        raise ConfigError(f"{written} does not import: {describe(error)}") from error
    function: Callable[..., Any] | None = getattr(module, name, None)
    if function is None:
        raise ConfigError(f"{written}: {location} has no {name!r}{nearest(name, vars(module))}")
    if not callable(function):
        raise ConfigError(f"{written} is a {type(function).__name__}, not a function; name a function")
    return function


def _unpacked(written: str, file: Path) -> Callable[..., Any]:
    """The object of a file that `yatt.packed_objects` wrote, which is called."""
    written_by, _, content = file.read_bytes().partition(b"\n")
    instead = f"use that Python, or write it to a file (its source is beside {file.name}) and name FILE.py:NAME"
    try:
        head = json.loads(written_by)
        python = tuple(head["python"])
        sys.path += [entry for entry in head["path"] if entry not in sys.path]
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"{written}: {file} is not what a call from Python has written; name FILE.py:NAME") from None
    if python != sys.version_info[:2]:
        made, now = (".".join(map(str, version)) for version in (python, sys.version_info[:2]))
        raise ConfigError(f"{written} was made by Python {made}, and this is {now}; {instead}")
    try:
        function: Callable[..., Any] = pickle.loads(content)
    except BaseException as error:
        raise ConfigError(f"{written} does not load: {describe(error)}") from error
    return function


def guarded(setting: str, reference: str, function: Callable[..., T]) -> Callable[..., T]:
    """The same function, whose failures are BackendErrors that name the setting."""

    def call(*arguments: Any) -> T:
        try:
            return function(*arguments)
        except BackendError:
            raise
        except Exception as error:
            raise BackendError(f"{setting}={reference} failed: {describe(error)}") from error

    return call


def describe(error: BaseException) -> str:
    """An error in one line: its type, its message, and the line it was raised at."""
    text = traceback.format_exception_only(error)[-1].strip()
    if isinstance(error, SyntaxError):
        return f"{text} ({error.filename}, line {error.lineno})"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename]
    return f"{text} ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else text


def nearest(name: str, names: Iterable[str]) -> str:
    """A question whether another of `names` was meant, where one is close."""
    close = get_close_matches(name, list(names), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _import_file(path: Path) -> ModuleType:
    name = f"user_file_{path.stem}_{abs(hash(path))}"
    if name in sys.modules:
        return sys.modules[name]
    loader = importlib.util.spec_from_file_location(name, path)
    if loader is None or loader.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(loader)
    sys.modules[name] = module
    sys.path.append(str(path.parent))  # its neighbours can be imported
    try:
        loader.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module

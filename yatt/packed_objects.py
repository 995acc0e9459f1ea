"""An object that a call from Python was given in place of a name, in a file: for the processes of its run, and for
those that go on with it. By value where it was made in a notebook or a script, with all that it closes over.

A file is a line of JSON, which says who wrote it, and then what cloudpickle made of the object. Beside it stands the
object's source, to be read.
"""

from __future__ import annotations

import inspect
import json
import sys
import textwrap
import types
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle

from yatt.config.paths import OBJECT
from yatt.errors import ConfigError
from yatt.text import one_line

NAMELESS = "given"
"""Stands for the name of what has none, such as a lambda."""
_SOURCE = """# The source of {setting}, as it was given in Python; for reading. What runs is {file}, which also
# holds what it closes over{names}.
"""


def pack(value: Any, setting: str, folder: Path) -> str:
    """Write an object that is given for `setting` into a folder; returns its reference, FILE:NAME. Raises ConfigError
    where it cannot be pickled."""
    try:
        content = cloudpickle.dumps(value)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        raise ConfigError(f"{setting}: {_told(value)}{_culprit(value, error)}") from None
    file = folder / f"{setting}{OBJECT}"
    head = {"python": sys.version_info[:2], "cloudpickle": cloudpickle.__version__, "path": _own_paths()}
    file.write_bytes(json.dumps(head).encode() + b"\n" + content)
    source = _source(value)
    if source is not None:
        closed = ", ".join(sorted({name for name, _ in _closed_over(value)}))
        note = _SOURCE.format(setting=setting, file=file.name, names=f": {closed}" if closed else "")
        source_of(file).write_text(note + source, encoding="utf-8")
    return f"{file}:{_name(value)}"


def source_of(file: Path) -> Path:
    """The file with the source of the object in `file`; it may not be there."""
    return file.with_name(file.name.removesuffix(".pkl") + ".py")


def _name(value: Any) -> str:
    name = str(getattr(value, "__name__", type(value).__name__))
    return name if name.isidentifier() else NAMELESS


def _told(value: Any) -> str:
    return f"{_name(value)} cannot be sent to another process: "


def _culprit(value: Any, error: BaseException) -> str:
    """Which of the things that an object closes over cannot be pickled, and why; else why the object cannot."""
    for name, closed in _closed_over(value):
        try:
            cloudpickle.dumps(closed)
        except Exception as why:
            return f"it uses {name!r}, and that cannot be pickled ({one_line(why)}); make it inside the function"
    return one_line(error)


def _closed_over(value: Any) -> Iterator[tuple[str, Any]]:
    """What a function, or the methods of a class, use of the names around them, modules aside."""
    members: Iterable[Any] = vars(value).values() if inspect.isclass(value) else [value]
    for member in members:
        function = inspect.unwrap(member) if callable(member) else member
        if not inspect.isfunction(function):
            continue
        cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
        outer = {name: cell.cell_contents for name, cell in cells if cell != types.CellType()}
        used = {name: function.__globals__[name] for name in _names(function.__code__) if name in function.__globals__}
        for name, inner in {**used, **outer}.items():
            if not inspect.ismodule(inner) and inner is not value:
                yield name, inner


def _names(code: types.CodeType) -> Iterator[str]:
    """The names that code uses, that of comprehensions and functions inside it too."""
    yield from code.co_names
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            yield from _names(inner)


def _source(value: Any) -> str | None:
    """The source of an object, or of its class; None where Python cannot tell."""
    part: Any = getattr(value, "func", value)
    for one in (part, type(part)):
        try:
            return textwrap.dedent(inspect.getsource(one))
        except (OSError, TypeError):
            continue
    return None


def _own_paths() -> list[str]:
    """Where modules are found that a notebook imports from beside itself."""
    return [str(Path(entry).absolute()) for entry in sys.path if "site-packages" not in entry and Path(entry).is_dir()]

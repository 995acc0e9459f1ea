"""Which settings are paths, and from where each is taken.

One in a file starts at the file's folder, one on the command line at the working directory; `~` and `$NAME` (or
`${NAME}`) are expanded, and `$$` is a dollar sign. What is passed through to others (`engine_args`, a reward's
`arguments`, a task's `config`) is left as it is.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

from yatt.errors import ConfigError

Form = Literal["path", "pattern", "function", "checkpoint", "model"]
"""How a path is written: by itself; it or a glob, or a list of them; as FILE.py:NAME, or something that is no path;
itself, or a word that stands for one; itself, or the name of a model on the Hub."""

PATHS: dict[str, Form] = {
    "run.dir": "path",
    "model.path": "model",
    "model.reference": "model",
    "model.teacher": "model",
    "data.path": "pattern",
    "algorithm.advantage": "function",
    "algorithm.loss": "function",
    "critic.path": "model",
    "rollout.filter": "function",
    "reward.function": "function",
    "environment": "function",
    "environment.function": "function",
    "reward.functions.NAME.function": "function",
    "reward.models.NAME.path": "model",
    "reward.models.NAME.parser": "function",
    "weights.dir": "path",
    "evaluate.path": "pattern",
    "plan.calibration": "path",
    "resume": "checkpoint",
}
OBJECT, ROWS = ".given.pkl", ".given.jsonl"
"""How files end that hold what a call from Python was given: an object, or rows."""
GIVEN = "given"
"""The folder of a run that keeps them."""
Change = Callable[[str, Form, str], str]
"""(path, its form, its setting) -> what is put in its place."""

_NAMED = ("reward.functions.", "reward.models.")
_WORDS = ("never", "auto")
ON_HUB = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w./-]+))?")
"""A model's name on the Hub, and perhaps its branch, tag or commit. Where a folder begins like it, it is a path."""
_VARIABLE = re.compile(r"\$(?:\$|(\w+)|\{(\w+)\})")


def expanded(values: Mapping[str, Any], base: str) -> dict[str, Any]:
    """The nested `values` with every path in them expanded, and taken from the folder `base` ("" is the working
    directory). Raises ConfigError naming a variable that the environment lacks."""
    return mapped(values, lambda path, form, setting: _join(base, _filled(path, setting), form))


def found_beside(values: Mapping[str, Any], folder: str) -> dict[str, Any]:
    """The nested `values` of a config that a run or one of its checkpoints has saved in `folder`. What the run was
    given as objects and rows is where they stand now, if it has moved."""

    def change(path: str, form: Form, setting: str) -> str:
        if path.endswith((OBJECT, ROWS)) and not os.path.exists(path):
            for up in ("", "../.."):
                moved = os.path.abspath(os.path.join(folder, up, GIVEN, os.path.basename(path)))
                if os.path.exists(moved):
                    return moved
        return path

    return mapped(values, change)


def absolute(values: Mapping[str, Any]) -> dict[str, Any]:
    """The nested `values` with every path in them as it is found from anywhere, and as `expanded` reads it back."""
    here = os.getcwd()
    return mapped(values, lambda path, form, setting: _join(here, path, form).replace("$", "$$"))


def file_of(reference: str) -> str | None:
    """The file of FILE.py:NAME, or of an object that Python was given; None for any other text."""
    file, colon, _ = reference.rpartition(":")
    return file if colon and file.endswith((".py", OBJECT)) else None


def form_of(setting: str) -> Form | None:
    """How the path of a setting is written, by its dotted name; None where it is no path."""
    prefix = next((one for one in _NAMED if setting.startswith(one)), None)
    if prefix is not None:
        _, dot, field = setting.removeprefix(prefix).rpartition(".")
        setting = f"{prefix}NAME{dot}{field}"
    return PATHS.get(setting)


def mapped(values: Mapping[str, Any], change: Change, at: str = "", shown: str = "") -> dict[str, Any]:
    """The nested `values`, with the paths in them changed. `at` is where they stand, by the names of PATHS, `shown` by
    those that the user has given."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        name, said = f"{at}{'NAME' if at in _NAMED else key}", f"{shown}{key}"
        form = PATHS.get(name)
        if isinstance(value, Mapping):
            result[key] = mapped(value, change, f"{name}.", f"{said}.")
        elif form is not None and isinstance(value, list):
            result[key] = [_changed(one, change, form, said) for one in value]
        else:
            result[key] = value if form is None else _changed(value, change, form, said)
    return result


def _changed(value: Any, change: Change, form: Form, setting: str) -> Any:
    if not isinstance(value, str) or not value or (form == "checkpoint" and value in _WORDS):
        return value
    path = file_of(value) if form == "function" else value
    return value if path is None else change(path, form, setting) + value[len(path) :]


def _filled(path: str, setting: str) -> str:
    """`path` with its home and its variables filled in."""

    def value(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        name = match[1] or match[2]
        if name not in os.environ:
            raise ConfigError(f"{setting}={path}: the environment has no {name}; export it, or write $$ for a $")
        return os.environ[name]

    return _VARIABLE.sub(value, os.path.expanduser(path))


def _join(base: str, path: str, form: Form) -> str:
    """`path` from the folder `base`. A pattern stays one, whatever characters the folder has."""
    if os.path.isabs(path) or not base:
        return path
    joined = os.path.join(base, path)
    if form == "model" and ON_HUB.fullmatch(path) and not os.path.isdir(os.path.dirname(joined)):
        return path
    if form == "pattern" and glob.has_magic(path) and not os.path.exists(joined):
        return os.path.join(glob.escape(base), path)
    # Without "..", where that does not lead elsewhere, as it does behind a link.
    plain = os.path.normpath(joined)
    return plain if os.path.realpath(plain) == os.path.realpath(joined) else joined

"""From the keyword arguments of a call in Python to nested settings: what a YAML file and words would say."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from yatt.config.load import leaves, merged, nest
from yatt.config.names import fitting
from yatt.config.paths import ROWS, form_of
from yatt.config.schema import Config, RewardConfig
from yatt.errors import ConfigError
from yatt.packed_objects import pack
from yatt.text import one_line

FIRST = {
    "model": "model.path",
    "data": "data.path",
    "reward": "reward.function",
    "algorithm": "algorithm.name",
    "environment": "environment.function",
    "evaluate": "evaluate.path",
}
"""Sections that may be given one value: it is this setting's."""
SHORT = {
    "steps": "train.steps",
    "batch_size": "train.batch_size",
    "learning_rate": "train.optimizer.learning_rate",
    "seed": "run.seed",
    "name": "run.name",
    "n": "rollout.n",
    "max_tokens": "rollout.max_tokens",
    "temperature": "rollout.temperature",
    "context_length": "model.context_length",
    "slots": "cluster.slots",
    "device": "cluster.device",
}
"""Short names of settings."""
OF_ROWS = ("data.path", "evaluate.path")
"""Settings that take rows in place of a file of them."""


def nested(keywords: Mapping[str, Any], folder: Callable[[], Path]) -> dict[str, Any]:
    """The settings that the keywords give: sections as mappings, dotted names, those of SHORT, and one value for a
    section of FIRST. None leaves out a section, and is a value elsewhere. Functions, classes and rows are written into
    `folder()`. Raises ConfigError where a setting is given twice, or what is given cannot be written."""
    values: dict[str, Any] = {}
    said: dict[str, str] = {}
    for keyword, value in keywords.items():
        if value is None and keyword in FIRST:
            continue
        name = SHORT.get(keyword, keyword)
        if "." not in name and name not in Config.model_fields:
            near = get_close_matches(name, [*SHORT, *Config.model_fields], n=1)
            if near and near[0] in SHORT:
                raise ConfigError(f"unknown setting {name}; did you mean {near[0]}, which is {SHORT[near[0]]}?")
        if keyword in FIRST and not isinstance(value, Mapping) and not (keyword == "reward" and _listed(value)):
            name = FIRST[keyword]
        new = nest(name, _plain(name, value, folder))
        for setting, _ in leaves(new):
            if (first := said.setdefault(setting, keyword)) != keyword:
                raise ConfigError(f"{setting} is given twice, by {first} and by {keyword}; keep one of them")
        values = merged(values, new)
    return values


def _plain(setting: str, value: Any, folder: Callable[[], Path]) -> Any:
    """A value as YAML would give it."""
    if setting == "reward":
        value = _rewards(value)
    if setting.startswith("reward.functions.") and setting.count(".") == 2 and not isinstance(value, Mapping):
        value = {"function": value}
    if isinstance(value, Mapping):
        return {str(key): _plain(f"{setting}.{key}", inner, folder) for key, inner in value.items()}
    if setting in OF_ROWS and (rows := _rows(value)) is not None:
        return _escaped(_written(setting, rows, folder()))
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, str):
        return _escaped(value) if form_of(setting) is not None else value
    if isinstance(value, tuple | list | set | frozenset):
        return [_plain(setting, inner, folder) for inner in value]
    if hasattr(value, "item") and not getattr(value, "ndim", 0):
        return value.item()  # numpy's and torch's numbers
    if callable(value):
        if form_of(setting) != "function":
            raise ConfigError(f"{setting} takes no {type(value).__name__}; give text, a number, or true or false")
        return _escaped(pack(value, setting, folder()))
    if form_of(setting) == "function" and value is not None:
        raise ConfigError(f"{setting}={value!r:.60} is a {type(value).__name__}; give a function, or the name of one")
    return value


def _escaped(path: str) -> str:
    """A path of Python's as a config has it: a `$` in it is only that."""
    return path.replace("$", "$$")


def _listed(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _rewards(value: Any) -> Any:
    """The section `reward`: several functions may be given as a list, or by their names."""
    if _listed(value):
        named = {fitting(str(getattr(one, "__name__", one)), "reward"): one for one in value}
        if len(named) < len(value):
            raise ConfigError("reward has two functions of one name; give them as a mapping, from names of yours")
        return {"functions": named}
    if isinstance(value, Mapping) and value and not set(value) & set(RewardConfig.model_fields):
        return {"functions": value}
    return value


def _rows(value: Any) -> Iterator[Mapping[str, Any]] | None:
    """The rows of a list of them, a `datasets` dataset or a data frame; None where it is none of these."""
    if hasattr(value, "to_json") and hasattr(value, "columns"):
        rows: list[dict[str, Any]] = json.loads(value.to_json(orient="records"))
        return iter(rows)
    sequence = hasattr(value, "__len__") and hasattr(value, "__getitem__") and not isinstance(value, str | Mapping)
    return iter(value) if sequence and len(value) and isinstance(value[0], Mapping) else None


def _written(setting: str, rows: Iterator[Mapping[str, Any]], folder: Path) -> str:
    """Rows as a file of JSON lines."""
    file = folder / f"{setting}{ROWS}"
    with open(file, "w", encoding="utf-8") as out:
        for number, row in enumerate(rows, start=1):
            try:
                out.write(json.dumps(dict(row), allow_nan=False) + "\n")
            except (TypeError, ValueError) as error:
                raise ConfigError(
                    f"{setting}: row {number} is not what JSON has ({one_line(error)}); save the rows as Parquet, and "
                    "name the file"
                ) from None
    return str(file)

"""The table of engines, and what is read from it. Torch-free; imports no engine."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

from yatt.config.schema import EngineName
from yatt.errors import ConfigError
from yatt.generation.kind import EngineKind, OptionNames
from yatt.generation.sglang import arguments as sglang
from yatt.generation.vllm import arguments as vllm

ENGINES: dict[EngineName, EngineKind] = {"vllm": vllm.KIND, "sglang": sglang.KIND}


def option_mistakes(engine: EngineName, engine_args: Mapping[str, Any], setting: str) -> Iterator[str]:
    """One line for each of an engine's options, written under `setting`, that is another setting's, the other engine's,
    unknown, or no number where its shape is read from it. Unknown ones are seen only where the engine is installed."""
    kind = ENGINES[engine]
    reserved: dict[str, str | None] = dict(kind.reserved)
    if setting != "rollout":
        reserved |= {name: f"{setting}.{own}" for name, own in kind.of_a_judge.items()}
    known = kind.known_options() if engine_args else None
    for name in engine_args:
        at = f"{setting}.engine_args.{name}"
        if name in reserved:
            remedy = f"set {reserved[name]} instead" if reserved[name] else "remove it: the adapter depends on it"
            yield f"{at} cannot be chosen; {remedy}"
        elif name in (known or ()):
            continue
        elif (other := _elsewhere(kind, name)) is not None:
            yield f"{at} is an option of {other}"
        elif known is not None:
            nearest = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {nearest[0]}?" if nearest else ""
            yield f"{at} is not an option of {kind.title}{hint}"
    yield from number_mistakes(kind, engine_args, setting)


def number_mistakes(kind: EngineKind, engine_args: Mapping[str, Any], setting: str) -> Iterator[str]:
    """One line for each option that an engine's shape is read from and that is no such number."""
    names = kind.names
    counts = {names.tensor_parallel, names.running, names.cache, *kind.counts}
    for name in (n for n in (*_read_from(names), *kind.counts) if n in engine_args):
        value = engine_args[name]
        number = isinstance(value, int | float) and not isinstance(value, bool) and value > 0
        if name in counts and not (number and float(value).is_integer()):
            must = "a whole number above 0"
        elif name not in counts and not (number and value <= 1):
            must = "a number above 0, at most 1"
        else:
            continue
        yield f"{setting}.engine_args.{name}={value!r} must be {must}; leave it out for the default"


def check_options(engine: EngineName, engine_args: Mapping[str, Any], setting: str) -> None:
    """Raise ConfigError with a line for each mistake."""
    if lines := list(option_mistakes(engine, engine_args, setting)):
        raise ConfigError("\n".join(lines))


def _elsewhere(kind: EngineKind, name: str) -> str | None:
    """The advice for an option that another engine has and this one lacks."""
    for other in ENGINES.values():
        if other is kind or name not in {*_read_from(other.names), *other.reserved, *(other.known_options() or ())}:
            continue
        own = dict(zip(_read_from(other.names), _read_from(kind.names), strict=True)).get(name)
        return f"{other.title}, not of {kind.title}; {f'use {own}' if own else 'remove it'}"
    return None


def _read_from(names: OptionNames) -> tuple[str, ...]:
    """The options that a shape is read from, in one order for every engine."""
    return tuple(getattr(names, field.name) for field in fields(names))

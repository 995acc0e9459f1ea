"""A user's reward function: checked, and called with what it accepts. Workers import it: light."""

from __future__ import annotations

import asyncio
import inspect
import math
import numbers
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, NamedTuple

from yatt.errors import ConfigError
from yatt.user_functions import find, nearest

BUILTINS = {
    "exact_match": "yatt.reward.exact_match:exact_match",
    "math_verify": "yatt.reward.math_verify:math_verify",
    "reasoning_gym": "yatt.reward.reasoning_gym:reasoning_gym",
}


LARGEST = 3.4e38  # of a float32, in which ranks compute
LONGEST_NAME = 100


class Item(NamedTuple):
    """A trajectory as a reward function sees it: the names are its keyword arguments."""

    prompt: str
    response: str
    answer: str | None
    metadata: dict[str, Any]


# What a wrapper that takes anything, and hands it on to a function that does not, ends in.
CALL_MISMATCH = re.compile(rf"\S+ got an unexpected keyword argument '({'|'.join(Item._fields)})'")


class BadResult(ValueError):
    """A reward function returned something that is no reward, or cannot be called as rewards are: whatever the item,
    as far as one can tell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionSpec:
    """One configured function: `key` names it in scores, `setting` is where its reference was written."""

    key: str
    setting: str
    reference: str
    weight: float = 1.0
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.setting}={self.reference}"


class RewardFunction:
    """A loaded function. Calling it with an item gives named finite numbers, among them "reward"; it raises what the
    function raises, and BadResult for what is no number. An async function is run to its end."""

    def __init__(self, spec: FunctionSpec, loop: asyncio.AbstractEventLoop) -> None:
        self.spec = spec
        self._loop = loop
        self._function = find(spec.setting, spec.reference, BUILTINS)
        self._keywords = _keywords(spec, self._function)

    def __call__(self, item: Item) -> dict[str, float]:
        told = {name: getattr(item, name) for name in self._keywords}
        try:
            result = self._function(**told, **self.spec.arguments)
            if inspect.isawaitable(result):
                result = self._loop.run_until_complete(_finish(result))
        except TypeError as error:
            if mismatch := CALL_MISMATCH.search(str(error)):
                called = ", ".join([*told, *self.spec.arguments])
                raise BadResult(f"cannot be called with {called}: {mismatch[0]}") from error
            raise
        return _numbers(result)


def _keywords(spec: FunctionSpec, function: Callable[..., Any]) -> list[str]:
    """Which of an item's fields the function takes. Raises ConfigError where the call would fail whatever the item."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{spec} has no readable signature; wrap it in a Python function") from error
    named = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    anything = any(p.kind == p.VAR_KEYWORD for p in parameters)
    given = [name for name in Item._fields if (anything or name in named) and name not in spec.arguments]
    offered = f"rewards are called with {', '.join(Item._fields)} by keyword, and the configured arguments"
    if not given:
        raise ConfigError(f"{spec} takes none of {', '.join(Item._fields)}; name a parameter after what it needs")
    for name in spec.arguments:
        if not anything and name not in named:
            raise ConfigError(f"{spec} takes no argument {name!r}{nearest(name, named)}; {offered}")
    for p in parameters:
        required = p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        if required and (p.kind == p.POSITIONAL_ONLY or p.name not in {*given, *spec.arguments}):
            raise ConfigError(f"{spec} requires {p.name!r}{nearest(p.name, Item._fields)}; {offered}")
    return given


def _numbers(result: Any) -> dict[str, float]:
    if not isinstance(result, Mapping):
        return {"reward": as_number(result, "returned")}
    try:
        items = list(result.items())
    except Exception as error:
        raise BadResult(f"returned {shown(result)}, which cannot be read: {type(error).__name__}") from None
    names = [name for name, _ in items]
    for name in names:
        if not isinstance(name, str) or not (0 < len(name) <= LONGEST_NAME and name.isprintable()):
            raise BadResult(f"returned a dict with the key {shown(name)}; keys are short, printable texts")
    if "reward" not in names:
        raise BadResult(f"returned a dict without 'reward' (it has {', '.join(names)[:200] or 'nothing'})")
    return {name: as_number(value, f"returned {name} =") for name, value in items}


def as_number(value: Any, where: str) -> float:
    """A finite float of any single number: Python's, numpy's and torch's scalars, and arrays and tensors without a
    dimension. Raises BadResult that begins with `where` for everything else, an array of one number too."""
    told = shown(value)
    try:
        if hasattr(value, "item") and not getattr(value, "ndim", 0):
            value = value.item()
        number = float(value) if isinstance(value, numbers.Real | Decimal) else None
    except (OverflowError, ValueError):  # a whole number or fraction beyond all floats; a signalling NaN
        number = math.nan
    except Exception:
        number = None
    if number is None:
        raise BadResult(f"{where} {told}, not a number; return a number or a dict of numbers with 'reward'")
    if not math.isfinite(number) or abs(number) > LARGEST:
        raise BadResult(f"{where} {told}; a reward must be finite, and a float32 must hold it")
    return number


def shown(value: Any, length: int = 80) -> str:
    """A value in one short line, whatever its own way to be shown does."""
    try:
        text = str(value) if isinstance(value, float) else repr(value)
    except Exception:
        text = f"a {type(value).__name__}"
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 3] + "..."


async def _finish(awaitable: Any) -> Any:
    return await awaitable

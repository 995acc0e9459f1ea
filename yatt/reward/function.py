"""A user's reward function: checked, and called with what it accepts. Workers import it: light."""

from __future__ import annotations

import asyncio
import inspect
import math
import numbers
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from yatt.errors import ConfigError
from yatt.functions import find, nearest

BUILTINS = {
    "exact_match": "yatt.reward.exact_match:exact_match",
    "math_verify": "yatt.reward.math_verify:math_verify",
    "reasoning_gym": "yatt.reward.reasoning_gym:reasoning_gym",
}


class Item(NamedTuple):
    """What a reward function is told of a trajectory: the names are its keyword arguments."""

    prompt: str
    response: str
    answer: str | None
    metadata: dict[str, Any]


class BadResult(ValueError):
    """A reward function returned something that is no reward."""


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
        result = self._function(**told, **self.spec.arguments)
        if inspect.isawaitable(result):
            result = self._loop.run_until_complete(_finish(result))
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
        return {"reward": _number(result, "returned")}
    if "reward" not in result:
        raise BadResult(f"returned a dict without 'reward' (it has {', '.join(map(str, result)) or 'nothing'})")
    return {str(name): _number(value, f"returned {name} =") for name, value in result.items()}


def _number(value: Any, where: str) -> float:
    if hasattr(value, "item"):  # numpy and torch scalars
        value = value.item()
    if not isinstance(value, numbers.Real):
        raise BadResult(f"{where} {value!r:.80}, not a number; return a number or a dict of numbers with 'reward'")
    if not math.isfinite(value):
        raise BadResult(f"{where} {value}; a reward must be finite")
    return float(value)


async def _finish(awaitable: Any) -> Any:
    return await awaitable

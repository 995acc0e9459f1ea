"""The public methods of a user's class as tools of the policy."""

from __future__ import annotations

import inspect
import json
import types
from collections.abc import Callable, Mapping
from typing import Any

from transformers.utils.chat_template_utils import get_json_schema

from yatt.errors import ConfigError
from yatt.user_functions import nearest

RESERVED = ("reset", "step", "reward", "close")
"""Methods that the environment itself is played by."""
MISTAKES = (ValueError, TypeError, ArithmeticError, LookupError)
"""Errors of a tool that are the policy's mistakes, and told to it. Others are the environment's failure."""
_KINDS: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
}


class WrongCall(ValueError):
    """The policy called a tool that is not there, or with arguments that it does not take."""


def tool_schemas(kind: type, told: str) -> list[dict[str, Any]]:
    """The JSON schemas of a class's tools, by signature, type hints and docstring. Raises ConfigError that begins with
    `told` for a method that no schema can be made of."""
    return [_schema(name, method, told) for name, method in _methods(kind).items()]


async def call_tool(instance: Any, name: str, arguments: Mapping[str, Any], run: Callable[..., Any]) -> str:
    """What a tool answers. `run` awaits a function that is not async, with its arguments, elsewhere. Raises WrongCall,
    and what the tool raises."""
    methods = _methods(type(instance))
    if name not in methods:
        known = f"; there are {', '.join(methods)}" if methods else ""
        raise WrongCall(f"there is no tool {name!r}{nearest(name, methods)}{known}")
    _check(name, arguments, _schema(name, methods[name], "")["function"]["parameters"])
    method = getattr(instance, name)
    result = await method(**arguments) if inspect.iscoroutinefunction(method) else await run(method, **arguments)
    if isinstance(result, str):
        return result
    try:
        return json.dumps(result, ensure_ascii=False)
    except (TypeError, ValueError):
        raise RuntimeError(
            f"{name} returned a {type(result).__name__}; a tool returns text, or what JSON has"
        ) from None


def _methods(kind: type) -> dict[str, Any]:
    """The tools of a class by name, bound to nothing that is used: for their signatures."""
    names = [name for name in dir(kind) if not name.startswith("_") and name not in RESERVED]
    members = {name: inspect.getattr_static(kind, name) for name in names}
    kinds = (types.FunctionType, staticmethod, classmethod)
    return {name: member.__get__(object(), kind) for name, member in members.items() if isinstance(member, kinds)}


def _schema(name: str, method: Any, told: str) -> dict[str, Any]:
    for parameter in inspect.signature(method).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise ConfigError(f"{told}: tool {name} takes {parameter}; the policy passes arguments by their names")
        if parameter.annotation is parameter.empty:
            raise ConfigError(f"{told}: argument {parameter.name} of tool {name} has no type; annotate it")
    if not inspect.getdoc(method):
        raise ConfigError(f"{told}: tool {name} has no docstring, by which the policy knows it; write one")
    try:
        return dict(get_json_schema(method))
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{told}: tool {name} has no schema: {reason}") from None


def _check(name: str, arguments: Mapping[str, Any], schema: Mapping[str, Any]) -> None:
    known = schema.get("properties", {})
    for argument, value in arguments.items():
        if argument not in known:
            takes = ", ".join(known) or "nothing"
            raise WrongCall(f"{name} takes no argument {argument!r}{nearest(argument, known)}; it takes {takes}")
        kinds = _KINDS.get(str(known[argument].get("type")))
        wrong = kinds is not None and (not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds))
        if wrong and not (value is None and known[argument].get("nullable")):
            raise WrongCall(f"argument {argument!r} of {name} is {value!r:.60}, and must be {known[argument]['type']}")
    missing = [argument for argument in schema.get("required", ()) if argument not in arguments]
    if missing:
        raise WrongCall(f"{name} lacks the argument {', '.join(missing)}")

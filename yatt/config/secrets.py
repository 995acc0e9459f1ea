"""Settings that hold a secret: passwords in addresses, and keys among what is passed through to others."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

MASK = "***"
_WORDS = {"key", "apikey", "token", "secret", "password", "passwd", "pwd", "credential", "credentials", "auth"}
_WORDS |= {"authorization", "bearer", "cookie"}
_PARTS = re.compile(r"[A-Z]?[a-z0-9]+|[A-Z]+")
_LOGIN = re.compile(r"(\b[a-zA-Z][a-zA-Z0-9+.-]*://)[^/?#@\s]*@")
_QUERY = re.compile(r"([?&;]([^=&#\s]+)=)([^&#\s]+)")
_KNOWN = re.compile(r"\b(?:sk|hf|ghp|gho|glpat|xox[abp])[-_][A-Za-z0-9_-]{16,}|\bBearer\s+\S{8,}|\bAKIA[A-Z0-9]{16}\b")
PASSED = ("arguments", "engine_args", "config")
"""Settings whose names and values are others': only there does a name say that its value is a secret."""


def masked(values: Any) -> Any:
    """The nested `values` of a config, with `***` in place of every secret that can be told."""
    return _masked(values, passed=False)


def secrets(values: Any, at: str = "", passed: bool = False) -> Iterator[str]:
    """The names of the settings that hold one."""
    items = values.items() if isinstance(values, Mapping) else enumerate(values) if isinstance(values, list) else ()
    for key, value in items:
        name = f"{at}.{key}" if at else str(key)
        if value != _masked({key: value}, passed)[key]:
            inner = list(secrets(value, name, passed or key in PASSED))
            yield from inner or [name]


def _masked(values: Any, passed: bool) -> Any:
    if isinstance(values, Mapping):
        return {
            key: MASK if passed and _secret(key) and value else _masked(value, passed or key in PASSED)
            for key, value in values.items()
        }
    if isinstance(values, (list, tuple)):
        return [_masked(value, passed) for value in values]
    return _text(values) if isinstance(values, str) else values


def _secret(name: Any) -> bool:
    """Whether a value of this name is one: its last word says so."""
    words = _PARTS.findall(str(name))
    return bool(words) and words[-1].lower() in _WORDS


def _text(text: str) -> str:
    text = _LOGIN.sub(rf"\1{MASK}@", text)
    if "://" in text:
        text = _QUERY.sub(lambda match: match[1] + (MASK if _secret(match[2]) else match[3]), text)
    return _KNOWN.sub(MASK, text)

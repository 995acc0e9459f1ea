"""From what a judge wrote to a number: a parser by the name that `reward.models.NAME.parser` gives."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from difflib import get_close_matches
from functools import partial
from typing import Any

from yatt.config.paths import file_of
from yatt.errors import ConfigError
from yatt.user_functions import find

Parse = Callable[[str], Any]
"""A judge's text -> the verdict; None where it holds none. A user's function may return anything, or raise."""

# "8/10" and "8 out of 10" say 8. A hyphen before a number is a minus unless something stands right before it ("1-5").
NUMBER = re.compile(
    r"(?<![\w.])(?P<value>-?(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)(?:e[-+]?\d+)?)(?!\w|\.\d)"
    r"(?:\s*(?:/|out of)\s*\d+(?:\.\d+)?)?",
    re.IGNORECASE,
)
_HOW = "verdict:WORD=NUMBER,WORD=NUMBER, number, number:LOW..HIGH, json:FIELD or FILE.py:NAME"


def load_parser(reference: str, setting: str) -> Parse:
    """The parser that `reference` names. Raises ConfigError where there is none, or its file does not import."""
    kind, _, argument = reference.partition(":")
    if kind in PARSERS:
        try:
            return PARSERS[kind](argument)
        except ValueError as error:
            raise ConfigError(f"{setting}={reference}: {error}") from None
    if file_of(reference) is not None:
        return find(setting, reference)
    close = get_close_matches(kind, PARSERS, n=1)
    meant = f" (did you mean {close[0]}?)" if close else ""
    raise ConfigError(f"{setting}={reference} is not known{meant}; use {_HOW}")


def verdict(argument: str) -> Parse:
    """The value of the last of the words, in any case. A word inside another ("incorrect") is not found."""
    values: dict[str, float] = {}
    for item in argument.split(","):
        word, _, value = item.rpartition("=")
        word = word.strip().casefold()
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not word or word in values or not math.isfinite(number):
            raise ValueError(f"{item.strip()!r} gives no word a value; write verdict:correct=1,wrong=0")
        values[word] = number
    return partial(_last_word, values, re.compile("|".join(map(_whole, sorted(values, key=len, reverse=True)))))


def number(argument: str) -> Parse:
    """The last number; None where it is out of bounds."""
    low, _, high = argument.partition("..")
    try:
        bounds = (float(low), float(high)) if argument else (-math.inf, math.inf)
    except ValueError:
        bounds = (1.0, 0.0)
    if not bounds[0] <= bounds[1]:
        raise ValueError(f"{argument!r} is no range; write number:0..10")
    return partial(_last_number, bounds)


def json_field(argument: str) -> Parse:
    """The field of the last JSON object that has it: a number, true or false, or a number in quotes."""
    if not argument:
        raise ValueError("it names no field; write json:score")
    return partial(_last_field, argument)


PARSERS: dict[str, Callable[[str], Parse]] = {"verdict": verdict, "number": number, "json": json_field}


def _whole(word: str) -> str:
    """A pattern of the word where no letter or digit touches its own."""
    before, after = (r"(?<![^\W_])" if word[0].isalnum() else ""), (r"(?![^\W_])" if word[-1].isalnum() else "")
    return before + re.escape(word) + after


def _last_word(values: dict[str, float], pattern: re.Pattern[str], text: str) -> float | None:
    words = pattern.findall(text.casefold())
    return values[words[-1]] if words else None


def _last_number(bounds: tuple[float, float], text: str) -> float | None:
    numbers = [match["value"] for match in NUMBER.finditer(text.replace("\u2212", "-"))]
    value = float(numbers[-1].replace(",", "")) if numbers else math.nan
    return value if bounds[0] <= value <= bounds[1] else None


def _last_field(field: str, text: str) -> float | None:
    decoder, at, last = json.JSONDecoder(), text.find("{"), None
    while at >= 0:
        try:
            value, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            end = at + 1
        else:
            last = value.get(field, last)
        at = text.find("{", end)
    try:
        return float(last) if isinstance(last, int | float | str) else None
    except ValueError:
        return None

"""How texts write the same thing differently: characters, and numbers. Light."""

from __future__ import annotations

import re
import unicodedata
from decimal import Decimal
from fractions import Fraction
from itertools import groupby

_MINUS = str.maketrans({"\u2212": "-", "\u2044": "/"})  # NFKC leaves these two as they are
_RAISED = {"<super>": "^", "<sub>": "_"}
# What typesetting puts between groups of digits: thin and unbroken spaces, LaTeX's, and commas in braces.
_SPACED = re.compile(r"(?<=\d)(?:[\u00a0\u2009\u202f]|\\[,!]|\{,\}|,\\!)(?=\d{3}(?!\d))")
_SIGN = r"(?P<sign>(?<![\w)\]%.])[-+])?(?:\s?\\?[$\u20ac\u00a3\u00a5\u20b9])?"  # 10-5 says 5; -$5 says -5
_WHOLE = r"\d{1,3}(?:[,'\u2019_]\d{3})+(?!\d)|\d{1,2}(?:,\d{2})+,\d{3}(?!\d)|\d+"
_POWER = r"\^\s*(?:\{\s*(?P<braced>[-+]?\d{1,3})\s*\}|(?P<bare>[-+]?\d{1,3})(?!\d|\.\d))"
_RATIO = re.compile(
    rf"{_SIGN}(?<![\d/.])(?:(?P<whole>\d{{1,30}})\s+)?(?P<over>\d{{1,30}})/(?P<under>\d{{1,30}})(?![\d/]|\.\d)"
)
_NUMBER = re.compile(
    rf"{_SIGN}(?P<digits>(?:{_WHOLE})(?:\.\d+)?|(?<![\w.])\.\d+)(?P<exponent>[eE][-+]?\d+(?!\w))?"
    rf"(?:(?P<ten>\s*(?:[x*\u00d7\u00b7]|\\times|\\cdot)\s*10)?\s*{_POWER})?"
)


def plain(text: str) -> str:
    """The text in compatible characters (NFKC), but for what these would lose: 2\u2075 becomes 2^5, not 25."""
    pieces = (_piece(mark, "".join(run)) for mark, run in groupby(text, _mark))
    return unicodedata.normalize("NFKC", "".join(pieces)).translate(_MINUS)


def last_number(text: str) -> Decimal | Fraction | None:
    """The value of the last number, with powers of whole numbers and fractions of them worked out; None where there
    is none."""
    while (shorter := _SPACED.sub("", text)) != text:
        text = shorter
    text = plain(text).replace("**", "^")
    matches = [(match.end(), match.start(), match) for match in _NUMBER.finditer(text)]
    ratios = {match.end(): match for match in _RATIO.finditer(text)}
    for end, _, match in reversed(matches):
        value = _ratio(ratios[end]) if end in ratios else _value(match)
        if value is not None:
            return -value if (ratios.get(end) or match)["sign"] == "-" else value
    return None


def _ratio(match: re.Match[str]) -> Fraction | None:
    under = int(match["under"])
    return Fraction(int(match["whole"] or 0) * under + int(match["over"]), under) if under else None


def _value(match: re.Match[str]) -> Decimal | None:
    digits = re.sub(r"[,'\u2019_]", "", match["digits"])
    power = match["braced"] or match["bare"]
    try:
        value = Decimal(digits + (match["exponent"] or ""))
        if power and match["ten"]:
            return value.scaleb(int(power))
        whole = power and int(power) >= 0 and "." not in digits and not match["exponent"]
        return Decimal(int(value) ** int(power)) if whole and power else value ** int(power) if power else value
    except ArithmeticError:  # an exponent beyond all bounds
        return None


def _mark(character: str) -> str:
    return unicodedata.decomposition(character).partition(" ")[0]


def _piece(mark: str, run: str) -> str:
    if mark == "<fraction>":
        return "".join(f" {unicodedata.normalize('NFKC', one)} " for one in run)
    return _RAISED.get(mark, "") + run

"""Built-in reward: the response's mathematical answer equals the row's, by the math-verify library."""

from __future__ import annotations

import logging
import re
from decimal import Decimal
from functools import lru_cache
from typing import Any

from math_verify import parse, verify
from sympy import Basic, MatrixBase, nan, zoo

from yatt.reward.exact_match import last_tag
from yatt.reward.notation import plain

logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that it has no time limit: reward.timeout is one

LONGEST_BARE = 200
_DELIMITED = re.compile(r"\$[^$]+\$|\\boxed|\\\(|\\\[")
_WRAPPED = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}")
_ENVIRONMENT = re.compile(r"\\(?:begin|end)\s*\{[^{}]*\}")
_WORDS = re.compile(r"[^\W\d_]+(?:[\s'.,-]+[^\W\d_]+)*")
_WORD = re.compile(r"(?<![\\a-zA-Z])[a-zA-Z]{2,}")
_FUNCTION = re.compile(r"(?<![\\a-zA-Z])(pi|sin|cos|tan|cot|ln|log)(?![a-zA-Z])")
_SCIENTIFIC = re.compile(r"(?<![\w.\\])(\d+(?:\.\d*)?|\.\d+)[eE]([-+]?\d{1,2})(?![\w.])")
_MIXED = re.compile(r"(\A|\\boxed\{)\s*(-?)(\d+)\s+(\d+)\s*/\s*(\d+)\s*(\Z|\})")


def math_verify(response: str, answer: str | None) -> float:
    """1 if the last expression of the response (boxed, LaTeX or plain) equals the answer, else 0. An answer of words
    alone is compared as a text, with what the last box holds or all that is said.

    Only the last <answer>...</answer> is looked at, where there is one. Raises
    ValueError where the row's own answer is missing or is no mathematics, and what a comparison raises.
    """
    if answer is None or not answer.strip():
        raise ValueError("the row has no answer; set data.answer_key to the column that holds it")
    wanted = _wanted(answer)
    tagged = last_tag(response)
    said = _written(response if tagged is None else tagged)
    box = _last_box(said)
    if box is not None and not box.strip():
        return 0.0
    if _as_text(said if box is None else box) == _as_text(_inside(_written(answer))):
        return 1.0
    if wanted is None:
        return 0.0
    # No limit of its own: it would say False at the end of it, and reward.timeout ends what takes too long.
    return float(verify(wanted, _read(said), timeout_seconds=None, raise_on_error=True))


@lru_cache(maxsize=1024)
def _wanted(answer: str) -> list[Any] | None:
    """The answer's expressions; None where it is words. Raises ValueError where it is neither."""
    text = _written(answer)
    if _are_words(_inside(text)):
        return None
    expressions = [one for one in _read(text) if isinstance(one, Basic | MatrixBase)]
    if not expressions or any(one in (nan, zoo) for one in expressions if isinstance(one, Basic)):
        raise ValueError(f"answer {answer!r:.80} cannot be read as mathematics")
    return expressions


def _read(text: str) -> list[Any]:
    """Expressions of a text. One without delimiters is an expression as a whole, unless it is prose: then the last
    one in it counts."""
    if not _DELIMITED.search(text) and len(text) <= LONGEST_BARE and "\n" not in text.strip():
        whole = _parse(f"\\boxed{{{text}}}")
        if whole and isinstance(whole[0], Basic | MatrixBase) and not _is_prose(text, whole[0]):
            return whole
    return _parse(text)


def _parse(text: str) -> list[Any]:
    return list(parse(text, parsing_timeout=None, raise_on_error=True))


def _is_prose(text: str, expression: Any) -> bool:
    """Whether a text has several words, or the letters of one were taken for variables, one by one."""
    words = _WORD.findall(_WRAPPED.sub("", _ENVIRONMENT.sub("", text)))
    if len(words) > 1:
        return True
    variables = {str(one).lower() for one in getattr(expression, "free_symbols", ())} | {"e", "i"}
    letters = [set(word.lower()) for word in words if len(word) > 2]
    return any(2 * len(word & variables) >= len(word) for word in letters)


def _are_words(text: str) -> bool:
    """Whether a text is words alone, which mathematics would take for products: listen = silent."""
    text = _WRAPPED.sub(r"\1", text).strip()
    return bool(_WORDS.fullmatch(text)) and bool(re.search(r"[^\W\d_]{3}", text))


def _written(text: str) -> str:
    """The text with powers, minus signs, exponents and mixed numbers as the library reads them."""
    text = plain(text).replace("**", "^")
    text = re.sub(r"\^(-?\d{2,})", r"^{\1}", text)
    text = _SCIENTIFIC.sub(lambda m: format(Decimal(m[0].rstrip(".")), "f"), text)
    text = _FUNCTION.sub(r"\\\1 ", text)
    return _MIXED.sub(lambda m: f"{m[1]}{m[2]}{int(m[3]) * int(m[5]) + int(m[4])}/{m[5]}{m[6]}", text).strip()


def _inside(text: str) -> str:
    """The content of an answer's only box, dollars or brackets; else the text."""
    box = _last_box(text)
    bare = text if box is None else box
    return re.sub(r"\A(?:\$+|\\\(|\\\[)\s*(.*?)\s*(?:\$+|\\\)|\\\])\Z", r"\1", bare.strip(), flags=re.DOTALL)


def _last_box(text: str) -> str | None:
    r"""The content of the last \boxed{...}; None where there is none, or it is not closed."""
    start = text.rfind("\\boxed{")
    depth, begin = 0, start + len("\\boxed{")
    for at in range(begin, len(text)) if start >= 0 else ():
        if text[at] == "}" and not depth:
            return text[begin:at]
        depth += (text[at] == "{") - (text[at] == "}")
    return None


def _as_text(text: str) -> str:
    text = " ".join(_WRAPPED.sub(r"\1", _inside(text)).split()).casefold().rstrip(".")
    return text[1:-1].strip() if re.fullmatch(r"\([^()\W\d_]+\)", text) else text

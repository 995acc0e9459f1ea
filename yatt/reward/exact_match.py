"""Built-in reward: the response says exactly what the answer says."""

from __future__ import annotations

import re
from typing import Literal

from yatt.reward.notation import last_number, plain

ANSWER_TAG = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.DOTALL)


def exact_match(
    response: str, answer: str | None, extract: Literal["none", "tag", "number"] = "none", ignore_case: bool = True
) -> float:
    """1 if the response equals the answer after Unicode and white space are normalised, else 0.

    `extract` looks only at the last <answer>...</answer> ("tag"), or compares the last number of both by value
    ("number"); a response without one is wrong. Raises ValueError where the row has no answer (or no number in it).
    """
    if answer is None or not answer.strip():
        raise ValueError("the row has no answer; set data.answer_key to the column that holds it")
    if extract == "number":
        wanted = last_number(answer)
        if wanted is None:
            raise ValueError(f"answer {answer!r:.80} holds no number; use another extract")
        return float(last_number(response) == wanted)
    if extract not in ("none", "tag"):
        raise ValueError(f"extract={extract!r}; use none, tag or number")
    said = last_tag(response) if extract == "tag" else response
    return float(said is not None and _normal(said, ignore_case) == _normal(answer, ignore_case))


def last_tag(text: str) -> str | None:
    """The content of the last <answer>...</answer>."""
    tags = ANSWER_TAG.findall(text)
    return tags[-1].strip() if tags else None


def _normal(text: str, ignore_case: bool) -> str:
    text = " ".join(plain(text).split())
    return text.casefold() if ignore_case else text

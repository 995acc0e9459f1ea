"""Built-in reward: the response's mathematical answer equals the row's, by the math-verify library."""

from __future__ import annotations

from math_verify import parse, verify

from yatt.reward.exact_match import last_tag


def math_verify(response: str, answer: str | None) -> float:
    """1 if the last expression of the response (boxed, LaTeX or plain) equals the answer, else 0.

    Only the last <answer>...</answer> is looked at, where there is one. Raises
    ValueError where the row's own answer is missing or is no mathematics.
    """
    if answer is None:
        raise ValueError("the row has no answer; set data.answer_key to the column that holds it")
    wanted = parse(answer) or parse(f"${answer}$")
    if not wanted:
        raise ValueError(f"answer {answer!r} cannot be read as mathematics")
    said = last_tag(response)
    return float(verify(wanted, parse(response if said is None else said)))

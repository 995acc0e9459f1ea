"""Built-in reward: the reasoning-gym task that made a row judges the response to it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from reasoning_gym import get_score_answer_fn

from yatt.reward.exact_match import last_tag

verifier: Callable[[str], Callable[..., float]] = cache(get_score_answer_fn)


def reasoning_gym(response: str, metadata: dict[str, Any]) -> float:
    """The task's own score, from 0 to 1, of the last <answer>...</answer>, or of the whole response without one.

    `metadata["reasoning_gym"]` is {"task": name, "entry": the task's row}. Raises ValueError where it is missing.
    """
    origin = metadata.get("reasoning_gym")
    if origin is None:
        raise ValueError("the row is not from a reasoning-gym task; use data.tasks, or another reward")
    said = last_tag(response)
    return verifier(origin["task"])(answer=response.strip() if said is None else said, entry=origin["entry"])

"""The quickstart's reward: is the sum right? Showing the work earns nothing; it is only reported."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

RESPONSE = re.compile(r"(?:<think>(?P<work>[^<>]+)</think>)?<answer>(?P<answer>[0-9]+)</answer>")


def addition(prompt: str, response: str, answer: str, metadata: Mapping[str, Any]) -> dict[str, float]:
    """Score one response; the prompt and metadata are not needed.

    A well-formed response is `<answer>DIGITS</answer>`, with `<think>...</think>` before it or not, and nothing else:
    no second tag, no text around. `reward` is 1 when it is well-formed and DIGITS is the reference answer, else 0.
    `worked` is 1 when it is well-formed and thinks first, right or wrong.
    """
    found = RESPONSE.fullmatch(response)
    return {
        "reward": float(found is not None and found["answer"] == answer),
        "worked": float(found is not None and found["work"] is not None),
    }

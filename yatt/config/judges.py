"""What a judge's settings must obey, and the fields its template may name."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from difflib import get_close_matches

from yatt.config.schema import JudgeConfig

FIELDS = ("question", "response", "answer")
FIELD = re.compile(r"\{(\w+)\}")
"""A field of a template. Other braces, such as those of JSON, stand for themselves."""


def judge_mistakes(name: str, judge: JudgeConfig) -> Iterator[str]:
    """One line for each rule that the settings of the judge `name` break."""
    at, named = f"reward.models.{name}", dict.fromkeys(FIELD.findall(judge.template))
    if "response" not in named:
        yield f"{at}.template={judge.template!r:.60} has no {{response}}; put it where the response goes"
    for field in named:
        if field not in FIELDS:
            close = get_close_matches(field, FIELDS, n=1)
            meant = f"; did you mean {{{close[0]}}}?" if close else f"; use {', '.join(f'{{{one}}}' for one in FIELDS)}"
            yield f"{at}.template names {{{field}}}, which is no field{meant}"
    file = judge.parser.rpartition(":")[0]
    if file.endswith(".py") and not os.path.isfile(file):
        yield f"{at}.parser={judge.parser}: no such file, from {os.getcwd()}"
    if judge.key_env is not None and not os.environ.get(judge.key_env):
        yield f"{at}.key_env={judge.key_env}: the environment has no such variable; export it, or unset the setting"
    if judge.judgements > 1 and judge.temperature == 0:
        yield f"{at}.judgements={judge.judgements} are all the same at {at}.temperature=0; use 1, or a temperature of 1"

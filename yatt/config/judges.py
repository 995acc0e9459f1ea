"""Rules of a judge's settings, and the fields its template may name."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from difflib import get_close_matches

from yatt.config import folders
from yatt.config.facts import model_facts, tokenizer_size
from yatt.config.paths import OBJECT
from yatt.config.schema import JudgeConfig
from yatt.config.secrets import masked
from yatt.errors import ConfigError
from yatt.models.facts import ModelFacts

FIELDS = ("question", "response", "answer")
FIELD = re.compile(r"\{(\w+)\}")
"""A field of a template. Other braces, such as those of JSON, stand for themselves."""
TAKEN = ("policy", "trainer", "generator", "rank", "controller")
"""Names of others than judges: in a placement, and of the processes of a run."""
WITH_PATH = ("kind", "engine", "context_length", "engine_args")
WITH_URL = ("model", "key_env", "concurrency", "timeout")
WITH_WORDS = ("parser", "judgements", "retries", "temperature", "max_tokens")
"""Settings of a judge that writes; the other two are of one that is served here, or elsewhere."""


def judge_mistakes(name: str, judge: JudgeConfig) -> Iterator[str]:
    """One line for each rule that the settings of the judge `name` break."""
    at = f"reward.models.{name}"
    if name in TAKEN:
        yield f"{at}: {name} is the name of another part of a run; give the judge another"
    if (judge.path is None) == (judge.url is None):
        yield f"{at}.path and {at}.url are {'not' if judge.url is None else 'both'} set; set one of them"
    elif judge.url is not None:
        yield from _idle(at, judge, WITH_PATH, "url")
        if judge.model is None:
            yield f"{at}.model is not set; give the judge's name at {at}.url={masked(judge.url)}"
    else:
        yield from _idle(at, judge, WITH_URL, "path")
        yield from _served(name, judge)
    if judge.kind == "generative":
        yield from _written(at, judge)
    else:
        yield from _idle(at, judge, WITH_WORDS, "kind=classifier")
    if judge.template is not None:
        yield from _template(at, judge.template)
    if judge.key_env is not None and not os.environ.get(judge.key_env):
        yield f"{at}.key_env={judge.key_env}: the environment has no such variable; export it, or unset the setting"


def judge_facts(name: str, judge: JudgeConfig, *, weights: bool = True) -> ModelFacts:
    """Sizes of a served judge. Raises ConfigError where its folder cannot be read, or holds no judge of its kind."""
    assert judge.path is not None
    return model_facts(judge.path, f"reward.models.{name}.path", weights=weights, judge=judge.kind)


def judge_context(name: str, judge: JudgeConfig) -> int:
    """Most tokens a served judge reads and writes together: as set, or all its model can. Raises ConfigError as
    `judge_facts` does."""
    return judge.context_length or judge_facts(name, judge, weights=False).max_positions


def _served(name: str, judge: JudgeConfig) -> Iterator[str]:
    at = f"reward.models.{name}"
    try:
        facts = judge_facts(name, judge)
        tokens = tokenizer_size(judge.path or "", f"{at}.path")
        yield from folders.mistakes(judge.path or "", f"{at}.path", judge=True)
    except ConfigError as error:
        yield str(error)
        return
    context, most = judge_context(name, judge), facts.max_positions
    if tokens > facts.vocab_size:
        yield f"{at}.path={judge.path}: its tokenizer has {tokens} tokens, over its vocab_size={facts.vocab_size}"
    if context > most:
        yield f"{at}.context_length={context} is over the model's max_position_embeddings={most}; use at most {most}"
    elif judge.kind == "generative" and judge.max_tokens >= context:
        yield f"{at}.max_tokens={judge.max_tokens} leaves no room to read in its context of {context} tokens; lower it"


def _written(at: str, judge: JudgeConfig) -> Iterator[str]:
    if judge.template is None:
        yield f"{at}.template is not set; write what the judge is asked, with {{response}} where the response goes"
    if judge.parser is None:
        yield f"{at}.parser is not set; say how its answer becomes a number, such as number or verdict:yes=1,no=0"
    elif (file := judge.parser.rpartition(":")[0]).endswith((".py", OBJECT)) and not os.path.isfile(file):
        yield f"{at}.parser={judge.parser}: no such file, from {os.getcwd()}"
    if judge.judgements > 1 and judge.temperature == 0:
        yield f"{at}.judgements={judge.judgements} are all the same at {at}.temperature=0; use 1, or a temperature of 1"


def _template(at: str, template: str) -> Iterator[str]:
    named = dict.fromkeys(FIELD.findall(template))
    if "response" not in named:
        yield f"{at}.template={template!r:.60} has no {{response}}; put it where the response goes"
    for field in named:
        if field not in FIELDS:
            close = get_close_matches(field, FIELDS, n=1)
            meant = f"; did you mean {{{close[0]}}}?" if close else f"; use {', '.join(f'{{{one}}}' for one in FIELDS)}"
            yield f"{at}.template names {{{field}}}, which is no field{meant}"


def _idle(at: str, judge: JudgeConfig, settings: tuple[str, ...], given: str) -> Iterator[str]:
    """Settings that say nothing beside `given`."""
    unset = JudgeConfig()
    for setting in settings:
        if (value := getattr(judge, setting)) != getattr(unset, setting):
            yield f"{at}.{setting}={value} has no meaning with {at}.{given}; unset it"

"""Whether the columns that the settings name are there, and which ones could be meant."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from yatt.config.algorithms import Rows
from yatt.config.columns import ABSENT, find_column
from yatt.config.image_tokens import image_tokens
from yatt.config.schema import Config, DataConfig
from yatt.data.layouts import TALKS
from yatt.errors import ConfigError

ROLES: dict[Rows, tuple[str, ...]] = {
    "prompts": ("prompt_key", "answer_key"),
    "demonstrations": ("prompt_key", "response_key"),
    "pairs": ("chosen_key", "rejected_key", "prompt_key"),
    "labels": ("prompt_key", "label_key", "response_key"),
}
"""The settings that name a row's columns, those with the fewest other names first."""
_ANSWERS = ("reward_model.ground_truth", "ground_truth", "final_answer", "expected_answer", "gold", "solution")
KNOWN = {
    "prompt_key": (
        "prompt",
        "question",
        "instruction",
        "problem",
        "query",
        "context_messages",
        "input",
        "inputs",
        "text",
        *TALKS,
    ),
    "response_key": (
        "response",
        "completion",
        "output",
        "outputs",
        "answer",
        "solution",
        "target",
        "targets",
        "generation",
    ),
    "chosen_key": ("chosen", "chosen_response", "preferred", "better"),
    "rejected_key": ("rejected", "rejected_response", "dispreferred", "worse"),
    "label_key": ("label", "kto_tag", "desirable", "is_desirable", "good", "score"),
    "answer_key": ("answer", *_ANSWERS, "answers", "target", "output", "label"),
}
"""Names of these columns in other trainers and well-known datasets."""
UNREAD = ("tools", "history", "images", "image", "videos", "video", "audio", "audios")
"""Columns that other trainers make part of the prompt."""
IMAGES = ("images", "image")
"""Columns of a row's images, where no setting names one."""
_MARKED = re.compile(r"(?:^|\n)####\s*\S.*\s*$")
_SHOWN = 20


def media_column(row: Mapping[str, Any], key: str | None, *, sees: bool) -> str | None:
    """The column of a row's images: the one that `data.media_key` names; without one, of a model that sees, the first
    of the usual names that holds something."""
    if key is not None or not sees:
        return key
    return next((name for name in IMAGES if row.get(name)), None)


def marked(answers: Sequence[Any]) -> bool:
    """Whether each answer that is there stands behind a `####`, as in GSM8K."""
    told = [one for one in answers if one is not None]
    return bool(told) and all(isinstance(one, str) and _MARKED.search(one) for one in told)


def paths(row: dict[str, Any]) -> Iterator[str]:
    """The names of a row's columns, those within a column of fields with its name before a dot."""
    for name, value in row.items():
        yield from (f"{name}.{inner}" for inner in value) if isinstance(value, dict) and value else (name,)


def proposal(names: Iterable[str], data: DataConfig, kind: Rows) -> dict[str, str]:
    """Settings that would find columns of these names where those of now find none."""
    names = list(names)
    taken = {getattr(data, role) for role in ROLES[kind]} & set(names)
    columns_by_role: dict[str, str] = {}
    for role in ROLES[kind]:
        now = getattr(data, role)
        free = [name for name in names if name not in taken]
        if now in names:
            continue
        known = [name for name in KNOWN[role] if name in free][:1]
        near = get_close_matches(now, free, n=1, cutoff=0.75)
        column = next(iter([*near, *known] if now not in KNOWN[role] else [*known, *near]), None)
        if column is not None:
            columns_by_role[f"data.{role}"] = column
            taken.add(column)
    return columns_by_role


def missing(row: dict[str, Any], data: DataConfig, kind: Rows, *roles: str) -> str:
    """The error for a row that has no column for these settings."""
    keys = " and ".join(repr(getattr(data, role)) for role in roles)
    settings = proposal(paths(row), data, kind)
    if settings and any(f"data.{role}" in settings for role in roles):
        advice = "set " + " ".join(f"{name}={column}" for name, column in settings.items())
    else:
        advice = "see " + " and ".join(f"data.{role}" for role in roles)
    return f"no column {keys} (it has {column_names(row)}); {advice}"


def column_names(names: Iterable[str]) -> str:
    """The columns there are, for an error."""
    shown = [repr(name) for name in names]
    more = f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
    return ", ".join(shown[:_SHOWN]) + more or "none"


class Columns:
    """The columns of rows that were looked at, `what` they are of, and where each row stands."""

    def __init__(self, config: Config, what: str, rows: Sequence[tuple[str, dict[str, Any]]]) -> None:
        self._config, self._what = config, what
        self._origins, self._rows = [origin for origin, _ in rows], [row for _, row in rows]
        self._names = list(dict.fromkeys(name for row in self._rows for name in paths(row)))

    def check(self) -> list[str]:
        """Returns warnings. Raises ConfigError where no row has a column that a setting names, or none has an answer
        that the reward needs."""
        if not self._rows:
            return []
        mistakes = [text for setting, key in self._set() if (text := self._absent(setting, key))]
        if not mistakes and self._config.algorithm.recipe.reinforces:
            mistakes = list(self._answer_mistakes())
        if mistakes:
            raise ConfigError("\n".join(mistakes))
        return list(self._warnings())

    def _set(self) -> Iterator[tuple[str, str]]:
        """The settings that name a column, where they are not their defaults: a saved config has those too."""
        data, kind = self._config.data, self._config.algorithm.recipe.rows
        others = ("margin_key",) if kind == "pairs" else ()
        for name in (*ROLES[kind], *others, "media_key", "system_key"):
            key = getattr(data, name)
            if key is not None and key != type(data).model_fields[name].default:
                yield f"data.{name}", key
        if kind == "prompts":
            yield from (("data.metadata_keys", key) for key in data.metadata_keys or ())

    def _absent(self, setting: str, key: str) -> str | None:
        """The error for a setting whose column no row has, or all have null in; None where some row has a value."""
        values = [find_column(row, key, ABSENT) for row in self._rows]
        if all(value is ABSENT for value in values):
            advice = proposal(self._names, self._config.data, self._config.algorithm.recipe.rows).get(setting)
            near = next(iter(get_close_matches(key, self._names, n=1)), advice)
            has = column_names(self._names)
            more = f"; did you mean {near}?" if near else "; name one of these"
            return f"{setting}={key}: no column {key!r} in the {self._what} (it has {has}){more}"
        if setting != "data.metadata_keys" and all(value is ABSENT or value is None for value in values):
            return f"{setting}={key}: this column is empty in every row of the {self._what}; name another"
        return None

    def _answers(self) -> list[Any]:
        return [find_column(row, self._config.data.answer_key) for row in self._rows]

    def _answer_mistakes(self) -> Iterator[str]:
        data, key, answers = self._config.data, self._config.data.answer_key, self._answers()
        for setting, name, arguments in self._comparing():
            if all(answer is None for answer in answers):
                advice = self._named_answer() or "set data.answer_key to the one that holds it"
                yield (
                    f"{setting}={name} needs an answer: no column {key!r} in the {self._what} (it has "
                    f"{column_names(self._names)}); {advice}"
                )
            elif data.answer_after is None and arguments.get("extract", "none") != "number":
                marked = next((a for a in answers if isinstance(a, str) and _MARKED.search(a)), None)
                if marked is not None:
                    yield (
                        f"{setting}={name} compares with the whole answer, and column {key!r} of the {self._what} ends "
                        f"with {marked.rstrip().splitlines()[-1]!r:.40}; set data.answer_after='####'"
                    )

    def _comparing(self) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """The built-in rewards that compare with the row's answer: setting, name, arguments."""
        reward = self._config.reward
        functions = {
            f"reward.functions.{name}.function": (f.function, f.arguments) for name, f in reward.functions.items()
        }
        if reward.function is not None:
            functions["reward.function"] = (reward.function, {})
        for setting, (name, arguments) in functions.items():
            if name in ("exact_match", "math_verify") and "answer" not in arguments:
                yield setting, name, arguments

    def _named_answer(self) -> str:
        known = next((name for name in KNOWN["answer_key"] if name in self._names), None)
        return f"set data.answer_key={known}" if known is not None and known != self._config.data.prompt_key else ""

    def _warnings(self) -> Iterator[str]:
        data, kind = self._config.data, self._config.algorithm.recipe.rows
        sees = image_tokens(self._config.model.path) is not None
        seen = {media_column(row, data.media_key, sees=sees) for row in self._rows}
        unread = [name for name in UNREAD if any(row.get(name) for row in self._rows) and name not in seen]
        if unread:
            yield f"{self._what}: no prompt is made of {', '.join(map(repr, unread))}; other trainers read such columns"
        if kind != "prompts":
            return
        answers = self._answers()
        none = [index for index, answer in enumerate(answers) if answer is None]
        if len(none) == len(answers) and self._named_answer():
            yield (
                f"{self._what}: no row has a column {data.answer_key!r}, so rewards get no answer; "
                f"{self._named_answer()} if that is it"
            )
        elif none and len(none) < len(answers):
            yield (
                f"{self._what}: {len(none)} of {len(answers)} rows have no answer in column {data.answer_key!r}, the "
                f"first {self._origins[none[0]]}; their rewards get none"
            )

"""Settings that nobody gave, chosen by the model, the data and this machine: for a command without a config, a call
from Python, and the config that `yatt init` writes."""

from __future__ import annotations

import importlib
import textwrap
from collections.abc import Iterator, Mapping
from itertools import count, islice
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from tokenizers import Tokenizer

from yatt.config.algorithms import LONE, RECIPES, Recipe
from yatt.config.facts import local_gpus, model_facts
from yatt.config.hub import HubModel, hub_model
from yatt.config.load import leaves, merged, nest
from yatt.config.placement import slot_memory
from yatt.config.schema import DataConfig
from yatt.config.yaml_core import inline
from yatt.data.columns import marked, paths, proposal
from yatt.data.layouts import Layout
from yatt.data.rows import Row, RowSource, open_files
from yatt.data.source import open_source
from yatt.errors import BadRow, ConfigError
from yatt.models.facts import ModelFacts
from yatt.placement.cost import bytes_of

STEPS = 100
LOOKED_AT = 1000
"""Rows that are looked at, evenly spread: fewer of those that have to be made."""
CONTEXT, RESPONSE = 1024, 512
"""Tokens of prompt and response together, and of the response, where prompts leave room for both."""
SEEN = 3072
"""Tokens that a prompt's images are given room for."""
UNIT = 64
"""Lengths are multiples of it."""
AROUND, PER_MESSAGE = 48, 8
"""Tokens that a chat template may add to a prompt, and to each of its messages."""
SPECIAL = 4
"""Tokens that a tokenizer may add where there is no template."""
MICRO_BATCHES = (8192, 4096, 2048, 1024)
LOGITS_SHARE = 0.1
"""Of a slot's memory, for the logits of a micro-batch and their gradient."""
COMPARING = ("exact_match", "math_verify")
RATES = {"sft": 1e-5, "reward_model": 1e-5}
"""Learning rates of algorithms that take larger ones than the default."""


class Choice:
    """What is chosen beneath settings that were given. `rows` are the data where no file has them yet."""

    def __init__(self, rows: RowSource | None = None) -> None:
        self._rows = rows
        self.values: dict[str, Any] = {}
        self._seen = ""

    def __call__(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Nested settings to stand beneath those `given`; none of what the checks of the settings refuse anyway. Raises
        ConfigError where the model or the data cannot be read, or a run that goes on has no name."""
        told = dict(leaves(given))
        name = told.get("algorithm.name", "grpo")
        recipe = RECIPES.get(name) if isinstance(name, str) else None
        path = told.get("model.path")
        if recipe is None or not isinstance(path, str):
            return {}
        if named := hub_model(path):
            given = merged(given, nest("model.path", _fetched(named, told.get("model.revision"))))
            told = dict(leaves(given))
        facts = model_facts(told["model.path"], weights=False, scalar=name == "reward_model")
        chosen = {"run.name": _free_name(told, name), "algorithm.name": name, "train.steps": STEPS}
        gpus = 0 if told.get("cluster.device") == "cpu" else local_gpus()
        chosen["model.dtype"] = told.get("model.dtype", "bfloat16" if gpus else "float32")
        chosen["train.optimizer.learning_rate"] = RATES.get(name, 1e-6)
        data, rows = self._data(given, recipe)
        chosen |= data
        needed = self._longest(given, data, rows, recipe) if rows is not None else 0
        chosen |= _lengths(told, facts, recipe, needed)
        chosen |= _sizes(told, facts, recipe, gpus, chosen, len(rows) if rows is not None else None)
        chosen["checkpoint.every"] = 20
        if {"evaluate.path", "evaluate.size"} & told.keys():
            chosen["evaluate.every"] = 10
        self.values = {setting: value for setting, value in chosen.items() if setting not in told}
        nested: dict[str, Any] = {}
        for setting, value in self.values.items():
            nested = merged(nested, nest(setting, value))
        return nested

    def _longest(self, given: Mapping[str, Any], columns: Mapping[str, Any], rows: RowSource, recipe: Recipe) -> int:
        """Tokens of the longest prompt, or sequence, of the training and of the held-out rows; 0 for none."""
        lengths = _Lengths(given, columns, recipe)
        held_out = dict(leaves(given)).get("evaluate.path") if self._rows is None else None
        sources = [rows, open_files(held_out, "evaluate.path")] if isinstance(held_out, str) else [rows]
        seen = max(map(lengths.longest, sources))
        if not seen:
            return 0
        self._seen = f"; longest {'prompt' if recipe.reinforces else 'sequence'} about {seen} tokens"
        return seen + lengths.around

    def lines(self) -> list[str]:
        """What was chosen, to be shown."""
        words = " ".join(f"{setting}={inline(value)}" for setting, value in self.values.items())
        if not words:
            return []
        head = f"chosen, by the model, the data and this machine (any can be given{self._seen}):"
        return [head, textwrap.indent(textwrap.fill(words, 98, break_long_words=False, break_on_hyphens=False), "  ")]

    def _data(self, given: Mapping[str, Any], recipe: Recipe) -> tuple[dict[str, Any], RowSource | None]:
        """The settings of the columns, and the rows themselves, where the data can be looked at."""
        try:
            data = DataConfig.model_validate(given.get("data", {}))
        except ValidationError:
            return {}, None
        if self._rows is None and not (data.path or data.tasks):
            return {}, None
        rows = self._rows or open_source(data, 0)
        first = list(islice(_looked_at(rows), 20))
        names = list(dict.fromkeys(name for row in first for name in paths(row)))
        columns: dict[str, Any] = dict(proposal(names, data, recipe.rows))
        compares = any(function in COMPARING for function in _functions(given))
        if recipe.reinforces and not compares:
            columns.pop("data.answer_key", None)
        key = columns.get("data.answer_key", data.answer_key)
        if recipe.reinforces and marked([row.get(key) for row in first]):
            columns["data.answer_after"] = "####"
        return columns, rows


def _fetched(model: HubModel, revision: Any) -> str:
    """The folder of a model on the Hub, without its weights. What fetches is slow to import."""
    if model.revision is None and isinstance(revision, str):
        model = model._replace(revision=revision)
    folder: str = importlib.import_module("yatt.faces.hub").fetch(model, "model.path", weights=False)
    return folder


def _free_name(told: Mapping[str, Any], name: str) -> str:
    """The first name of a run that is nobody's yet."""
    if told.get("resume") == "auto" and "run.name" not in told:
        raise ConfigError("resume=auto goes on with a run; say which by run.name, or give its config.yaml")
    folder = Path(str(told.get("run.dir", "runs")))
    return next(f"{name}-{n}" for n in count(1) if not (folder / f"{name}-{n}").exists())


def _functions(given: Mapping[str, Any]) -> Iterator[Any]:
    for setting, value in leaves({"reward": given.get("reward") or {}}):
        if setting.endswith("function"):
            yield value


def _looked_at(rows: RowSource, most: int = LOOKED_AT) -> Iterator[Row]:
    """Rows from all over the data, without those that cannot be read."""
    for number in range(0, len(rows), -(-len(rows) // most)):
        try:
            yield rows.row(number)
        except BadRow:
            continue


class _Lengths:
    """Lengths of rows in tokens, close to those that the encoders find: the chat template is only allowed for."""

    def __init__(self, given: Mapping[str, Any], columns: Mapping[str, Any], recipe: Recipe) -> None:
        model = given["model"]["path"]
        own = {setting.removeprefix("data."): value for setting, value in columns.items()}
        self._data = DataConfig.model_validate({**own, **given.get("data", {})})
        self._layout, self._rows = Layout(self._data, chat=True), recipe.rows
        self.around = AROUND if self._data.chat_template == "auto" and _has_template(Path(model)) else SPECIAL
        try:
            self._tokenizer: Tokenizer = Tokenizer.from_file(str(Path(model) / "tokenizer.json"))
        except Exception:
            raise ConfigError(f"model.path={model}: its tokenizer.json cannot be read") from None

    def longest(self, rows: RowSource) -> int:
        return max(map(self._of, _looked_at(rows, LOOKED_AT // 10 if self._data.tasks else LOOKED_AT)), default=0)

    def _of(self, row: Row) -> int:
        """Of a row that cannot be used 0: the check of the data says so."""
        data = self._data
        try:
            match self._rows:
                case "prompts":
                    return self._tokens(self._layout.prompt(row).get(data.prompt_key))
                case "pairs":
                    row = self._layout.pair(row)
                    ends = [self._tokens(row.get(key)) for key in (data.chosen_key, data.rejected_key)]
                    return self._tokens(row.get(data.prompt_key)) + max(ends)
                case _:
                    row = self._layout.demonstration(row)
                    return self._tokens(row.get(data.prompt_key)) + self._tokens(row.get(data.response_key))
        except BaseException as error:
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":  # as Rust's are called
                raise
            return 0

    def _tokens(self, value: Any) -> int:
        messages = value if isinstance(value, list) else [value] if value else []
        texts = [message.get("content") if isinstance(message, dict) else message for message in messages]
        texts = [text for text in (*texts, self._data.system_prompt) if isinstance(text, str)]
        tokens = sum(len(self._tokenizer.encode(text, add_special_tokens=False)) for text in texts)
        return tokens + PER_MESSAGE * len(texts)


def _has_template(folder: Path) -> bool:
    file = folder / "tokenizer_config.json"
    said = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    return (folder / "chat_template.jinja").exists() or '"chat_template"' in said


def _whole(told: Mapping[str, Any], setting: str, default: int) -> int:
    """A number that was given; the default where none was, or none that its rule lets through."""
    value = told.get(setting)
    return value if isinstance(value, int) and value > 0 else default


def _up(tokens: float) -> int:
    return int(-(-tokens // UNIT) * UNIT)


def _lengths(told: Mapping[str, Any], facts: ModelFacts, recipe: Recipe, needed: int) -> dict[str, int]:
    """The context, and of it the response; `needed` are tokens of the longest prompt or sequence, 0 if not known."""
    most, images = facts.max_positions, SEEN if facts.vision is not None else 0
    if not recipe.reinforces:
        return {"model.context_length": min(most, images + (_up(1.25 * needed) or CONTEXT))}
    response = _whole(told, "rollout.max_tokens", RESPONSE)
    room = min(most, images + max(CONTEXT, _up(needed + response)))
    context = _whole(told, "model.context_length", room)
    text = max(context - images, context // 2)
    return {"model.context_length": context, "rollout.max_tokens": max(1, min(text // 2, text - needed))}


def _sizes(
    told: Mapping[str, Any],
    facts: ModelFacts,
    recipe: Recipe,
    gpus: int,
    chosen: Mapping[str, Any],
    rows: int | None,
) -> dict[str, Any]:
    """How much is done at once: prompts, responses, tokens of a micro-batch."""
    slots, updates = _whole(told, "cluster.slots", gpus or 1), _whole(told, "train.updates_per_step", 1)
    ranks = max(1, slots // (_whole(told, "train.tp", 1) * _whole(told, "train.pp", 1)))
    unit = updates * (1 if recipe.reinforces else ranks)
    wanted = min(32 if gpus else 8, rows or 32)
    fewest = _whole(told, "cluster.controllers", 1)
    sizes: dict[str, Any] = {"train.batch_size": max(wanted // unit, -(-fewest // unit), 1) * unit}
    if recipe.reinforces:
        sizes["rollout.n"] = n = _whole(told, "rollout.n", 8)
        if recipe.advantage not in LONE and not recipe.teacher and n > 1:
            sizes["rollout.filter"] = "all_equal"
    context = _whole(told, "model.context_length", chosen["model.context_length"])
    least = context * (2 if recipe.rows in ("pairs", "labels") else 1)
    token = facts.vocab_size * 2 * bytes_of(chosen["model.dtype"])
    room = LOGITS_SHARE * (slot_memory(gpus, slots) or 16e9)
    fits = [size for size in MICRO_BATCHES if size >= least and size * token <= room]
    return {**sizes, "train.tokens_per_micro_batch": fits[0] if fits else max(least, MICRO_BATCHES[-1])}

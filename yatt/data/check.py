"""The data, and what scores it, looked at before anything starts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from transformers import PreTrainedTokenizerFast

from yatt.config.schema import Config
from yatt.config.sources import check_any, check_few, source_of
from yatt.data.columns import Columns, paths
from yatt.data.encoders import row_encoder
from yatt.data.loader import CHECKED, Encode, check_rows, encode_row
from yatt.data.prompts import load_tokenizer
from yatt.data.rows import Row, RowSource
from yatt.data.source import open_evaluation, open_source
from yatt.data.template import with_arguments
from yatt.data.turns import Turn
from yatt.environments.chat import Chat
from yatt.environments.hosted import check_environment
from yatt.errors import ConfigError, DataError
from yatt.reward.filter import load_filter
from yatt.reward.function import Item
from yatt.reward.mixed import check_rewards
from yatt.user_functions import find

HELD_OUT = "evaluation data"


def check_data(config: Config) -> list[str]:
    """Encode the first rows of the training and the held-out data. Returns lines to show, one per kind of data with
    bad rows. Raises ConfigError or DataError where the tokenizer, a file, or (`data.bad_rows=fail`) a row is bad."""
    lines = []
    for name, source, encode in _sources(config):
        lines += Columns(config, name, list(_first_rows(source))).check()
        bad = check_rows(source, encode, config.data.bad_rows)
        if bad.count:
            lines.append(f"{name}: {bad.count} bad row(s) will be skipped, the first: {'; '.join(bad.reasons)}")
        if name == HELD_OUT and config.evaluate.by is not None:
            _check_sources(config.evaluate.by, source, encode)
    return lines


def _first_rows(source: RowSource) -> Iterator[tuple[str, Row]]:
    """The first rows that can be read, each with its place."""
    for row in range(min(CHECKED, len(source))):
        with suppress(DataError):
            yield source.origin(row), source.row(row)


def _check_sources(by: str, source: RowSource, encode: Encode[Any]) -> None:
    """Whether the first held-out prompts say where they come from. Raises ConfigError where they do not."""
    sources: set[str] = set()
    columns: dict[str, None] = {}
    for row in range(min(CHECKED, len(source))):
        with suppress(DataError):
            metadata = encode_row(source, encode, row, row).metadata
            sources.add(source_of(metadata, by))
            columns |= dict.fromkeys(paths(metadata))
    check_few(by, sources)
    if len(source) <= CHECKED:
        check_any(by, sources, columns)


def check_scoring(config: Config) -> None:
    """Call every reward function once, in a process of its own, on the first row and an empty response, ask every
    judge for a word, and look up the filter and other functions of the user's. Raises ConfigError before anything else
    has started."""
    if not config.algorithm.recipe.reinforces:
        return
    load_filter(config.rollout)
    for setting, name in (("advantage", config.algorithm.advantage), ("loss", config.algorithm.loss)):
        if name is not None:
            find(f"algorithm.{setting}", name)
    source, tokenizer = open_source(config.data, config.run.seed), _tokenizer(config)
    if config.environment.played:
        check_environment(config.environment, Chat(tokenizer, config.environment.calls).knows_tools)
    encode = row_encoder(config, tokenizer, source)
    for row in range(len(source)):
        with suppress(DataError):
            prompt = encode_row(source, encode, row, row)
            if config.environment.played and prompt.media:
                raise ConfigError(
                    f"environment={config.environment.function or config.environment.command} is given text alone, and "
                    f"{source.origin(row)} has images; use rows without"
                )
            check_rewards(config.reward, Item(prompt.text, "", prompt.answer, dict(prompt.metadata)))
            return


def _tokenizer(config: Config) -> PreTrainedTokenizerFast:
    return with_arguments(load_tokenizer(config.model.path), config.data.template_arguments)


def _sources(config: Config) -> Iterator[tuple[str, RowSource, Encode[object]]]:
    tokenizer = _tokenizer(config)
    _ = Turn(tokenizer).stops  # an engine reads them once it has started
    sources = {"training data": open_source(config.data, config.run.seed), HELD_OUT: open_evaluation(config)}
    for name, source in sources.items():
        if source is not None:
            yield name, source, row_encoder(config, tokenizer, source)

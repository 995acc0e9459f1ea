"""The data, and what scores it, looked at before anything starts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from yatt.config.schema import Config
from yatt.data.loader import Encode, check_rows
from yatt.data.prompts import DemonstrationEncoder, PromptEncoder, load_tokenizer
from yatt.data.rows import RowSource
from yatt.data.source import open_evaluation, open_source
from yatt.errors import DataError
from yatt.reward.filter import load_filter
from yatt.reward.function import Item
from yatt.reward.mixed import check_rewards


def check_data(config: Config) -> list[str]:
    """Encode the first rows of the training and the held-out data. Returns lines to show, one per kind of data with
    bad rows. Raises ConfigError or DataError where the tokenizer, a file, or (`data.bad_rows=fail`) a row is bad."""
    lines = []
    for name, source, encode in _sources(config):
        bad = check_rows(source, encode, config.data.bad_rows)
        if bad.count:
            lines.append(f"{name}: {bad.count} bad row(s) will be skipped, the first: {'; '.join(bad.reasons)}")
    return lines


def check_scoring(config: Config) -> None:
    """Call every reward function once, in a process of its own, on the first row and an empty response, ask every
    judge for a word, and look the filter up. Raises ConfigError before anything else has started."""
    if config.algorithm.name == "sft":
        return
    load_filter(config.rollout)
    encode = PromptEncoder(
        load_tokenizer(config.model.path), config.data, config.model.context_length, config.rollout.max_tokens
    )
    source = open_source(config.data, config.run.seed)
    for row in range(len(source)):
        with suppress(DataError):
            prompt = encode(source.row(row), row, row)
            check_rewards(config.reward, Item(prompt.text, "", prompt.answer, dict(prompt.metadata)))
            return


def _sources(config: Config) -> Iterator[tuple[str, RowSource, Encode[object]]]:
    tokenizer, length = load_tokenizer(config.model.path), config.model.context_length
    prompts = PromptEncoder(tokenizer, config.data, length, config.rollout.max_tokens)
    demonstrations = DemonstrationEncoder(tokenizer, config.data, length)
    sft = config.algorithm.name == "sft"
    yield "training data", open_source(config.data, config.run.seed), demonstrations if sft else prompts
    held_out = open_evaluation(config)
    if held_out is not None:
        yield "evaluation data", held_out, prompts

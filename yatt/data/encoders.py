"""The encoder of a run's rows, by its algorithm."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerFast

from yatt.config.schema import Config
from yatt.data.demonstrations import DemonstrationEncoder
from yatt.data.loader import Encode, share_of_rows
from yatt.data.preferences import LabelEncoder, PairEncoder
from yatt.data.prompts import PromptEncoder
from yatt.data.rows import RowSource
from yatt.data.source import open_evaluation
from yatt.protocols import MediaStore


def row_encoder(
    config: Config, tokenizer: PreTrainedTokenizerFast, source: RowSource, store: MediaStore | None = None
) -> Encode[Any]:
    """The encoder of the rows of `source`, to prompts or to samples, as the algorithm asks. Prompts' images go into
    `store`. Raises ConfigError or DataError where no row could be encoded."""
    data, length = config.data, config.model.context_length
    match config.algorithm.recipe.rows:
        case "prompts":
            return PromptEncoder(tokenizer, data, length, config.rollout.max_tokens, store)
        case "demonstrations":
            return DemonstrationEncoder(tokenizer, data, length)
        case "pairs":
            return PairEncoder(tokenizer, data, length, scored=config.algorithm.name == "reward_model")
        case "labels":
            return LabelEncoder(tokenizer, data, length, source)


def held_out_rows(
    config: Config, tokenizer: PreTrainedTokenizerFast, *, index: int, count: int, store: MediaStore | None = None
) -> list[Any]:
    """Controller `index`'s share of the held-out rows, if any: row i goes to controller i mod count, with uid i."""
    source = open_evaluation(config)
    if source is None:
        return []
    return share_of_rows(source, row_encoder(config, tokenizer, source, store), index, count, config.data.bad_rows)

"""The encoder of a run's rows, by its algorithm."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerFast

from yatt.config.image_tokens import image_tokens
from yatt.config.schema import Config
from yatt.data.demonstrations import DemonstrationEncoder
from yatt.data.images import ImagePlaces
from yatt.data.loader import Encode, share_of_rows
from yatt.data.preferences import LabelEncoder, PairEncoder
from yatt.data.prompts import PromptEncoder
from yatt.data.rows import Row, RowSource
from yatt.data.source import open_evaluation
from yatt.errors import BadRow
from yatt.protocols import MediaStore
from yatt.types import Prompt
from yatt.vision.images import ImageReader


def row_encoder(
    config: Config, tokenizer: PreTrainedTokenizerFast, source: RowSource, store: MediaStore | None = None
) -> Encode[Any]:
    """The encoder of the rows of `source`, to prompts or to samples, as the algorithm asks. Their images go into
    `store`. Raises ConfigError or DataError where no row could be encoded."""
    data, length = config.data, config.model.context_length
    images = image_places(config, tokenizer, source, store)
    match config.algorithm.recipe.rows:
        case "prompts":
            encode = PromptEncoder(tokenizer, data, length, config.rollout.max_tokens, store, images)
            return _of_text(encode) if config.environment.played else encode
        case "demonstrations":
            return DemonstrationEncoder(tokenizer, data, length, images)
        case "pairs":
            scored = config.algorithm.name == "reward_model"
            return PairEncoder(tokenizer, data, length, scored=scored, images=images)
        case "labels":
            return LabelEncoder(tokenizer, data, length, source, images)


def _of_text(encode: Encode[Prompt]) -> Encode[Prompt]:
    """The same, for rows that begin conversations: with images they are bad ones."""

    def of_text(row: Row, uid: int, index: int) -> Prompt:
        prompt = encode(row, uid, index)
        if prompt.media:
            raise BadRow("the row has images, and conversations are of text alone; leave them out, or the environment")
        return prompt

    return of_text


def image_places(
    config: Config, tokenizer: PreTrainedTokenizerFast, source: RowSource, store: MediaStore | None
) -> ImagePlaces | None:
    """What finds the images of the rows of `source`; None for a model that sees none."""
    tokens = image_tokens(config.model.path)
    if tokens is None:
        return None
    reader = ImageReader(config.model.path, config.data.max_pixels)
    return ImagePlaces(config.data, tokens, reader, tokenizer, folder=source.folder, store=store)


def held_out_rows(
    config: Config, tokenizer: PreTrainedTokenizerFast, *, index: int, count: int, store: MediaStore | None = None
) -> list[Any]:
    """Controller `index`'s share of the held-out rows, if any: row i goes to controller i mod count, with uid i."""
    source = open_evaluation(config)
    if source is None:
        return []
    return share_of_rows(source, row_encoder(config, tokenizer, source, store), index, count, config.data.bad_rows)

"""From a row to what is preferred: a better and a worse response, or one that is good or bad."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from yatt.config.schema import DataConfig
from yatt.data.columns import missing
from yatt.data.demonstrations import Asked, Encoded, ResponseEncoder, last_turn
from yatt.data.images import ImagePlaces
from yatt.data.layouts import named
from yatt.data.prompts import as_messages
from yatt.data.rows import Row, RowSource
from yatt.errors import BadRow, DataError
from yatt.types import Media, Pair, Sample, SampleKey

LABELS = {"true": 1, "false": 0, "1": 1, "1.0": 1, "0": 0, "0.0": 0, "-1": -1, "-1.0": -1}
TRIES = 16
"""Rows after a labelled one that are looked at for a response to another prompt."""


class PairEncoder:
    """Encodes rows as pairs: prompt and chosen response, and prompt and rejected response.

    The columns of chosen and rejected hold text or the assistant's message, beside a prompt column; or whole talks,
    which are the same up to the last turn. `reward` is the margin, 0 without a column of margins.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        data: DataConfig,
        context_length: int,
        *,
        scored: bool = False,
        images: ImagePlaces | None = None,
    ) -> None:
        """See `ResponseEncoder` for `scored`."""
        self._data = data
        self._responses = ResponseEncoder(tokenizer, data, context_length, scored=scored, images=images)

    def __call__(self, row: Row, uid: int, index: int) -> Pair:
        """Raises BadRow where a response is missing, both are equal or of two kinds, or their prompts differ; and as
        `ResponseEncoder` does."""
        keys = (self._data.chosen_key, self._data.rejected_key)
        row = self._responses.layout.pair(row)
        (asked, chosen), (other, rejected) = (self._split(row, key, index) for key in keys)
        if len({isinstance(row[key], str) for key in keys}) > 1:
            raise BadRow("one of chosen and rejected is text and the other chat messages; give both in one form")
        if asked.prompt != other.prompt or [one.value for one in asked.images] != [one.value for one in other.images]:
            raise BadRow("chosen and rejected differ before their last turn; give both the same prompt")
        if chosen == rejected:
            raise BadRow("chosen and rejected are the same; there is nothing to prefer")
        first = self._responses(asked, chosen, what="chosen response")
        second = self._responses(asked, rejected, what="rejected response")
        if np.array_equal(first.tokens, second.tokens):
            raise BadRow("chosen and rejected have the same tokens behind this prompt; there is nothing to prefer")
        return _pair(uid, first, second, media=self._responses.hold(first.media), reward=self._margin(row))

    def _split(self, row: Row, key: str, index: int) -> tuple[Asked, str]:
        """Prompt and response of one of the two."""
        setting = "chosen_key" if key == self._data.chosen_key else "rejected_key"
        if row.get(key) is None:
            raise BadRow(missing(row, self._data, "pairs", setting))
        value, prompt = row[key], row.get(self._data.prompt_key)
        if isinstance(value, str):
            if prompt is None:
                raise BadRow(missing(row, self._data, "pairs", "prompt_key"))
            return self._responses.asked(prompt, row, index), value
        if not isinstance(value, list):
            raise BadRow(f"column {key!r} holds a {type(value).__name__}; it must be text or chat messages")
        if len(value) == 1 and prompt is not None:
            value = [*(prompt if isinstance(prompt, list) else as_messages(prompt)), *value]
        asked = self._responses.asked(value, row, index)
        messages = as_messages(asked.prompt)
        if messages[-1]["role"] != "assistant":
            raise BadRow(f"the messages of {key!r} do not end with the assistant's turn")
        if len(messages) == 1:
            raise BadRow(f"{key!r} has no prompt before the assistant's turn, and there is no prompt column")
        before, response = last_turn(messages)
        return asked._replace(prompt=before), response

    def _margin(self, row: Row) -> float:
        key = self._data.margin_key
        if key is None:
            return 0.0
        value: Any = row.get(key)
        try:
            margin = math.nan if isinstance(value, bool | list) else float(value)  # a file of text has numbers as text
        except (TypeError, ValueError, OverflowError):
            margin = math.nan
        if not math.isfinite(margin):
            raise BadRow(f"column {key!r} holds {value!r:.40}; a margin is a number; see data.margin_key")
        return margin


class LabelEncoder:
    """Encodes rows as labelled responses, each in a pair: prompt and response, and the same prompt with the response
    of another row, whose probability says how far the policy is from the reference (KTO, arXiv 2402.01306, 4.2).

    The other row is the next one of `source`, in a circle, that can be used and has another prompt. `reward` is +1 for
    a desirable response, -1 for one that is not.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        data: DataConfig,
        context_length: int,
        source: RowSource,
        images: ImagePlaces | None = None,
    ) -> None:
        """Raises DataError where there is one row only."""
        if len(source) < 2:
            raise DataError(f"{source.origin(0)} is the only row; a labelled response needs another row's beside it")
        self._data, self._source = data, source
        self._responses = ResponseEncoder(tokenizer, data, context_length, images=images)

    def __call__(self, row: Row, uid: int, index: int) -> Pair:
        """Raises BadRow where the label is missing, or no row nearby has a response that fits; and as `ResponseEncoder`
        does."""
        asked, response, _ = self._responses.split(row, index, "labels")
        reward = self._label(row)
        first, second = self._responses(asked, response), self._mismatched(asked)
        return _pair(uid, first, second, media=self._responses.hold(first.media), reward=reward)

    def _mismatched(self, asked: Asked) -> Encoded:
        reason = "all have the same prompt"
        nearby = range(1, min(TRIES + 1, len(self._source)))
        for step in nearby:
            other = (asked.row + step) % len(self._source)
            try:
                others, response, _ = self._responses.split(self._source.row(other), other)
                if others.prompt != asked.prompt or others.images != asked.images:
                    return self._responses(asked, response)
            except BadRow as error:
                reason = str(error)
        raise BadRow(f"none of the next {len(nearby)} rows has a response to go with another prompt: {reason}")

    def _label(self, row: Row) -> float:
        key, given = self._data.label_key, row
        row = named(row, key)
        if key not in row:
            raise BadRow(missing(given, self._data, "labels", "label_key"))
        label = row[key]
        if isinstance(label, str):  # as a file of text has it
            label = LABELS.get(label.strip().lower(), label)
        if not isinstance(label, int | float) or label not in (1, 0, -1):  # True and False among them
            raise BadRow(f"column {key!r} holds {label!r:.40}; a label is true or false, 1 or 0, or 1 or -1")
        return 1.0 if label == 1 else -1.0


def _pair(uid: int, first: Encoded, second: Encoded, *, media: tuple[Media, ...], reward: float) -> Pair:
    """Both have the same prompt, and so the same images."""
    one, other = (
        Sample(key=SampleKey(uid, 0), tokens=each.tokens, loss_mask=each.mask, reward=reward, media=media)
        for each in (first, second)
    )
    return Pair(first=one, second=other)

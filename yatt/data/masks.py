"""Which tokens of a chat the assistant wrote."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from yatt.data.turns import Messages, Turn, render, with_parts
from yatt.errors import BadRow, ConfigError
from yatt.text import one_line

MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")
_TALK = [
    {"role": "user", "content": "Is 1 + 1 = 2?"},
    {"role": "assistant", "content": "Yes, 1 + 1 is 2."},
    {"role": "user", "content": "And 3?"},
]


class AssistantMask:
    """Finds the assistant's turns in what the chat template makes of messages and its generation prompt: the text of
    each turn, and its end where that is a token at which an engine stops.

    A template with generation marks says so itself. For any other the place of a turn is what the messages before it
    render to, which must be the beginning of the whole, with the turn's text after it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, turn: Turn) -> None:
        self._tokenizer, self._turn = tokenizer, turn
        self._marked = bool(MARKS.search(str(tokenizer.chat_template)))

    def __call__(self, messages: Messages) -> np.ndarray:
        """[P] bool, over the tokens of the messages with the generation prompt. Raises ConfigError where the template
        has no such mask, and BadRow where it has none for these messages."""
        mask = self._find(messages)
        if not isinstance(mask, str):
            return mask
        why = self._find(_TALK)
        if not isinstance(why, str):
            raise BadRow(f"the assistant's turns cannot be told from the rest: {mask}")
        raise ConfigError(
            f"model.path={self._tokenizer.name_or_path}: its chat template has no assistant mask ({why}); put "
            "{% generation %} and {% endgeneration %} around the assistant's turns in it, or give talks of one answer"
        )

    def _find(self, messages: Messages) -> np.ndarray | str:
        """The mask, or why there is none."""
        try:
            return self._marks(messages) if self._marked else self._places(messages)
        except Exception as error:  # a template raises whatever its expressions raise
            return one_line(error)

    def _marks(self, messages: Messages) -> np.ndarray | str:
        marked: Any = self._tokenizer.apply_chat_template(
            with_parts(messages), add_generation_prompt=True, return_dict=True, return_assistant_tokens_mask=True
        )
        mask = np.array(marked["assistant_masks"], dtype=bool)
        return mask if mask.any() else "its generation marks hold no token"

    def _places(self, messages: Messages) -> np.ndarray | str:
        text = render(self._tokenizer, messages, opened=True)
        read = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        begins, ends = np.array(read["offset_mapping"], dtype=np.int64).reshape(-1, 2).T
        mask = np.zeros(len(begins), dtype=bool)
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = render(self._tokenizer, messages[:number], opened=True) if number else ""
            body = self._turn.unopened(messages[:number], before, message["content"]) if number else message["content"]
            place = _place(text, len(before), body) if text.startswith(before) else None
            if place is None:
                return f"message {number + 1} does not stand as it is after what comes before it"
            start, stop = place
            if text.startswith(self._turn.end, stop):
                stop += len(self._turn.end)
            mask |= (begins < stop) & (ends > start)
        return mask


def _place(text: str, start: int, content: str) -> tuple[int, int] | None:
    """From where to where the content stands in the text from `start` on; a template may cut its blanks, or add one."""
    body = content.strip()
    begin = start + (len(text[start:]) - len(text[start:].lstrip()) if body else 0)
    if not text.startswith(body, begin):
        return None
    blanks = content[len(content.rstrip()) :] if body else ""
    stop = begin + len(body)
    return start, stop + len(blanks) if text.startswith(blanks, stop) else stop

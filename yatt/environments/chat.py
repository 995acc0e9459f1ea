"""The text of a conversation as tokens. What the policy sampled is never tokenised again: what others add is rendered
by the chat template as a suffix of what is there. Where the template writes the past anew, there is no such suffix."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedTokenizerFast

from yatt.data.prompts import tokenize
from yatt.data.turns import ResponseText, Turn, render
from yatt.environments.calls import CallFormat, call_format
from yatt.errors import BadRow
from yatt.types import Answer, Message, Tools


class Chat:
    """A tokenizer with its chat template, and the format in which its model writes tool calls."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, format: str = "auto") -> None:
        self._tokenizer = tokenizer
        self._turn = Turn(tokenizer)
        self._text = ResponseText(tokenizer)
        self._stops = frozenset(self._turn.stops)
        self.format: CallFormat = call_format(format, tokenizer.chat_template or "")
        self._knows_tools: bool | None = None

    @property
    def knows_tools(self) -> bool:
        """Whether the chat template tells the model which tools there are."""
        if self._knows_tools is None:
            said, probe = [{"role": "user", "content": "Hello"}], "a_tool_of_no_other_name"
            schema = {"name": probe, "description": probe, "parameters": {"type": "object", "properties": {}}}
            try:
                self._knows_tools = probe in self._render(said, [{"type": "function", "function": schema}], opened=True)
            except BadRow:
                self._knows_tools = False
        return self._knows_tools

    def ids(self, tokens: Sequence[int]) -> np.ndarray:
        """Token ids of somebody else's, int32. Raises BadRow where there are none, or the tokenizer has one of them
        not."""
        most = len(self._tokenizer)
        wrong = [token for token in tokens if type(token) is not int or not 0 <= token < most]
        if wrong or not len(tokens):
            told = f"token {wrong[0]!r:.40} is none of the tokenizer's {most}" if wrong else "there are no tokens"
            raise BadRow(f"{told}; give ids of its tokens")
        return np.array(tokens, dtype=np.int32)

    def opening(self, messages: Sequence[Message], tools: Tools = ()) -> np.ndarray:
        """Token ids of the messages, up to where the assistant goes on, int32. Raises BadRow where the template refuses
        them."""
        return self._tokens(self._render(messages, tools, opened=True))

    def answer(self, tokens: np.ndarray, tools: Tools = ()) -> Answer:
        """What sampled tokens say. Calls are looked for where there are tools."""
        text = self._text(tokens)
        if not tools:
            return Answer(message={"role": "assistant", "content": text}, text=text)
        said, calls, mistakes = self.format.read(text)
        message: Message = {"role": "assistant", "content": said}
        if calls:
            message["tool_calls"] = [
                {"type": "function", "id": call.id, "function": {"name": call.name, "arguments": dict(call.arguments)}}
                for call in calls
            ]
        return Answer(message=message, text=text, calls=tuple(calls), mistakes=tuple(mistakes))

    def suffix(
        self,
        messages: Sequence[Message],
        answer: Answer,
        sampled: np.ndarray,
        new: Sequence[Message],
        tools: Tools = (),
    ) -> np.ndarray | None:
        """Token ids, int32, that follow the `sampled` ones once `new` is said, up to where the assistant goes on; the
        answer was given to `messages`. None where the template writes the past anew: it begins the longer conversation
        otherwise than the shorter one, or drops a part of the answer. Raises BadRow where it refuses the messages."""
        opened = self._render(messages, tools, opened=True)
        closed = self._render([*messages, answer.message], tools, opened=False)
        whole = self._render([*messages, answer.message, *new], tools, opened=True)
        kept = _squeezed(closed).startswith(_squeezed(opened + self.format.before_calls(answer.text)))
        if not kept or not whole.startswith(closed):
            return None
        tokens = self._tokens(self._rest(closed, sampled) + whole[len(closed) :])
        # Without a mark of its own, a turn ends with the one that opens the next.
        again = not self._turn.end and len(sampled) and self._opens(tokens, int(sampled[-1]))
        return tokens[1:] if again else tokens

    def _opens(self, tokens: np.ndarray, mark: int) -> bool:
        return bool(len(tokens)) and int(tokens[0]) == mark and mark in self._tokenizer.added_tokens_decoder

    def _rest(self, closed: str, sampled: np.ndarray) -> str:
        """What the template writes behind an answer, less what was sampled of it."""
        if not self._turn.end:
            return self._turn.rest
        after = closed.rpartition(self._turn.end)[2]
        ended = len(sampled) and int(sampled[-1]) in self._stops
        return after if ended else self._turn.end + after

    def _render(self, messages: Sequence[Message], tools: Tools, *, opened: bool) -> str:
        return render(self._tokenizer, list(messages), opened=opened, tools=tools)

    def _tokens(self, text: str) -> np.ndarray:
        return tokenize(self._tokenizer, text, special=False)


def _squeezed(text: str) -> str:
    """The text without blanks, of which templates add and drop some."""
    return "".join(text.split())

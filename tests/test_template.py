"""Arguments of a chat template reach it wherever it is rendered: as transformers' own keyword arguments do."""

from __future__ import annotations

from typing import Any

import pytest
from tiny_models import tiny_tokenizer
from transformers import PreTrainedTokenizerFast

from yatt.data.template import with_arguments
from yatt.data.turns import Turn, render
from yatt.errors import ConfigError

TEMPLATE = (
    "\n{%- for message in messages %}<{{ message.role }}>{{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>"
    "{% if enable_thinking is defined and not enable_thinking %}[]{% endif %}"
    "{{ style | default('plain') }}{{ words | default([]) | join('-') }}{% endif %}"
)
TALK = [{"role": "user", "content": "1+1="}]


def tokenizer(template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    made = tiny_tokenizer()
    made.chat_template = template
    return made


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"enable_thinking": False},
        {"enable_thinking": True},
        {"enable_thinking": None, "style": 'it\'s "so"\n{{ 1 }} \u00e9'},
        {"words": ["a", "b"], "style": ""},
    ],
)
def test_they_are_those_of_transformers(arguments: dict[str, Any]) -> None:
    expected = tokenizer().apply_chat_template(TALK, tokenize=False, add_generation_prompt=True, **arguments)
    assert render(with_arguments(tokenizer(), arguments), TALK, opened=True) == expected


def test_the_end_of_a_turn_stays() -> None:
    assert Turn(with_arguments(tokenizer(), {"enable_thinking": False})).rest == Turn(tokenizer()).rest == "\n"


@pytest.mark.parametrize(
    ("template", "arguments", "message"),
    [
        (TEMPLATE, {"enable_thought": False}, "knows no 'enable_thought' (did you mean 'enable_thinking'?); leave it"),
        (TEMPLATE, {"messages": []}, "messages is not the settings' to say; leave it out"),
        (None, {"enable_thinking": False}, "the tokenizer has no chat template that takes them; unset it"),
    ],
)
def test_what_no_template_would_read_is_refused(template: str | None, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        with_arguments(tokenizer(template), arguments)
    assert str(error.value).startswith("data.template_arguments") and message in str(error.value)

"""Arguments of a chat template that the settings give, such as Qwen3's `enable_thinking`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedTokenizerFast

from yatt.errors import ConfigError
from yatt.user_functions import nearest

SETTING = "data.template_arguments"
OF_OTHERS = ("messages", "tools", "documents", "add_generation_prompt")
"""Names that a template is given by whoever renders it."""


def with_arguments(tokenizer: PreTrainedTokenizerFast, arguments: Mapping[str, Any]) -> PreTrainedTokenizerFast:
    """The tokenizer, whose chat template has these arguments wherever it is rendered. Raises ConfigError where it has
    no template, or one that does not know them."""
    if not arguments:
        return tokenizer
    template = tokenizer.chat_template
    if not isinstance(template, str):
        raise ConfigError(f"{SETTING}={dict(arguments)}: the tokenizer has no chat template that takes them; unset it")
    words = set(re.findall(r"[A-Za-z_]\w*", template))
    for name in arguments:
        if name in OF_OTHERS:
            raise ConfigError(f"{SETTING}: {name} is not the settings' to say; leave it out")
        if name not in words:
            raise ConfigError(
                f"{SETTING}: the chat template knows no {name!r}{nearest(name, words)}; leave it out, or mend the name"
            )
    given = "".join(f"{{% set {name} = {value!r} %}}" for name, value in arguments.items())
    tokenizer.chat_template = given + "{{ '' }}" + template  # a line that follows a tag would be lost
    return tokenizer

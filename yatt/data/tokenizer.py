"""The tokenizer of a model folder."""

from __future__ import annotations

from transformers import AutoTokenizer, PreTrainedTokenizerFast

from yatt.errors import ConfigError


def load_tokenizer(path: str, setting: str = "model.path") -> PreTrainedTokenizerFast:
    """The fast tokenizer of a Hugging Face folder. Raises ConfigError where it is missing or has no eos_token."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    except Exception as error:  # transformers raises whatever its parts raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"{setting}={path!r}: its tokenizer cannot be loaded: {reason}") from None
    if not tokenizer.is_fast:
        raise ConfigError(f"{setting}={path!r} has no fast tokenizer; add its tokenizer.json")
    if tokenizer.eos_token_id is None:
        raise ConfigError(f"{setting}={path!r}: the tokenizer has no eos_token; name one in tokenizer_config.json")
    return tokenizer

"""Which tokens stand for images in a model's prompts, read from its config.json."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from yatt.config.weight_files import read_json
from yatt.errors import ConfigError


class ImageTokens(NamedTuple):
    """`image` is one token of an image; `start` and `end` stand around its tokens."""

    start: int
    image: int
    end: int


def image_tokens(path: str, setting: str = "model.path") -> ImageTokens | None:
    """Those of the model in this folder; None where it has no vision tower, or no config.json. Raises ConfigError where
    it has a tower and does not name them."""
    if not (Path(path) / "config.json").is_file():
        return None
    config = read_json(Path(path) / "config.json", setting)
    if not isinstance(config.get("vision_config"), dict):
        return None
    names = [f"{name}_token_id" for name in ("vision_start", "image", "vision_end")]
    wrong = [name for name in names if type(config.get(name)) is not int]
    if wrong:
        raise ConfigError(f"{setting}={path}: its config.json names no token under {', '.join(wrong)}")
    return ImageTokens(*(config[name] for name in names))

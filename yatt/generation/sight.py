"""Whether a model folder's model sees, and with what. Torch-free."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def model_config(folder: str) -> dict[str, Any]:
    """The config.json of a folder, with the fields of its language model at the top."""
    config: dict[str, Any] = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    return config.get("text_config", {}) | config


def sees(folder: str) -> bool:
    """Whether the model has a vision tower."""
    return "vision_config" in model_config(folder)

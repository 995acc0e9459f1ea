"""YATT: an RLHF trainer with parallel controllers and placement that follows the load.

    import yatt

    run = yatt.train(model="DIR", data="train.jsonl", reward=reward, steps=20)

Names of `yatt.api` are imported when they are first used.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_API = ("Run", "configure", "evaluate", "plan", "save_config", "train")
_OTHERS = {
    "Config": "yatt.config.schema",
    "ConfigError": "yatt.errors",
    "YattError": "yatt.errors",
}
__all__ = ["__version__", *_API, *_OTHERS]


def __getattr__(name: str) -> Any:
    module = "yatt.api" if name in _API else _OTHERS.get(name)
    if module is None:
        raise AttributeError(f"module 'yatt' has no attribute {name!r}")
    return getattr(importlib.import_module(module), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

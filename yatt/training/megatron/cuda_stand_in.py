"""Takes the place of `torch.cuda` inside megatron.core on a machine without CUDA: the CPU, seen as device 0.

Only code rewritten by `yatt.training.megatron.cpu` sees this module; `torch.cuda` itself stays untouched. Names not
defined here are those of `torch.cuda`.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch


def __getattr__(name: str) -> Any:
    return getattr(torch.cuda, name)


def _nothing(*args: object, **options: object) -> None: ...


def device(*args: object, **options: object) -> nullcontext[None]:
    return nullcontext()


def current_device() -> torch.device:
    return torch.device("cpu")


def get_rng_state(device: object = None) -> torch.Tensor:
    return torch.get_rng_state()


def set_rng_state(state: torch.Tensor, device: object = None) -> None:
    torch.set_rng_state(state)


def _lazy_call(callback: Callable[[], None], **options: object) -> None:
    callback()


class Stream:
    """A stream or an event of a device that works in order: waiting for it is already over."""

    def __init__(self, *args: object, **options: object) -> None: ...

    def __getattr__(self, name: str) -> Callable[..., Stream]:
        return lambda *args, **options: self


Event = current_stream = Stream
stream = device
default_generators: dict[int, torch.Generator] = defaultdict(lambda: torch.default_generator)
manual_seed = torch.manual_seed
random = sys.modules[__name__]
set_device = synchronize = empty_cache = _lazy_init = _nothing

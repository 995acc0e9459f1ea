"""What `torch.cuda` means inside megatron.core on a machine without CUDA: the CPU, seen as device 0.

Only code rewritten by `yatt.training.megatron.cpu` sees this module; `torch.cuda` itself stays untouched. Names not
defined here are those of `torch.cuda`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch

CPU = torch.device("cpu")


def __getattr__(name: str) -> Any:
    return getattr(torch.cuda, name)


class Stream:
    """A stream or an event of a device that works in order: waiting for it is already over."""

    def __init__(self, *args: object, **options: object) -> None: ...

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *error: object) -> None: ...

    def __getattr__(self, name: str) -> Callable[..., Stream]:
        return lambda *args, **options: self

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stream)

    def __hash__(self) -> int:
        return 0


class _Generators:
    def __getitem__(self, index: int) -> torch.Generator:
        return torch.default_generator


def _nothing(*args: object, **options: object) -> None: ...


def _zero(*args: object, **options: object) -> int:
    return 0


def _no_context(*args: object, **options: object) -> nullcontext[None]:
    return nullcontext()


def _the_stream(*args: object, **options: object) -> Stream:
    return Stream()


def current_device() -> torch.device:
    return CPU


def device_count() -> int:
    return 1


def get_rng_state(device: object = None) -> torch.Tensor:
    return torch.get_rng_state()


def set_rng_state(state: torch.Tensor, device: object = None) -> None:
    torch.set_rng_state(state)


def _lazy_call(callback: Callable[[], None], **options: object) -> None:
    callback()


Event = Stream
FloatTensor, HalfTensor, BFloat16Tensor = torch.FloatTensor, torch.HalfTensor, torch.BFloat16Tensor
default_generators = _Generators()
manual_seed = torch.manual_seed
random = sys.modules[__name__]
set_device = synchronize = empty_cache = _lazy_init = _nothing
device = stream = _no_context
current_stream = default_stream = _the_stream
memory_allocated = max_memory_allocated = memory_reserved = max_memory_reserved = _zero

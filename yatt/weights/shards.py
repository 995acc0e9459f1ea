"""Weights as the safetensors files of a Hugging Face folder, written from a stream."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import save_file

from yatt.config.weight_files import INDEX, WHOLE

SHARD_BYTES = 2 << 30
MODE = 0o644
"""Of every file: safetensors makes files that only their owner can read."""


def write_shards(folder: Path, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Write a stream of (Hugging Face name, tensor) into files of at most SHARD_BYTES, or of one tensor. Holds one
    file's tensors in memory.

    One file is `model.safetensors`; several have an index. No file has its final name before all are complete.
    """
    parts: list[list[str]] = []
    shard: dict[str, torch.Tensor] = {}
    size = total = 0

    def flush() -> None:
        save_file(shard, folder / _partial(len(parts)), metadata={"format": "pt"})
        parts.append(list(shard))
        shard.clear()

    try:
        for name, tensor in tensors:
            if shard and size + tensor.nbytes > SHARD_BYTES:
                flush()
                size = 0
            # A copy, since a stream may reuse its tensor and safetensors refuses tensors that share memory.
            shard[name] = tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
            size, total = size + tensor.nbytes, total + tensor.nbytes
        flush()
        _name(folder, parts, total)
    except BaseException:
        for number in range(len(parts) + 1):
            (folder / _partial(number)).unlink(missing_ok=True)
        raise


def _name(folder: Path, parts: list[list[str]], total: int) -> None:
    """Give complete files their names, and the index last: until it is there, nobody looks for them."""
    (folder / INDEX).unlink(missing_ok=True)
    weight_map: dict[str, str] = {}
    for number, names in enumerate(parts):
        file = WHOLE if len(parts) == 1 else f"model-{number + 1:05d}-of-{len(parts):05d}.safetensors"
        (folder / _partial(number)).chmod(MODE)
        (folder / _partial(number)).replace(folder / file)
        weight_map |= dict.fromkeys(names, file)
    if len(parts) > 1:
        aside = folder / f"{INDEX}.partial"
        aside.write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2) + "\n")
        aside.chmod(MODE)
        aside.replace(folder / INDEX)
        (folder / WHOLE).unlink(missing_ok=True)  # an older model, which would be read in place of the index


def _partial(number: int) -> str:
    return f"model-{number + 1:05d}.safetensors.partial"

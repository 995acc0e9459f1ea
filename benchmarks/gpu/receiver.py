"""The other process of the weights part: it takes a buffer where it lies, sums it up and copies it on the device."""

from __future__ import annotations

from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.device import open_device, seconds

CHUNK = 1 << 24


def checksum(flat: Tensor) -> int:
    """Of bytes [N], N a multiple of 8, as numbers of 64 bits: the sum of (2 i + 1) times number i, modulo 2^64. A
    number that changes, or two that change places, change it."""
    numbers, total = flat.view(torch.int64), torch.zeros((), dtype=torch.int64, device=flat.device)
    for start in range(0, len(numbers), CHUNK):
        part = numbers[start : start + CHUNK]
        weights = torch.arange(start, start + len(part), dtype=torch.int64, device=flat.device).mul_(2).add_(1)
        total += weights.mul_(part).sum()
    return int(total) % 2**64


def receive(pipe: Connection, kind: str, entries: list[tuple[str, tuple[int, ...], int, int]]) -> None:
    """Answer for each buffer that comes, until None does. `entries`: dtype, shape, first byte and bytes of each tensor,
    of which this process has its own."""
    try:
        device = open_device(kind)
        own = [torch.empty(shape, dtype=getattr(torch, dtype), device=device.torch) for dtype, shape, _, _ in entries]
        pipe.send({"ready": True})
        while (flat := pipe.recv()) is not None:
            pipe.send(_take(device, flat, own, entries))
            del flat
    except Exception as error:
        pipe.send({"error": f"{type(error).__name__}: {error}"})


def _take(device: Any, flat: Tensor, own: list[Tensor], entries: list[Any]) -> dict[str, Any]:
    def load() -> None:
        for tensor, (_, _, start, size) in zip(own, entries, strict=True):
            tensor.copy_(flat[start : start + size].view(tensor.dtype).view(tensor.shape))

    load()
    taken = seconds(device, load)
    found = checksum(flat)
    summing = seconds(device, lambda: checksum(flat))
    return {"load": taken, "checksum": found, "summing": summing}

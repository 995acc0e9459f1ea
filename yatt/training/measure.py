"""Sums over a step's micro-batches and ranks."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from yatt.training.layout import Layout


class Measurements:
    """Sums by name, on this rank's device until the step ends. Every rank has the same names, whether or not it has
    micro-batches."""

    def __init__(self, layout: Layout, names: Sequence[str]) -> None:
        self._layout, self._places = layout, {name: place for place, name in enumerate(names)}
        self._sums = torch.zeros(len(names), dtype=torch.float64, device=layout.device)
        self._gap_max = torch.zeros((), dtype=torch.float64, device=layout.device)
        self.seconds: dict[str, float] = {}

    def add(self, **values: Tensor | float) -> None:
        for name, value in values.items():
            self._sums[self._places[name]] += value.detach() if isinstance(value, Tensor) else value

    def gap(self, largest: Tensor) -> None:
        """The largest difference of log-probabilities seen."""
        self._gap_max = torch.maximum(self._gap_max, largest.double())

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        if self._layout.device.type == "cuda":
            torch.cuda.synchronize(self._layout.device)
        self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - start

    def total(self) -> dict[str, float]:
        """The sums over all replicas, and `gap_max`: on every rank alike. Collective over all ranks."""
        if not (self._layout.last_stage and self._layout.tp.rank() == 0):
            self._sums.zero_()
            self._gap_max.zero_()
        dist.all_reduce(self._sums)
        dist.all_reduce(self._gap_max, op=dist.ReduceOp.MAX)
        return dict(zip(self._places, self._sums.tolist(), strict=True)) | {"gap_max": self._gap_max.item()}

"""Fast: kernels of attention against each other, and a whole update against transformers, in turns in one process."""

from __future__ import annotations

import importlib.util
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.gpu import models, sides
from benchmarks.gpu.device import copy_rate, matrix_rate, median, seconds
from benchmarks.gpu.part import Bench, Section
from benchmarks.gpu.right import unable
from yatt.simulation.costs import DEVICES
from yatt.training.attention import packed_attention, packing
from yatt.training.layout import Layout
from yatt.types import Sample

HEADS = {"0.5B": (14, 2, 64), "7B": (28, 4, 128), "toy": (4, 2, 16)}
"""Attention heads, key/value heads, size of a head."""
ROOM = 0.8
"""Share of the device's memory that is counted on."""
OURS, THEIRS = 18, 8
"""Bytes of a weight with its gradient and AdamW's state: bfloat16 with float32 beside it; all in bfloat16."""


def sections(bench: Bench) -> Iterator[Section]:
    ceilings: dict[str, float] = {}
    yield "ceilings", partial(_ceilings, bench, ceilings)
    sizes = [300] if bench.toy else [8192] if bench.quick else [8192, 32768]
    heads = ["toy"] if bench.toy else ["0.5B"] if bench.quick else ["0.5B", "7B"]
    shapes = ["toy"] if bench.toy else ["0.5B"] if bench.quick else ["0.5B", "1.5B", "7B"]
    cases = [(name, tokens) for name in heads for tokens in sizes]
    yield from _attention(bench, ("varlen", "buckets"), cases, ceilings)
    with TemporaryDirectory() as folder:
        first = models.write_shape(Path(folder) / "first", models.SHAPES["toy"])
        with sides.joined(sides.config(first, "bfloat16", tokens=4096)) as layout:
            for name in shapes:
                for tokens in sizes:
                    work = Work(bench, layout, Path(folder), name, tokens, ceilings)
                    yield f"updates of {name}, {tokens} tokens", work.run
    # The last one, since it is compiled for each kind of head.
    yield from _attention(bench, ("flex",), cases, ceilings)


def _attention(
    bench: Bench, kernels: tuple[str, ...], cases: list[tuple[str, int]], ceilings: dict[str, float]
) -> Iterator[Section]:
    for name, tokens in cases:
        for kernel in kernels:
            yield f"{kernel}, {name} heads, {tokens} tokens", partial(_kernel, bench, name, kernel, tokens, ceilings)


def lengths_of(tokens: int, seed: int) -> list[int]:
    """Lognormal, a half of them under 512 tokens."""
    return models.lognormal(tokens, seed, median=min(512, tokens / 4), sigma=0.9, most=min(4096, tokens))


def _ceilings(bench: Bench, found: dict[str, float]) -> None:
    """What the device does at best, measured and by its data sheet; shares of the peak are of the latter, where it is
    known."""
    size, count = (256, 1 << 22) if bench.toy else (8192, 1 << 32)
    found["measured"] = matrix_rate(bench.device, size, torch.bfloat16)
    known = bench.device.data_sheet()
    found["peak"] = DEVICES[known].flops if known else found["measured"]
    copied = copy_rate(bench.device, count)
    sheet = {"sheet": known or "unknown", "sheet_tflops": DEVICES[known].flops / 1e12 if known else None}
    bench.row("ceilings", bf16_tflops=found["measured"] / 1e12, copy_gb_s=copied / 1e9, **sheet)


def _kernel(bench: Bench, name: str, kernel: Any, tokens: int, ceilings: dict[str, float]) -> None:
    """Forward and backward in bfloat16; on a CPU flex attention has no backward pass."""
    heads, groups, size = HEADS[name]
    case = {"heads": name, "tokens": tokens, "kernel": kernel}
    if (why := unable(bench.device, kernel, None)) is not None:
        bench.row("attention not run", **case, why=why)
        return
    lengths, device = lengths_of(tokens, 5), bench.device.torch
    backward = not (kernel == "flex" and bench.toy)
    parts = [
        torch.randn(tokens, n, size, device=device, dtype=torch.bfloat16, requires_grad=backward)
        for n in (heads, groups, groups)
    ]
    upstream = torch.randn(tokens, heads * size, device=device, dtype=torch.bfloat16)
    shape = packing(lengths, device)

    def both() -> None:
        output = packed_attention(*parts, shape, kernel=kernel)
        if backward:
            torch.autograd.grad(output, parts, upstream)

    taken = median(bench.device, both, 1 if bench.toy else 10)
    flops = (6 if backward else 2) * heads * size * sum(n * n for n in lengths)
    share = flops / taken / ceilings["peak"]
    bench.row("attention", **case, ms=taken * 1e3, tflops=flops / taken / 1e12, of_peak=share)


@dataclass
class Side:
    """One of those that take turns."""

    update: Callable[[], object]
    held: int
    """Bytes that it has between updates."""
    taken: list[float] = field(default_factory=list)
    peak: int = 0
    failed: str | None = None


@dataclass
class Work:
    """Updates of a shape on so many tokens."""

    bench: Bench
    layout: Layout
    folder: Path
    name: str
    tokens: int
    ceilings: dict[str, float]

    def run(self) -> None:
        lengths = lengths_of(self.tokens, 7)
        layers, recompute = self._fit()
        path = models.write_shape(self.folder / self.name, models.SHAPES[self.name], num_hidden_layers=layers)
        facts = models.facts(path)
        batch = models.samples(lengths, facts.vocab_size, 7)
        case = {"shape": self.name, "layers": f"{layers}/{models.SHAPES[self.name]['num_hidden_layers']}"}
        case |= {"tokens": self.tokens, "sequences": len(batch), "recompute": recompute}
        opened = self._sides(path, recompute, batch, case)
        self._take_turns(opened)
        self._tell(opened, case, models.update_flops(facts, lengths))

    def _fit(self) -> tuple[int, str]:
        """As many layers as both sides have room for, and whether they must be computed twice. What transformers needs
        for its logits in float32 it may not find: its row says so."""
        shape, capacity = models.SHAPES[self.name], self.bench.device.capacity() * ROOM
        for layers in range(shape["num_hidden_layers"], 0, -1):
            path = models.write_shape(self.folder / "fitted", shape, num_hidden_layers=layers)
            facts = models.facts(path)
            kept = (OURS + THEIRS) * facts.parameters + 4.0 * self.tokens * facts.vocab_size
            if kept + models.activations(facts, self.tokens, "full") <= capacity:
                wide = (
                    kept + 10.0 * self.tokens * facts.vocab_size + 1.3 * models.activations(facts, self.tokens, "none")
                )
                return layers, "none" if wide <= capacity else "full"
        raise RuntimeError(f"{capacity / 1e9:.0f} GB hold no layer of {self.name}")

    def _sides(self, path: str, recompute: str, batch: list[Sample], case: dict[str, Any]) -> dict[str, Side]:
        """Both, with the same weights: what they think of some sequences says so."""
        device = self.bench.device
        settings = sides.config(path, "bfloat16", tokens=self.tokens, recompute=recompute)
        before = device.allocated()
        training = sides.open_yatt(settings, self.layout)
        ours, before = device.allocated() - before, device.allocated()
        attention = "flash_attention_2" if importlib.util.find_spec("flash_attn") else "sdpa"
        plain = sides.Plain(path, device.torch, torch.bfloat16, attention, packed=False, recompute=recompute)
        theirs = 3 * (device.allocated() - before)  # with two moments of the same size; gradients come and go
        mine, other = sides.logprobs(training, batch[:4]), plain.logprobs(batch[:4])
        apart = float((mine - other).square().mean().sqrt())
        self.bench.row("same", **case, attention=attention, logprobs_apart=apart, ok=apart < 0.1)
        parts = sides.padded(batch, self.tokens)

        def transformers(packed: bool) -> None:
            plain.packed = packed
            plain.update([batch] if packed else parts)

        return {
            "yatt": Side(partial(training.update, models.share(batch)), ours),
            "transformers, padded": Side(partial(transformers, False), theirs),
            "transformers, packed": Side(partial(transformers, True), theirs),
        }

    def _take_turns(self, opened: dict[str, Side]) -> None:
        """Rounds in which each is timed once, after one that is not counted. One that runs out of memory is out."""
        device = self.bench.device
        for number in range(2 if self.bench.toy else 4 if self.bench.quick or self.tokens > 8192 else 6):
            for side in [side for side in opened.values() if side.failed is None]:
                device.reset_peak()
                before = device.allocated()
                try:
                    taken = seconds(device, side.update)
                except torch.OutOfMemoryError as error:
                    side.failed = str(error).partition(".")[0]
                if side.failed is not None:
                    device.free()
                    continue
                if number:
                    side.peak = max(side.peak, side.held + device.peak() - before)
                    side.taken.append(taken)

    def _tell(self, opened: dict[str, Side], case: dict[str, Any], flops: float) -> None:
        ours = opened["yatt"].taken
        for name, side in opened.items():
            if side.failed is not None:
                self.bench.row("updates not done", **case, side=name, why=side.failed)
                continue
            middle = statistics.median(side.taken)
            ratios = [a / b for a, b in zip(side.taken, ours, strict=False)]
            speed = {
                "ms": middle * 1e3,
                "tokens_per_s": self.tokens / middle,
                "mfu": flops / middle / self.ceilings["peak"],
            }
            time = statistics.median(ratios) if ratios else None
            self.bench.row("updates", **case, side=name, **speed, peak_gb=side.peak / 1e9, time_over_yatt=time)

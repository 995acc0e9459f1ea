"""Lean: memory of log-probabilities over a large vocabulary, of an update against the estimate that refuses plans, and
how fast a model leaves the device and comes back."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from benchmarks.gpu import models, sides
from benchmarks.gpu.device import median, seconds
from benchmarks.gpu.part import Bench, Section
from yatt.placement.cost import needs
from yatt.placement.plan import POLICY, TRAINER
from yatt.training.batch import pack, token_logprobs
from yatt.training.layout import Layout

VOCABULARY = 151936
NEAR = 0.15
"""How far an estimate of memory may be off."""


def sections(bench: Bench) -> Iterator[Section]:
    with TemporaryDirectory() as folder:
        first = models.write_shape(Path(folder) / "first", models.SHAPES["toy"])
        with sides.joined(sides.config(first, "bfloat16", tokens=4096)) as layout:
            for tokens in [64] if bench.toy else [8192]:
                for way in ("by rows", "whole"):
                    yield f"log-probabilities {way}", partial(_logprobs, bench, layout, way, tokens)
            yield "host link", partial(_link, bench)
            name = "toy" if bench.toy else "0.5B" if bench.quick else "1.5B"
            yield f"putting {name} away", partial(_away, bench, layout, Path(folder), name)
            for name, recompute in [("toy", "full")] if bench.toy else [("0.5B", "none"), ("0.5B", "full")]:
                yield f"memory of {name}", partial(_memory, bench, layout, Path(folder), name, recompute)
            if not bench.toy and not bench.quick:
                yield "memory of 1.5B", partial(_memory, bench, layout, Path(folder), "1.5B", "full")


def whole(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities [T] of the targets and entropies [T], as one writes it first."""
    every = logits.float().log_softmax(-1)
    return every.gather(1, targets[:, None])[:, 0], -(every.exp() * every).sum(-1)


def _logprobs(bench: Bench, layout: Layout, way: str, tokens: int) -> None:
    """Forward and backward: the time, and the most memory beside the logits and their gradient."""
    device, vocabulary = bench.device, 1000 if bench.toy else VOCABULARY
    batch = models.samples([tokens], vocabulary, 9)
    micro = pack(batch, models.denominator(batch), device.torch, 1).batch
    random = torch.Generator(device.torch).manual_seed(9)
    logits = torch.randn(tokens, vocabulary, generator=random, device=device.torch).mul_(3).bfloat16().requires_grad_()

    def both() -> Tensor:
        if way == "whole":
            chosen, entropy = whole(logits, torch.roll(micro.tokens, -1))
            chosen, entropy = chosen[:-1], entropy[:-1]
        else:
            chosen, entropy = (column[1:] for column in token_logprobs(logits[None], micro, 1.0, layout.tp))
        (gradient,) = torch.autograd.grad((chosen - 0.01 * entropy).sum(), logits)
        return gradient

    taken = median(device, both, 1 if bench.toy else 5)
    device.free()
    device.reset_peak()
    before = device.allocated()
    gradient = both()
    device.synchronize()
    beside = device.peak() - before - gradient.nbytes
    sums = float(gradient.float().square().sum())
    named = {"way": way, "tokens": tokens, "vocabulary": vocabulary}
    bench.row("logprobs", **named, ms=taken * 1e3, logits_gb=logits.nbytes / 1e9, beside_gb=beside / 1e9, squares=sums)


def _link(bench: Bench) -> None:
    """What a copy to the host and back can be, from memory that the device reads by itself and from other."""
    count = 1 << 20 if bench.toy else 1 << 30
    here = torch.zeros(count, dtype=torch.uint8, device=bench.device.torch)
    for kind, host in (("pinned", bench.device.pinned(count)), ("pageable", torch.zeros(count, dtype=torch.uint8))):
        away = count / median(bench.device, partial(host.copy_, here), 3)
        back = count / median(bench.device, partial(here.copy_, host), 3)
        bench.row("host link", memory=kind, away_gb_s=away / 1e9, back_gb_s=back / 1e9)


def _away(bench: Bench, layout: Layout, folder: Path, name: str) -> None:
    """A policy with its optimizer: what it was before it is again, and nothing of it is left meanwhile."""
    path = models.write_shape(folder / f"away-{name}", models.SHAPES[name])
    training = sides.open_yatt(sides.config(path, "bfloat16", tokens=4096), layout)
    shelf = training.policy.shelf
    batch = models.samples([300, 200], models.facts(path).vocab_size, 4)
    training.update(models.share(batch))
    known = sides.logprobs(training, batch)
    for cycle in range(2):
        before, moved = bench.device.allocated(), list[int]()
        away = seconds(bench.device, lambda: moved.append(shelf.put_away()))  # noqa: B023 (called at once)
        left = before - bench.device.allocated()
        back = seconds(bench.device, shelf.take_back)
        rates = {"gb": moved[0] / 1e9, "freed_gb": left / 1e9}
        rates |= {"away_gb_s": moved[0] / away / 1e9, "back_gb_s": moved[0] / back / 1e9}
        same = bool(torch.equal(known, sides.logprobs(training, batch)))
        bench.row("put away", shape=name, cycle=cycle + 1, **rates, ok=same)


def _memory(bench: Bench, layout: Layout, folder: Path, name: str, recompute: str) -> None:
    """The most that two updates of a full micro-batch take, against the estimate, and what it leaves out."""
    device, tokens = bench.device, 128 if bench.toy else 8192
    path = models.write_shape(folder / f"memory-{name}", models.SHAPES[name])
    facts = models.facts(path)
    settings = sides.config(path, "bfloat16", tokens=tokens, recompute=recompute)
    lengths = models.lognormal(tokens, 11, median=min(512, tokens / 4), sigma=0.9, most=min(4096, tokens))
    batch = models.samples(lengths, facts.vocab_size, 11)
    device.free()
    device.reset_peak()
    before = device.allocated()
    training = sides.open_yatt(settings, layout)
    for _ in range(2):
        training.update(models.share(batch))
    device.synchronize()
    peak = device.peak() - before
    room = {"train_slots": 1, "capacity": float(device.capacity())}
    estimate = needs(settings, {POLICY: facts}, kind=device.kind, **room)[TRAINER].awake
    left_out = models.activations(facts, tokens, recompute)
    off = peak / (estimate + left_out)
    sizes = {"estimate_gb": estimate / 1e9, "activations_gb": left_out / 1e9, "peak_gb": peak / 1e9}
    named = {"shape": name, "tokens": tokens, "recompute": recompute}
    held = None if bench.toy else abs(off - 1) <= NEAR
    bench.row("memory", **named, **sizes, peak_over_both=off, peak_over_estimate=peak / estimate, ok=held)

"""Right: a rank on this device against transformers on the same, and each kernel of attention against plain attention.

In float32 both must agree to round-off. In bfloat16 a rank may be as far from transformers in float32 as transformers
in bfloat16 is, and half as far again.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu import models, sides
from benchmarks.gpu.device import Device
from benchmarks.gpu.part import Bench, Section
from yatt.training.attention import packed_attention, packing
from yatt.training.layout import Layout
from yatt.types import Sample

WITHIN, SLACK = 1e-4, 1.5
BACKENDS = {"fsdp": "yatt.training.fsdp"}
"""Beside Megatron's."""
UPDATES = 3
COMMON = {"max_position_embeddings": 4096, "rms_norm_eps": 1e-6, "vocab_size": 1024, "num_attention_heads": 8}
COMMON |= {"num_key_value_heads": 2, "num_hidden_layers": 4, "hidden_size": 256, "intermediate_size": 512}
TOY = {"vocab_size": 96, "num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen3": {"architectures": ["Qwen3ForCausalLM"], "head_dim": 64, "tie_word_embeddings": True},
    "mistral": {"architectures": ["MistralForCausalLM"], "head_dim": 32, "sliding_window": 100},
    "gemma2": {
        "architectures": ["Gemma2ForCausalLM"],
        "head_dim": 32,
        "sliding_window": 100,
        "query_pre_attn_scalar": 24,
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 8.0,
        "hidden_activation": "gelu_pytorch_tanh",
    },
}
"""One with norms of q and k, one with windows, one with windows and bounded scores."""


@dataclass(frozen=True)
class Run:
    """What three updates of one side were."""

    before: Tensor
    after: Tensor
    losses: Tensor
    norms: Tensor


def sections(bench: Bench) -> Iterator[Section]:
    for name, where in BACKENDS.items():
        built = importlib.util.find_spec(where) is not None
        bench.row("backends", backend=name, state="built, not compared here yet" if built else "not built")
    with TemporaryDirectory() as folder:
        families = ["gemma2"] if bench.toy else ["qwen3", "gemma2"] if bench.quick else list(FAMILIES)
        first = write_family(Path(folder) / "first", families[0], bench.toy)
        with sides.joined(sides.config(first, "float32", tokens=4096)) as layout:
            for name in families:
                path = write_family(Path(folder) / name, name, bench.toy)
                yield f"{name} against transformers", partial(_family, bench, layout, name, path)
    for kernel in ("buckets", "varlen", "flex"):
        yield f"attention by {kernel}", partial(_kernel, bench, kernel)


def write_family(folder: Path, name: str, toy: bool) -> str:
    own = {"model_type": name, **COMMON, **(TOY if toy else {}), **FAMILIES[name]}
    return models.write_shape(folder, own | ({"head_dim": 16, "sliding_window": 20} if toy else {}))


def _family(bench: Bench, layout: Layout, name: str, path: str) -> None:
    total, most = (60, 30) if bench.toy else (3000, 700)
    lengths = models.lognormal(total, 1, median=most / 4, sigma=0.9, most=most)
    batch = models.samples(lengths, models.facts(path).vocab_size, 1)
    micro_batches = [batch[::2], batch[1::2]]
    exact = _plain(bench, path, torch.float32, batch, micro_batches)
    rough = _plain(bench, path, torch.bfloat16, batch, micro_batches)
    for dtype in ("float32", "bfloat16"):
        for recompute in ("none", "full"):
            if bench.toy and (dtype, recompute) == ("bfloat16", "none"):
                continue
            settings = sides.config(path, dtype, tokens=4096, recompute=recompute)
            ours = _ours(settings, layout, batch, micro_batches)
            _compare(bench, {"family": name, "dtype": dtype, "recompute": recompute}, ours, exact, rough)
            bench.device.free()


def _plain(bench: Bench, path: str, dtype: torch.dtype, batch: list[Sample], micro_batches: list[list[Sample]]) -> Run:
    side = sides.Plain(path, bench.device.torch, dtype, "eager", packed=False, recompute="none")
    before = side.logprobs(batch)
    numbers = [side.update([[s] for micro in micro_batches for s in micro]) for _ in range(UPDATES)]
    losses, norms = torch.tensor(numbers, dtype=torch.float64).unbind(1)
    return Run(before, side.logprobs(batch), losses, norms)


def _ours(settings: Any, layout: Layout, batch: list[Sample], micro_batches: list[list[Sample]]) -> Run:
    training = sides.open_yatt(settings, layout)
    before = sides.logprobs(training, batch)
    reports = [training.update(models.share(*micro_batches)) for _ in range(UPDATES)]
    losses, norms = (
        torch.tensor([getattr(r, name) for r in reports], dtype=torch.float64) for name in ("loss", "grad_norm")
    )
    return Run(before, sides.logprobs(training, batch), losses, norms)


def _compare(bench: Bench, case: dict[str, Any], ours: Run, exact: Run, rough: Run) -> None:
    """Log-probabilities before and after the updates, the losses, and the norms relative to their size."""
    for what in ("before", "after", "losses", "norms"):
        sides_ = [getattr(run, what) for run in (ours, exact, rough)]
        if what == "norms":
            sides_ = [side / sides_[1] for side in sides_]
        mine, true, theirs = sides_
        if case["dtype"] == "float32":
            distance, bound = float((mine - true).abs().max()), WITHIN
        else:
            distance, bound = _rms(mine - true), SLACK * _rms(theirs - true)
            if what in ("losses", "norms"):  # three numbers, which transformers may hit by chance
                bound = max(bound, 2**-8)
        bench.row("parity", **case, of=what, distance=distance, bound=bound, ok=distance <= bound)


def _rms(x: Tensor) -> float:
    return float(x.double().square().mean().sqrt())


def _kernel(bench: Bench, kernel: Any) -> None:
    """Its output and gradients in bfloat16, relative to plain attention's in float32; NaN passes no bound."""
    total, most = (200, 90) if bench.toy else (3000, 1500)
    lengths = models.lognormal(total, 2, median=most / 5, sigma=1.0, most=most)
    # Flex attention is compiled for each kind of head, for windows and for bounds.
    for head_dim in (16,) if bench.toy else (64,) if kernel == "flex" else (64, 128):
        shapes = ((None, None), (most // 10, None), (None, 5.0), (most // 10, 5.0))
        for window, cap in shapes[-1:] if bench.toy and kernel == "flex" else shapes:
            case = {"kernel": kernel, "head_dim": head_dim, "window": window, "soft_cap": cap}
            if (why := unable(bench.device, kernel, cap)) is not None:
                bench.row("kernels not run", **case, why=why)
                continue
            errors = _errors(bench, kernel, lengths, head_dim, window, cap)
            bench.row("kernels", **case, **errors, ok=all(error < 0.02 for error in errors.values()))


def unable(device: Device, kernel: str, cap: float | None) -> str | None:
    """Why a kernel is not run here."""
    if kernel == "varlen" and cap is not None:
        return "it cannot bound scores"
    if kernel == "varlen" and device.kind == "cpu":
        return "it is a GPU's"
    return None


def _errors(
    bench: Bench, kernel: Any, lengths: list[int], head_dim: int, window: int | None, cap: float | None
) -> dict[str, float]:
    """Root mean squares over those of the true ones. On a CPU torch's flex attention has no backward pass."""
    backward = not (kernel == "flex" and bench.toy)
    random = torch.Generator(bench.device.torch).manual_seed(3)
    total = sum(lengths)
    rough = [
        torch.randn(total, n, head_dim, generator=random, device=bench.device.torch).bfloat16().requires_grad_(backward)
        for n in (8, 2, 2)
    ]
    exact = [x.detach().float().requires_grad_(backward) for x in rough]
    upstream = torch.randn(total, 8 * head_dim, generator=random, device=bench.device.torch)
    shape = packing(lengths, bench.device.torch)
    ours = packed_attention(*rough, shape, window=window, soft_cap=cap, kernel=kernel)
    true = plain_attention(*exact, lengths, window, cap)
    pairs = {"output": (ours, true)}
    if backward:
        ours.backward(upstream.bfloat16())
        true.backward(upstream)
        names = ("d_query", "d_key", "d_value")
        pairs |= {n: (a.grad, b.grad) for n, a, b in zip(names, rough, exact, strict=True)}
    return {name: _rms((a - b).detach()) / _rms(b.detach()) for name, (a, b) in pairs.items()}


def plain_attention(
    query: Tensor, key: Tensor, value: Tensor, lengths: list[int], window: int | None, cap: float | None
) -> Tensor:
    """From the definition, a sequence at a time. Shapes as in `packed_attention`."""
    outputs = []
    for q, k, v in zip(*(x.split(lengths) for x in (query, key, value)), strict=True):
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q, k) * q.shape[-1] ** -0.5
        if cap is not None:
            scores = cap * torch.tanh(scores / cap)
        far = torch.arange(len(q), device=q.device)[:, None] - torch.arange(len(q), device=q.device)
        seen = (far >= 0) & (far < (window or len(q)))
        outputs.append(torch.einsum("hqk,khd->qhd", scores.masked_fill(~seen, -torch.inf).softmax(-1), v))
    return torch.cat(outputs).flatten(1)

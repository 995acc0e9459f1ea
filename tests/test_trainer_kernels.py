"""What differs on a GPU, held to what a CPU does: kernels of attention, recomputed layers, AdamW in one kernel, and
log-probabilities a few rows at a time."""

from __future__ import annotations

import inspect
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import create_block_mask

from tests.megatron_cases import config, make_samples, shares, worst
from tests.megatron_pool import free_port
from tests.tiny_models import save_tiny
from yatt.config.schema import Config
from yatt.training import batch, gpu_kernels, kernels
from yatt.training.attention import packed_attention, packing
from yatt.training.gpu_kernels import BLOCK, blocks
from yatt.training.kernels import Spans, choose
from yatt.training.megatron import optimizer
from yatt.training.megatron.backend import open_rank

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
LENGTHS = ([5, 130, 1, 260, 128, 40], [384], [1, 1, 1], [127, 1, 129])


def heads(lengths, seed=0):
    random = torch.Generator().manual_seed(seed)
    sizes = ((4, 8), (2, 8), (2, 8))
    return [torch.randn(sum(lengths), n, d, generator=random, dtype=torch.float64).requires_grad_() for n, d in sizes]


def forward_and_back(lengths, kernel, **shape):
    query, key, value = heads(lengths)
    output = packed_attention(query, key, value, packing(lengths, CPU), kernel=kernel, **shape)
    output.backward(torch.linspace(-1, 1, output.numel(), dtype=torch.float64).view_as(output))
    return [output.detach(), query.grad, key.grad, value.grad]


def close(ours, theirs, within=1e-10):
    return all(torch.allclose(a, b, atol=within) for a, b in zip(ours, theirs, strict=True))


def plainly(monkeypatch):
    """Let flex attention run on a CPU, backward too: torch has that, and refuses it, since it holds all scores."""
    module = "torch.nn.attention.flex_attention"
    monkeypatch.setattr(f"{module}._validate_device", lambda *tensors: None)
    monkeypatch.setattr(f"{module}._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)


@pytest.mark.parametrize("window", [None, 1, 100, 128, 200])
@pytest.mark.parametrize("lengths", LENGTHS)
def test_blocks_are_those_that_torch_finds_by_looking_at_every_pair(lengths, window):
    spans = Spans(lengths, CPU)
    total = sum(lengths)
    ours = blocks(lengths, window, spans.owners)
    theirs = create_block_mask(ours.mask_mod, None, None, total, total, device="cpu", BLOCK_SIZE=BLOCK)
    assert torch.equal(ours.to_dense(), theirs.to_dense())
    for name in ("kv", "full_kv", "q", "full_q"):
        counts, found = (getattr(mask, f"{name}_num_blocks")[0, 0] for mask in (ours, theirs))
        rows, expected = (getattr(mask, f"{name}_indices")[0, 0] for mask in (ours, theirs))
        if total % BLOCK == 0:  # what lies beyond the end, torch counts as masked
            assert torch.equal(counts, found)
            assert all(
                torch.equal(rows[i, :n].sort().values, expected[i, :n].sort().values) for i, n in enumerate(counts)
            )


@pytest.mark.parametrize("shape", [{}, {"window": 7}, {"window": 500}, {"soft_cap": 0.7, "window": 50, "scale": 0.3}])
@pytest.mark.parametrize("lengths", [LENGTHS[0], LENGTHS[3]])
def test_flex_attention_is_what_buckets_are(monkeypatch, lengths, shape):
    plainly(monkeypatch)
    # Its scale is a float32, and so is buckets' softmax of bounded scores.
    assert close(forward_and_back(lengths, "flex", **shape), forward_and_back(lengths, "buckets", **shape), 1e-5)


def as_documented(q, k, v, cu_q, cu_k, max_q, max_k, *, return_aux=None, scale=None, window_size=(-1, -1)):
    """torch's function, from its documentation: within each sequence a token sees itself, `window_size[0]` tokens
    before it and `window_size[1]` after it; -1 is all of them."""
    assert cu_q.dtype == torch.int32 and max_q == int(cu_q.diff().max()) and cu_q is cu_k
    outputs = []
    for start, end in zip(cu_q.tolist(), cu_q.tolist()[1:], strict=False):
        far = torch.arange(end - start)[:, None] - torch.arange(end - start)
        before, after = (n if n >= 0 else max_q for n in window_size)
        parts = [x[start:end].transpose(0, 1) for x in (q, k, v)]
        mask = (far <= before) & (-far <= after)
        outputs.append(F.scaled_dot_product_attention(*parts, mask, scale=scale, enable_gqa=True).transpose(0, 1))
    return torch.cat(outputs)


def told(*args, enable_gqa=False, **options):
    assert enable_gqa
    return as_documented(*args, **options)


told.__signature__ = inspect.Signature(
    [
        *inspect.signature(as_documented).parameters.values(),
        inspect.Parameter("enable_gqa", inspect.Parameter.KEYWORD_ONLY),
    ]
)


@pytest.mark.parametrize("torchs", [as_documented, told])
@pytest.mark.parametrize("shape", [{}, {"window": 1}, {"window": 7}, {"window": 500}, {"scale": 0.3, "window": 129}])
def test_flash_attention_is_asked_for_what_buckets_are(monkeypatch, torchs, shape):
    monkeypatch.setattr(gpu_kernels, "varlen_attn", torchs)
    gpu_kernels._says_grouped.cache_clear()
    try:
        assert close(forward_and_back(LENGTHS[0], "varlen", **shape), forward_and_back(LENGTHS[0], "buckets", **shape))
    finally:
        gpu_kernels._says_grouped.cache_clear()


def test_heads_with_keys_of_their_own_attend_alike(monkeypatch):
    """What buckets do in float32 on a GPU."""
    plain = forward_and_back(LENGTHS[0], "buckets", window=100)
    monkeypatch.setattr("yatt.training.attention._apart", lambda q, k, masked: True)
    assert close(forward_and_back(LENGTHS[0], "buckets", window=100), plain)


def test_the_kernel_for_a_device(monkeypatch):
    bf16 = torch.bfloat16
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    kernels.fits_varlen.cache_clear()
    assert choose(CPU, bf16, 64, None) == choose(CUDA, torch.float32, 64, None) == "buckets"
    assert [choose(CUDA, bf16, size, None) for size in (64, 256, 264, 60)] == ["varlen", "varlen", "buckets", "buckets"]
    assert choose(CUDA, bf16, 64, 50.0) == "buckets"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    kernels.fits_varlen.cache_clear()
    assert choose(CUDA, bf16, 64, None) == "buckets"
    kernels.fits_varlen.cache_clear()


@pytest.mark.parametrize("chunk", [1, 40, 1 << 26])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("wants", ["logprobs", "entropy", "both"])
def test_log_probabilities_by_rows_are_torchs(monkeypatch, chunk, dtype, wants):
    monkeypatch.setattr(batch, "CHUNK", chunk)
    random = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(9, 17, generator=random)).to(dtype).requires_grad_()
    targets = torch.randint(17, (9,), generator=random)
    weights = [torch.randn(9, generator=random) * (wants in (name, "both")) for name in ("logprobs", "entropy")]
    alone = SimpleNamespace(size=lambda: 1, rank=lambda: 0)
    logprobs, entropy = batch._TokenLogprobs.apply(logits, targets, 0.7, alone)
    every = torch.log_softmax(logits.detach().float().requires_grad_() / 0.7, -1)
    same = logits.detach().float().requires_grad_()
    every = torch.log_softmax(same / 0.7, -1)
    chosen, spread = every.gather(1, targets[:, None])[:, 0], -(every.exp() * every).sum(-1)
    assert torch.allclose(logprobs, chosen, atol=1e-5) and torch.allclose(entropy, spread, atol=1e-5)
    used = [(logprobs, chosen, weights[0]), (entropy, spread, weights[1])]
    used = [one for one, name in zip(used, ("logprobs", "entropy"), strict=True) if wants in (name, "both")]
    sum((ours * w).sum() for ours, _, w in used).backward()
    sum((theirs * w).sum() for _, theirs, w in used).backward()
    assert logits.grad.dtype == dtype
    assert torch.allclose(logits.grad.float(), same.grad, atol=1e-5, rtol=1e-5 if dtype == torch.float32 else 5e-3)


def trained(folder, checkpoint=None, **train):
    """Loss, gradient norm and weights of three updates by one rank in this process, and its optimizer's state; from a
    checkpoint written after the second, where one is asked for."""
    settings = Config(**config(folder, **train))
    samples = make_samples(3)
    place = dict(rank=0, world_size=1, address="127.0.0.1")
    rank = open_rank(settings, **place, port=free_port())
    try:
        rank.start()
        reports = [rank.update(shares(samples, 1)[0]) for _ in range(2)]
        if checkpoint is not None:
            rank.save(str(checkpoint))
            rank.close()
            rank = open_rank(settings, **place, port=free_port())
            rank.start()
            rank.load(str(checkpoint))
        reports.append(rank.update(shares(samples, 1)[0]))
        weights = {name: tensor.float().clone().numpy() for name, tensor in rank.export()}
        groups = rank._started.policy.optimizer.param_groups
        return [(r.loss, r.grad_norm) for r in reports], weights, {group.get("fused") for group in groups}
    finally:
        rank.close()


@pytest.fixture(scope="module")
def capped(tmp_path_factory):
    """A model with windows and bounds."""
    return save_tiny(tmp_path_factory.mktemp("gemma2"), "gemma2")


@pytest.fixture(scope="module")
def plain(capped):
    return trained(capped)


@pytest.mark.parametrize("train", [{"recompute": "full"}, {"attention": "flex"}])
def test_recomputed_layers_and_other_kernels_train_alike(monkeypatch, capped, plain, train):
    plainly(monkeypatch)
    numbers, weights, _ = trained(capped, **train)
    assert np.allclose(numbers, plain[0], rtol=1e-4) and worst(weights, plain[1]) < 1e-5


def test_recomputed_layers_are_computed_twice(capped, monkeypatch):
    calls = []
    attend = packed_attention
    monkeypatch.setattr(
        "yatt.training.megatron.attention.packed_attention",
        lambda *args, **options: calls.append(options["kernel"]) or attend(*args, **options),
    )
    counts = []
    for train in ({}, {"recompute": "full", "attention": "buckets"}):
        calls.clear()
        trained(capped, **train)
        counts.append((len(calls), set(calls)))
    # Three updates of two micro-batches through two layers.
    assert counts == [(12, {None}), (24, {"buckets"})]


def test_adam_in_one_kernel_is_adam_and_goes_on_from_a_checkpoint(capped, plain, monkeypatch, tmp_path):
    """torch has the kernel for a CPU too."""
    assert plain[2] == {None}
    monkeypatch.setattr(optimizer, "FUSED", ("cuda", "cpu"))
    numbers, weights, fused = trained(capped)
    assert fused == {True}
    assert np.allclose(numbers, plain[0], rtol=1e-4) and worst(weights, plain[1]) < 1e-5
    numbers, weights, _ = trained(capped, tmp_path / "checkpoint")
    assert np.allclose(numbers, plain[0], rtol=1e-4) and worst(weights, plain[1]) < 1e-5

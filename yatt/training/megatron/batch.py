"""From the controllers' shares to micro-batches on the device, and from logits back to token columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from yatt.errors import BackendError
from yatt.training.megatron.attention import Packing, Rotary, packing
from yatt.types import Denominator, PackedBatch, Sample, Share


@dataclass(slots=True)
class MicroBatch:
    """A packed batch with what the model needs beside it. `tokens`, `position_ids` [1, P]: the batch's T tokens and,
    for sequence parallelism, up to tp - 1 more that lengthen its last sequence. `trained` counts the loss mask."""

    batch: PackedBatch
    tokens: Tensor
    position_ids: Tensor
    packing: Packing
    trained: int
    old_logprobs: Tensor | None = None
    ref_logprobs: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Update:
    """One optimizer update of this rank: its micro-batches (possibly none) and the global denominator."""

    micro_batches: list[MicroBatch]
    denominator: Denominator


def merge(shares: Sequence[Share]) -> list[tuple[Denominator, list[list[Sample]]]]:
    """Per update, its denominator and this rank's non-empty micro-batches over all senders.

    Samples lie in the order of their keys, so nothing depends on which controller sent them. Raises BackendError where
    shares disagree about the step's shape."""
    shapes = {(s.step, s.rank, s.senders, s.denominators, tuple(len(update) for update in s.updates)) for s in shares}
    if len(shapes) != 1:
        raise BackendError(
            f"shares of controllers {[s.controller for s in shares]} differ in shape: {sorted(map(str, shapes))}"
        )
    updates = []
    for u, denominator in enumerate(shares[0].denominators):
        columns = zip(*(share.updates[u] for share in shares), strict=True)
        merged = [sorted((s for part in parts for s in part), key=lambda s: s.key) for parts in columns]
        updates.append((denominator, [samples for samples in merged if samples]))
    return updates


def pack(
    samples: Sequence[Sample], denominator: Denominator, rotary: Rotary, device: torch.device, multiple: int
) -> MicroBatch:
    """Lay samples end to end, the whole padded to a `multiple` of tokens."""
    lengths = [len(s.tokens) for s in samples]
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    mask = np.concatenate([s.loss_mask for s in samples]).astype(bool)
    mask[bounds[:-1]] = False
    extra = -int(bounds[-1]) % multiple
    padded = [*lengths[:-1], lengths[-1] + extra]
    tokens = np.pad(np.concatenate([s.tokens for s in samples]), (0, extra)).astype(np.int64)
    positions = np.concatenate([np.arange(n) for n in padded])

    def put(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(device)

    rollout = None
    if samples[0].rollout_logprobs is not None:
        rollout = put(np.concatenate([s.rollout_logprobs for s in samples]).astype(np.float32))
    total = int(bounds[-1])
    all_tokens, all_positions = put(tokens), put(positions)
    batch = PackedBatch(
        tokens=all_tokens[:total],
        position_ids=all_positions[:total],
        cu_seqlens=put(bounds.astype(np.int64)),
        loss_mask=put(mask),
        advantages=put(np.repeat(np.float32([s.advantage for s in samples]), lengths)),
        rollout_logprobs=rollout,
        denominator=denominator,
    )
    return MicroBatch(
        batch=batch,
        tokens=all_tokens[None],
        position_ids=all_positions[None],
        packing=packing(padded, all_positions, rotary),
        trained=int(mask.sum()),
    )


class _TokenLogprobs(torch.autograd.Function):
    """Log-probability of one target per row, and the entropy of each row, from logits sharded over the vocabulary.

    Keeps one float32 copy of the logits' shape (the probabilities) for backward; the entropy has no gradient."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, targets: Tensor, temperature: float, group: dist.ProcessGroup
    ) -> tuple[Tensor, Tensor]:
        shards, width = group.size(), logits.shape[-1]
        scaled = logits.float() / temperature
        top = scaled.max(dim=-1).values
        if shards > 1:
            dist.all_reduce(top, op=dist.ReduceOp.MAX, group=group)
        scaled -= top[:, None]
        local = targets - group.rank() * width
        mine = (local >= 0) & (local < width)
        local = local.clamp(0, width - 1)
        chosen = scaled.gather(1, local[:, None]).squeeze(1).masked_fill_(~mine, 0.0)
        probabilities = scaled.exp()
        # Rows: chosen logit, sum of exp, sum of exp times logit.
        sums = torch.stack([chosen, probabilities.sum(-1), torch.linalg.vecdot(probabilities, scaled)])
        if shards > 1:
            dist.all_reduce(sums, group=group)
        chosen, total, weighted = sums
        log_total = total.log()
        ctx.save_for_backward(probabilities.div_(total[:, None]), local, mine)
        ctx.temperature, ctx.dtype = temperature, logits.dtype
        entropy = log_total - weighted / total
        ctx.mark_non_differentiable(entropy)
        return chosen - log_total, entropy

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _entropy: Tensor) -> tuple[Tensor, None, None, None]:
        probabilities, local, mine = ctx.saved_tensors
        grad = grad / ctx.temperature
        # In place: the graph is used once, and autograd refuses a second use.
        result = probabilities.mul_(-grad[:, None])
        result.scatter_add_(1, local[:, None], (grad * mine)[:, None])
        return result.to(ctx.dtype), None, None, None


def token_logprobs(
    logits: Tensor, batch: PackedBatch, temperature: float, group: dist.ProcessGroup
) -> tuple[Tensor, Tensor]:
    """logits [1, P, V / tp] -> log-probabilities and entropies [T], each aligned with the token that was predicted.

    The first token of each sequence has no prediction: both are 0 there. Collective over the tensor-parallel group."""
    total = len(batch.tokens)
    targets = torch.roll(batch.tokens, -1)
    logprobs, entropy = _TokenLogprobs.apply(logits[0, :total], targets, temperature, group)
    first = batch.position_ids == 0
    return tuple(torch.roll(column, 1).masked_fill(first, 0.0) for column in (logprobs, entropy))

"""From the controllers' shares to micro-batches on the device, and from logits back to token columns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from yatt.errors import BackendError
from yatt.training.attention import Packing, packing
from yatt.training.images import Eyes, Sight
from yatt.types import Denominator, Pair, Sample, Share


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedBatch:
    """A micro-batch on the device: S sequences end to end, T tokens. Columns [T] are aligned with their token;
    `loss_mask` is false on each sequence's first token. `advantages` [T] repeats each sequence's advantage, `rewards`
    [S], float64, has each sequence's. Where one sequence is of a pair, all are, the two of a pair in turn.
    `ref_sums` [S] are the reference's log-probabilities of each sequence, where they were worked out beforehand.
    `fresh` [T] are the trained tokens that were sampled under the policy's version now, where the sampler's
    log-probabilities are there. `turn_rewards` [T], float64, are the parts of rewards that came for a turn, where any
    did."""

    tokens: Tensor
    position_ids: Tensor
    cu_seqlens: Tensor
    loss_mask: Tensor
    advantages: Tensor
    rewards: Tensor
    rollout_logprobs: Tensor | None
    denominator: Denominator
    ref_sums: Tensor | None = None
    fresh: Tensor | None = None
    turn_rewards: Tensor | None = None


@dataclass(slots=True)
class MicroBatch:
    """A packed batch with what the model needs beside it. `tokens`, `position_ids` [1, P]: the batch's T tokens and,
    for sequence parallelism, up to tp - 1 more that lengthen its last sequence. `trained` counts the loss mask. `sight`
    is there where the policy sees.

    The other columns [T] are what the step's models say of it before the first update, on the last pipeline stage:
    log-probabilities of the policy, the reference and the teacher, the critic's values; and what follows from them."""

    batch: PackedBatch
    tokens: Tensor
    position_ids: Tensor
    packing: Packing
    trained: int
    advantages: Tensor
    sight: Sight | None = None
    old_logprobs: Tensor | None = None
    ref_logprobs: Tensor | None = None
    teacher_logprobs: Tensor | None = None
    values: Tensor | None = None
    returns: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Update:
    """One optimizer update of this rank: its micro-batches (possibly none) and the global denominator."""

    micro_batches: list[MicroBatch]
    denominator: Denominator


def merge(shares: Sequence[Share]) -> list[tuple[Denominator, list[list[Sample | Pair]]]]:
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
    samples: Sequence[Sample | Pair],
    denominator: Denominator,
    device: torch.device,
    multiple: int,
    eyes: Eyes | None = None,
) -> MicroBatch:
    """Lay samples and both sequences of pairs end to end, the whole padded to a `multiple` of tokens. Their images are
    for `eyes` alone."""
    sequences = [sequence for sample in samples for sequence in sample.sequences]
    lengths = [len(sequence.tokens) for sequence in sequences]
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    mask = np.concatenate([s.loss_mask for s in sequences]).astype(bool)
    mask[bounds[:-1]] = False
    extra = -int(bounds[-1]) % multiple
    padded = [*lengths[:-1], lengths[-1] + extra]
    tokens = np.pad(np.concatenate([s.tokens for s in sequences]), (0, extra)).astype(np.int64)
    positions = np.concatenate([np.arange(n) for n in padded])

    def put(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(device)

    rollout = fresh = None
    if sequences[0].rollout_logprobs is not None:
        rollout = put(np.concatenate([s.rollout_logprobs for s in sequences]).astype(np.float32))
        fresh = put(mask & np.concatenate([np.arange(len(s.tokens)) >= s.fresh for s in sequences]))
    reference = None
    if sequences[0].reference is not None:
        reference = put(np.array([s.reference for s in sequences], dtype=np.float32))
    early = None
    if any(sequence.turn_rewards for sequence in sequences):
        column = np.zeros(int(bounds[-1]), dtype=np.float64)
        for start, sequence in zip(bounds, sequences, strict=False):
            for place, value in sequence.turn_rewards:
                column[start + place] += value
        early = put(column)
    total = int(bounds[-1])
    all_tokens, all_positions = put(tokens), put(positions)
    batch = PackedBatch(
        tokens=all_tokens[:total],
        position_ids=all_positions[:total],
        cu_seqlens=put(bounds.astype(np.int64)),
        loss_mask=put(mask),
        advantages=put(np.repeat(np.array([s.advantage for s in sequences], dtype=np.float32), lengths)),
        rewards=put(np.array([s.reward for s in sequences], dtype=np.float64)),
        rollout_logprobs=rollout,
        denominator=denominator,
        ref_sums=reference,
        fresh=fresh,
        turn_rewards=early,
    )
    return MicroBatch(
        batch=batch,
        tokens=all_tokens[None],
        position_ids=all_positions[None],
        packing=packing(padded, device),
        trained=int(mask.sum()),
        advantages=batch.advantages,
        sight=None if eyes is None else eyes.see(sequences, padded, device),
    )


CHUNK = 1 << 26
"""Most float32 numbers that are held at a time to work out log-probabilities."""


class _TokenLogprobs(torch.autograd.Function):
    """Log-probability of one target per row, and the entropy of each row, from logits sharded over the vocabulary.

    Rows are worked out a few at a time, for backward again: of the logits' shape there are the logits and their
    gradient, in the model's precision, and nothing else."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, targets: Tensor, temperature: float, group: dist.ProcessGroup
    ) -> tuple[Tensor, Tensor]:
        shards, width = group.size(), logits.shape[-1]
        top = logits.amax(-1).float() / temperature
        if shards > 1:
            dist.all_reduce(top, op=dist.ReduceOp.MAX, group=group)
        local = targets - group.rank() * width
        mine = (local >= 0) & (local < width)
        local = local.clamp(0, width - 1)
        # Rows: chosen logit, sum of exp, sum of exp times logit.
        sums = top.new_empty(3, len(top))
        for part in _rows(logits):
            scaled = (logits[part].float() / temperature).sub_(top[part, None])
            powers = scaled.exp()
            sums[0, part] = scaled.gather(1, local[part, None]).squeeze(1)
            sums[1, part] = powers.sum(-1)
            sums[2, part] = torch.linalg.vecdot(powers, scaled)
        sums[0].masked_fill_(~mine, 0.0)
        if shards > 1:
            dist.all_reduce(sums, group=group)
        chosen, total, weighted = sums
        log_total = total.log()
        entropy = log_total - weighted / total
        ctx.save_for_backward(logits, top + log_total, local, mine, entropy)
        ctx.temperature = temperature
        ctx.set_materialize_grads(False)
        return chosen - log_total, entropy

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, of_entropy: Tensor | None) -> tuple[Tensor | None, None, None, None]:
        """d logp / d logits = onehot - p; d H / d logits = -p (log p + H); both over the temperature."""
        if grad is None and of_entropy is None:
            return None, None, None, None
        logits, normaliser, local, mine, entropy = ctx.saved_tensors
        result = torch.empty_like(logits)
        for part in _rows(logits):
            logs = (logits[part].float() / ctx.temperature).sub_(normaliser[part, None])
            slope = logs.exp()
            if of_entropy is not None:
                factor = logs.add_(entropy[part, None]).mul_(of_entropy[part, None])
                slope.mul_((factor if grad is None else factor.add_(grad[part, None])).neg_())
            elif grad is not None:
                slope.mul_(-grad[part, None])
            if grad is not None:
                slope.scatter_add_(1, local[part, None], (grad[part] * mine[part])[:, None])
            result[part] = slope.div_(ctx.temperature)
        return result, None, None, None


def _rows(logits: Tensor) -> Iterator[slice]:
    """As many rows at a time as may be held."""
    step = max(1, CHUNK // logits.shape[-1])
    return (slice(start, start + step) for start in range(0, len(logits), step))


_token_logprobs: Callable[[Tensor, Tensor, float, dist.ProcessGroup], tuple[Tensor, Tensor]] = _TokenLogprobs.apply


def known(column: Tensor | None) -> Tensor:
    """A column that an earlier part of the step has set."""
    assert column is not None
    return column


def token_logprobs(
    logits: Tensor, batch: PackedBatch, temperature: float, group: dist.ProcessGroup
) -> tuple[Tensor, Tensor]:
    """logits [1, P, V / tp] -> log-probabilities and entropies [T], each aligned with the token that was predicted.

    The first token of each sequence has no prediction: both are 0 there. Collective over the tensor-parallel group."""
    total = len(batch.tokens)
    targets = torch.roll(batch.tokens, -1)
    logprobs, entropy = _token_logprobs(logits[0, :total], targets, temperature, group)
    first = batch.position_ids == 0
    return torch.roll(logprobs, 1).masked_fill(first, 0.0), torch.roll(entropy, 1).masked_fill(first, 0.0)


def token_values(output: Tensor, batch: PackedBatch) -> Tensor:
    """A value head's output [1, P, 1] -> the value [T] of the state in which each token was chosen, one token earlier;
    0 for the first token of each sequence."""
    values = output[0, : len(batch.tokens), 0]
    return torch.roll(values, 1).masked_fill(batch.position_ids == 0, 0.0)


def final_scores(output: Tensor, batch: PackedBatch, padding: int | None = None) -> Tensor:
    """A value head's output [1, P, 1] -> its value [S] at the last token of each sequence that is not `padding`, or at
    its first where all are."""
    starts, lengths = batch.cu_seqlens[:-1], batch.cu_seqlens.diff()
    if padding is None:
        return output[0, starts + lengths - 1, 0]
    places = torch.arange(len(batch.tokens), device=starts.device).masked_fill(batch.tokens == padding, -1)
    ids = torch.repeat_interleave(torch.arange(len(starts), device=starts.device), lengths)
    return output[0, starts.scatter_reduce(0, ids, places, "amax"), 0]

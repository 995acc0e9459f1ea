"""One step's optimizer updates on one rank."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.distributed import DistributedDataParallel, finalize_model_grads
from megatron.core.models.gpt import GPTModel
from megatron.core.optimizer import ChainedOptimizer
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from yatt.algorithm.kl import kl
from yatt.algorithm.loss import aggregate, divisor, policy_loss, sft_loss
from yatt.config.schema import Config
from yatt.training.megatron import optimizer as optimization
from yatt.training.megatron.attention import Rotary
from yatt.training.megatron.batch import MicroBatch, Update, merge, pack, token_logprobs
from yatt.training.megatron.parallel import Groups
from yatt.training.megatron.schedule import learning_rate
from yatt.types import PackedBatch, Share, UpdateReport

# What is summed over micro-batches and ranks, in this order.
SUMS = ("loss", "tokens", "entropy", "clipped", "kl_ref", "measured", "kl", "gap")


@dataclass(slots=True)
class Measurements:
    """Sums over the micro-batches this rank has trained, on its device until the step ends."""

    device: torch.device
    sums: Tensor = field(init=False)
    gap_max: Tensor = field(init=False)
    seconds: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.sums = torch.zeros(len(SUMS), dtype=torch.float64, device=self.device)
        self.gap_max = torch.zeros((), dtype=torch.float64, device=self.device)

    def add(self, **values: Tensor | float) -> None:
        like = {"dtype": torch.float64, "device": self.device}
        self.sums += torch.stack([torch.as_tensor(values.get(name, 0.0), **like) for name in SUMS])

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - start


@dataclass(slots=True)
class Learner:
    """A policy with its optimizer, and perhaps a reference, on one rank. `updates` counts those done in the run."""

    config: Config
    groups: Groups
    rotary: Rotary
    model: DistributedDataParallel
    optimizer: ChainedOptimizer
    reference: GPTModel | None = None
    updates: int = 0

    def __post_init__(self) -> None:
        self.model.config.finalize_model_grads_func = _reduce

    def run(self, shares: Sequence[Share]) -> UpdateReport:
        """Every update of the step. Collective over all ranks, each with the shares of its data-parallel rank."""
        seen = Measurements(self.groups.device)
        with seen.timed("pack"):
            updates = self._pack(shares)
        every = [micro for update in updates for micro in update.micro_batches]
        if self.reference is not None:
            with seen.timed("reference"):
                self._annotate(self.reference, every, "ref_logprobs")
        recompute = len(updates) > 1 and self._policy_gradient
        if recompute:
            with seen.timed("old_logprobs"):
                self._annotate(self.model, every, "old_logprobs")
                for micro in every if self.groups.last_stage else ():
                    _compare_with_rollout(micro.batch, micro.old_logprobs, seen)
        norms, rate, skipped = [], 0.0, 0
        for number, update in enumerate(updates):
            if update.denominator.tokens == 0:
                continue
            compare = not recompute and number == 0
            with seen.timed("forward_backward"):
                self._forward_backward(update, seen, compare)
            with seen.timed("optimizer"):
                train = self.config.train
                rate = learning_rate(train.optimizer, self.updates, train.steps * train.updates_per_step)
                norm, applied = optimization.step(self.optimizer, rate)
            self.updates += 1
            norms.append(norm)
            skipped += not applied
        return self._report(seen, norms, rate, skipped)

    @property
    def _policy_gradient(self) -> bool:
        return self.config.algorithm.name != "sft"

    @property
    def _temperature(self) -> float:
        """The sampler's logprobs are those of its tempered distribution, so the trainer's are too."""
        sampled = self.config.rollout.temperature
        return sampled if self._policy_gradient and sampled > 0 else 1.0

    def _pack(self, shares: Sequence[Share]) -> list[Update]:
        multiple = self.groups.tp.size() if self.model.config.sequence_parallel else 1
        return [
            Update(
                [pack(samples, total, self.rotary, self.groups.device, multiple) for samples in micro_batches], total
            )
            for total, micro_batches in merge(shares)
        ]

    def _annotate(self, model: torch.nn.Module, micro_batches: list[MicroBatch], column: str) -> None:
        """Set `column` of each micro-batch to this model's logprobs, on the last pipeline stage."""

        def keep(micro: MicroBatch, logits: Tensor) -> Tensor:
            logprobs, _ = token_logprobs(logits, micro.batch, self._temperature, self.groups.tp)
            setattr(micro, column, logprobs)
            return logits.new_zeros(())

        with torch.no_grad():
            _run(model, micro_batches, keep, forward_only=True)

    def _forward_backward(self, update: Update, seen: Measurements, compare: bool) -> None:
        """Leave the reduced gradients of the update's loss in the model's buffers."""

        def loss(micro: MicroBatch, logits: Tensor) -> Tensor:
            batch = micro.batch
            logprobs, entropy = token_logprobs(logits, batch, self._temperature, self.groups.tp)
            fixed = logprobs.detach()
            value, clipped = self._objective(micro, logprobs)
            mask = batch.loss_mask
            measured = dict(loss=value.detach(), tokens=micro.trained, clipped=clipped * micro.trained)
            if micro.ref_logprobs is not None:
                measured["kl_ref"] = kl(fixed, micro.ref_logprobs, "k3")[mask].sum()
            seen.add(entropy=entropy[mask].sum(), **measured)
            if compare:
                _compare_with_rollout(batch, fixed, seen)
            return value

        self.model.zero_grad_buffer()
        self.optimizer.zero_grad()
        if update.micro_batches:
            _run(self.model, update.micro_batches, loss, forward_only=False)
        else:
            _reduce([self.model])

    def _objective(self, micro: MicroBatch, logprobs: Tensor) -> tuple[Tensor, Tensor | float]:
        """This micro-batch's part of the update's loss, and the share of its tokens that were clipped."""
        settings, batch = self.config.algorithm, micro.batch
        shape: dict[str, Any] = dict(
            aggregate=settings.aggregate,
            max_tokens=self.config.rollout.max_tokens,
            denominator=divisor(settings.aggregate, batch.denominator),
        )
        if not self._policy_gradient:
            return sft_loss(logprobs, batch.loss_mask, batch.cu_seqlens, **shape), 0.0
        result = policy_loss(
            logprobs,
            logprobs.detach() if micro.old_logprobs is None else micro.old_logprobs,
            batch.advantages,
            batch.loss_mask,
            batch.cu_seqlens,
            clip_low=settings.clip_low,
            clip_high=settings.clip_high,
            dual_clip=settings.dual_clip,
            **shape,
        )
        value = result.loss
        if micro.ref_logprobs is not None:
            distance = kl(logprobs, micro.ref_logprobs, settings.kl.kind)
            shape["kind"] = shape.pop("aggregate")
            value = value + settings.kl.coefficient * aggregate(distance, batch.loss_mask, batch.cu_seqlens, **shape)
        return value, result.clip_fraction

    def _report(self, seen: Measurements, norms: list[float], rate: float, skipped: int) -> UpdateReport:
        """Add up over the replicas, on every rank alike."""
        sums, gap_max = seen.sums, seen.gap_max
        if not (self.groups.last_stage and self.groups.tp.rank() == 0):
            sums.zero_()
            gap_max.zero_()
        dist.all_reduce(sums)
        dist.all_reduce(gap_max, op=dist.ReduceOp.MAX)
        total = dict(zip(SUMS, sums.tolist(), strict=True))
        tokens, measured = max(1.0, total["tokens"]), max(1.0, total["measured"])
        finite = [norm for norm in norms if math.isfinite(norm)]
        return UpdateReport(
            loss=total["loss"] / max(1, len(norms)),
            grad_norm=sum(finite) / len(finite) if finite else (math.nan if norms else 0.0),
            learning_rate=rate,
            entropy=total["entropy"] / tokens,
            kl=total["kl"] / measured,
            kl_ref=total["kl_ref"] / tokens,
            clip_fraction=total["clipped"] / tokens,
            rollout_gap_max=gap_max.item(),
            rollout_gap_mean=total["gap"] / measured,
            trained_tokens=int(total["tokens"]),
            skipped_updates=skipped,
            seconds=seen.seconds,
        )


def _compare_with_rollout(batch: PackedBatch, logprobs: Tensor, seen: Measurements) -> None:
    """How far these logprobs are from the sampler's, on trained tokens."""
    if batch.rollout_logprobs is None:
        return
    sampled, computed = batch.rollout_logprobs[batch.loss_mask], logprobs[batch.loss_mask]
    if len(sampled) == 0:
        return
    gap = (computed - sampled).abs()
    seen.add(measured=float(len(gap)), gap=gap.sum(), kl=kl(sampled, computed, "k3").sum())
    seen.gap_max = torch.maximum(seen.gap_max, gap.max().double())


def _run(
    model: torch.nn.Module,
    micro_batches: list[MicroBatch],
    loss: Callable[[MicroBatch, Tensor], Tensor],
    *,
    forward_only: bool,
) -> None:
    """Put micro-batches through the pipeline; `loss` sees the logits, on the last stage."""
    if not micro_batches:
        return

    def forward(batches: Iterator[MicroBatch], part: torch.nn.Module) -> tuple[Tensor, Callable[[Tensor], Any]]:
        micro = next(batches)
        output = part(micro.tokens, micro.position_ids, None, packed_seq_params=micro.packing)
        # A loss, a number of tokens (which would divide it again: none), and nothing to log.
        return output, lambda logits: (loss(micro, logits), torch.zeros((), dtype=torch.int, device=logits.device), {})

    get_forward_backward_func()(
        forward_step_func=forward,
        data_iterator=iter(micro_batches),
        model=[model],
        num_microbatches=len(micro_batches),
        seq_length=micro_batches[0].tokens.shape[1],
        micro_batch_size=1,
        forward_only=forward_only,
    )


def _reduce(
    model: list[torch.nn.Module],
    num_tokens: Tensor | None = None,
    pg_collection: Any = None,
    force_all_reduce: bool = False,
) -> None:
    """Sum gradients over the replicas and leave them so: the loss was divided by its denominator already."""
    finalize_model_grads(model, None, pg_collection=pg_collection, force_all_reduce=force_all_reduce)

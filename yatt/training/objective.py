"""Losses of models that learn from rows: responses to imitate, pairs, labelled responses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypedDict

import torch
import torch.distributed as dist
from torch import Tensor

from yatt.algorithm.loss import divisor, sft_loss
from yatt.algorithm.packed import sequence_sums
from yatt.algorithm.preference import bradley_terry, kto, pair_losses
from yatt.config.schema import Config
from yatt.training.batch import MicroBatch, final_scores, known, token_logprobs
from yatt.training.export import pooled_padding
from yatt.training.layout import Layout
from yatt.training.measure import Measurements
from yatt.training.model import Head


class ObjectiveReport(TypedDict, total=False):
    """Fields of UpdateReport that an objective knows."""

    entropy: float
    kl: float
    kl_ref: float
    clip_fraction: float
    rollout_gap_max: float
    rollout_gap_mean: float
    fresh_gap_mean: float
    fresh_tokens: int
    numbers: dict[str, float]


class Objective(Protocol):
    """The loss of an algorithm on micro-batches, and its numbers. What passes through the model, and what is known
    before the first update, is on the last pipeline stage only: so are `prepare` and `loss`."""

    head: Head
    sums: tuple[str, ...]  # what it adds to a step's measurements
    temperature: float  # of the distributions that log-probabilities are of

    def asks_policy(self, updates: int) -> bool:
        """Whether it needs the policy's log-probabilities before the first of so many updates."""
        ...

    def prepare(self, micro_batches: Sequence[MicroBatch], seen: Measurements) -> None:
        """Once per step, before the first update. Collective over the replicas of the last stage."""
        ...

    def loss(self, micro: MicroBatch, output: Tensor, seen: Measurements) -> Tensor:
        """This micro-batch's part of the update's loss, differentiable, from the model's output."""
        ...

    def report(self, total: Mapping[str, float]) -> ObjectiveReport:
        """From the step's sums."""
        ...


class FromRows:
    """Shared by objectives that learn from rows: most know all they need from the loss's own forward pass."""

    temperature: float = 1.0

    def asks_policy(self, updates: int) -> bool:
        return False

    def prepare(self, micro_batches: Sequence[MicroBatch], seen: Measurements) -> None:
        """Nothing to prepare."""


class Likelihood(FromRows):
    """Supervised fine-tuning: the negative log-likelihood of the trained tokens."""

    head: Head = "tokens"
    sums: tuple[str, ...] = ("entropy",)

    def __init__(self, config: Config, layout: Layout) -> None:
        self._settings, self._longest, self._layout = config.algorithm, config.rollout.max_tokens, layout

    def loss(self, micro: MicroBatch, output: Tensor, seen: Measurements) -> Tensor:
        batch, kind = micro.batch, self._settings.aggregate
        logprobs, entropy = token_logprobs(output, batch, self.temperature, self._layout.tp)
        seen.add(entropy=entropy[batch.loss_mask].sum())
        return sft_loss(
            logprobs,
            batch.loss_mask,
            batch.cu_seqlens,
            aggregate=kind,
            max_tokens=self._longest,
            denominator=divisor(kind, batch.denominator),
        )

    def report(self, total: Mapping[str, float]) -> ObjectiveReport:
        return {"entropy": total["entropy"] / max(1.0, total["tokens"])}


class Pairs(FromRows):
    """Shared by objectives on pairs: how often, and by how much, the chosen response is ahead."""

    sums: tuple[str, ...] = ("pairs", "ahead", "chosen", "rejected")

    def count(self, chosen: Tensor, rejected: Tensor, seen: Measurements) -> None:
        """Take note of the rewards [P] of both sides of some pairs."""
        ahead = (chosen > rejected).sum() + (chosen == rejected).sum() / 2  # a tie is a coin thrown
        seen.add(pairs=len(chosen), ahead=ahead, chosen=chosen.sum(), rejected=rejected.sum())

    def report(self, total: Mapping[str, float]) -> ObjectiveReport:
        pairs = max(1.0, total["pairs"])
        shown = {"pair_accuracy": "ahead", "chosen_reward": "chosen", "rejected_reward": "rejected"}
        return {"numbers": {name: total[key] / pairs for name, key in shown.items()}}


class Scoring(Pairs):
    """A reward model after Bradley and Terry: the score of a sequence is the value at its last token that is no
    padding."""

    head: Head = "value"

    def __init__(self, config: Config, layout: Layout) -> None:
        self._padding = pooled_padding(Path(config.model.path))

    def loss(self, micro: MicroBatch, output: Tensor, seen: Measurements) -> Tensor:
        scores = final_scores(output, micro.batch, self._padding)
        chosen, rejected = scores[0::2], scores[1::2]
        self.count(chosen.detach(), rejected.detach(), seen)
        losses = bradley_terry(chosen, rejected, micro.batch.rewards[0::2].to(chosen))
        return losses.sum() / max(1, micro.batch.denominator.sequences)


class Preference(Pairs):
    """DPO and its kin: pairs, by log-probabilities against the reference's."""

    head: Head = "tokens"

    def __init__(self, config: Config, layout: Layout) -> None:
        self._settings, self._layout = config.algorithm, layout

    def loss(self, micro: MicroBatch, output: Tensor, seen: Measurements) -> Tensor:
        batch, ratios = micro.batch, _log_ratios(micro, output, self._layout)
        if self._settings.average_logprobs:
            ratios = ratios / sequence_sums(batch.loss_mask.to(ratios), batch.loss_mask, batch.cu_seqlens).clamp(min=1)
        chosen, rejected = ratios[0::2], ratios[1::2]
        settings, beta = self._settings, self._settings.beta
        self.count(beta * chosen.detach(), beta * rejected.detach(), seen)
        losses = pair_losses(
            chosen, rejected, kind=settings.recipe.loss, beta=beta, label_smoothing=settings.label_smoothing
        )
        return losses.sum() / max(1, micro.batch.denominator.sequences)


class Labels(FromRows):
    """KTO. Every second sequence is a response to another prompt: it tells how far the policy has come as a whole."""

    head: Head = "tokens"
    sums: tuple[str, ...] = ("desirable", "undesirable", "desirable_reward", "undesirable_reward", "reference_point")

    def __init__(self, config: Config, layout: Layout) -> None:
        self._settings, self._layout = config.algorithm, layout
        self._point = torch.zeros((), device=layout.device)

    def asks_policy(self, updates: int) -> bool:
        return True

    def prepare(self, micro_batches: Sequence[MicroBatch], seen: Measurements) -> None:
        """The mean log ratio of the responses to other prompts, at least 0, over the whole step."""
        sums = torch.zeros(2, dtype=torch.float64, device=self._layout.device)
        for micro in micro_batches:
            assert micro.old_logprobs is not None
            ratios = _sums(micro, micro.old_logprobs)[1::2]
            sums += torch.stack([ratios.double().sum(), sums.new_tensor(len(ratios))])
        dist.all_reduce(sums, group=self._layout.dp)
        self._point = (sums[0] / sums[1].clamp(min=1)).clamp(min=0).float()

    def loss(self, micro: MicroBatch, output: Tensor, seen: Measurements) -> Tensor:
        settings, batch = self._settings, micro.batch
        ratios = _log_ratios(micro, output, self._layout)[0::2]
        good = batch.rewards[0::2] > 0
        losses = kto(
            ratios,
            self._point,
            good,
            beta=settings.beta,
            desirable_weight=settings.desirable_weight,
            undesirable_weight=settings.undesirable_weight,
        )
        rewards = settings.beta * ratios.detach()
        seen.add(
            desirable=good.sum(),
            undesirable=(~good).sum(),
            desirable_reward=rewards[good].sum(),
            undesirable_reward=rewards[~good].sum(),
            reference_point=self._point * len(good),
        )
        return losses.sum() / max(1, batch.denominator.sequences)

    def report(self, total: Mapping[str, float]) -> ObjectiveReport:
        good, bad = total["desirable"], total["undesirable"]
        return {
            "numbers": {
                "desirable_reward": total["desirable_reward"] / max(1.0, good),
                "undesirable_reward": total["undesirable_reward"] / max(1.0, bad),
                "kto_reference_point": total["reference_point"] / max(1.0, good + bad),
            }
        }


def _log_ratios(micro: MicroBatch, output: Tensor, layout: Layout) -> Tensor:
    """Log-probability of each sequence's trained tokens under the policy less the reference's [S]."""
    logprobs, _ = token_logprobs(output, micro.batch, 1.0, layout.tp)
    return _sums(micro, logprobs)


def _sums(micro: MicroBatch, logprobs: Tensor) -> Tensor:
    batch = micro.batch
    if batch.ref_sums is not None:
        return sequence_sums(logprobs, batch.loss_mask, batch.cu_seqlens) - batch.ref_sums
    return sequence_sums(logprobs - known(micro.ref_logprobs), batch.loss_mask, batch.cu_seqlens)

"""One step's optimizer updates on one rank."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from yatt.algorithm.packed import sequence_sums
from yatt.algorithm.preference import PAIR_LOSSES
from yatt.config.schema import Config
from yatt.reports import Probed, UpdateReport
from yatt.training.batch import MicroBatch, Update, merge, pack, token_logprobs, token_values
from yatt.training.images import Eyes
from yatt.training.layout import Layout
from yatt.training.measure import Measurements
from yatt.training.model import Learner, Model
from yatt.training.objective import Labels, Likelihood, Objective, Preference, Scoring
from yatt.training.probe import likeliest, probe_tokens
from yatt.training.reinforce import Reinforcement
from yatt.types import Denominator, Pair, Sample, SampleKey, Share

# By the loss of the algorithm's recipe; the others reinforce.
OFFLINE: dict[str, Callable[[Config, Layout], Objective]] = {
    "likelihood": Likelihood,
    "bradley_terry": Scoring,
    **dict.fromkeys(PAIR_LOSSES, Preference),
    "kto": Labels,
}
SUMS = ("loss", "tokens")


class Training:
    """The models of a run on one rank, and how a step trains them: first what the models as they are say of the step's
    samples, then the critic's updates, then the policy's. With `train.offload` only the one at work is on the device.
    """

    def __init__(
        self,
        config: Config,
        layout: Layout,
        objective: Objective,
        policy: Learner,
        *,
        reference: Model | None = None,
        teacher: Model | None = None,
        critic: Learner | None = None,
        eyes: Eyes | None = None,
    ) -> None:
        """`eyes` are there where the policy sees."""
        self.config, self.layout, self.objective, self.policy = config, layout, objective, policy
        self.reference, self.teacher, self.critic, self._eyes = reference, teacher, critic, eyes

    @property
    def models(self) -> list[Model]:
        """All models there are."""
        every = (self.policy, self.reference, self.teacher, self.critic)
        return [model for model in every if model is not None]

    def update(self, shares: Sequence[Share]) -> UpdateReport:
        """Every update of the step. Collective over all ranks, each with the shares of its data-parallel rank."""
        epochs, warmup = self.config.train.epochs_per_step, self.config.critic.warmup_steps
        warming = self.critic is not None and shares[0].step <= warmup
        updates, seen = self._begin(shares, epochs, ask=warming)
        every = [update for update in updates if update.denominator.tokens] * epochs
        norms, rate = [], 0.0
        numbers = {} if self.critic is None else self._teach_critic(every, seen)
        with self.policy.aboard():
            for update in () if warming else every:
                with seen.timed("forward_backward"):
                    self.policy.learn(update.micro_batches, lambda micro, output: self._loss(micro, output, seen))
                with seen.timed("optimizer"):
                    rate = self.policy.rate
                    norms.append(self.policy.step())
        total = seen.total()
        if isinstance(self.objective, Reinforcement):
            numbers |= self.objective.critic_numbers(total, len(every)) if self.critic is not None else {}
        report = UpdateReport(
            **self._report(total, seen, len(norms), numbers),
            grad_norm=mean_norm(norms),
            learning_rate=rate,
            skipped_updates=sum(not applied for _, applied in norms),
        )
        if isinstance(self.objective, Reinforcement):
            self.objective.adapt(total, sum(update.denominator.sequences for update in updates))
        return report

    def evaluate(self, shares: Sequence[Share]) -> UpdateReport:
        """The loss of samples under the weights as they are. Collective, as `update`."""
        updates, seen = self._begin(shares, 1)

        def evaluate(micro: MicroBatch, output: Tensor) -> None:
            self._loss(micro, output, seen)

        with self.policy.aboard(), seen.timed("forward"):
            for update in updates:
                self.policy.infer(update.micro_batches, evaluate)
        return UpdateReport(**self._report(seen.total(), seen, len(updates), {}), grad_norm=0.0, learning_rate=0.0)

    def reference_sums(self, shares: Sequence[Share]) -> dict[int, tuple[float, float]]:
        """By uid, how likely the reference finds the trained tokens of both sequences of a pair: sums of
        log-probabilities, on the last pipeline stage. Without a model of its own it is the policy, as it is now.
        Collective over all ranks."""
        judge, by_uid = self.reference or self.policy, dict[int, tuple[float, float]]()
        every = [micro for update in self._pack(shares) for micro in update.micro_batches]
        parts = [samples for _, micro_batches in merge(shares) for samples in micro_batches]
        uids = {id(micro): [sample.key.uid for sample in samples] for micro, samples in zip(every, parts, strict=True)}

        def keep(micro: MicroBatch, logits: Tensor) -> None:
            batch = micro.batch
            logprobs, _ = token_logprobs(logits, batch, self.objective.temperature, self.layout.tp)
            sums = sequence_sums(logprobs, batch.loss_mask, batch.cu_seqlens).view(-1, 2).tolist()
            by_uid.update(zip(uids[id(micro)], map(tuple, sums), strict=True))

        with judge.aboard():
            judge.infer(every, keep)
        return by_uid

    def probe(self) -> Probed | None:
        """What the policy, as it is, makes of fixed tokens; on the last pipeline stage. Collective over all ranks."""
        tokens, found = probe_tokens(self.config), list[float]()
        sample = Sample(key=SampleKey(-1, 0), tokens=tokens, loss_mask=np.ones(len(tokens), dtype=bool))
        micro = self._packed([sample], Denominator(tokens=len(tokens), sequences=1))

        def keep(micro: MicroBatch, logits: Tensor) -> None:
            found.extend(likeliest(logits[0, : len(tokens)], self.layout.tp).tolist())

        with self.policy.aboard():
            self.policy.infer([micro], keep)
        return Probed(tuple(tokens.tolist()), tuple(found)) if found else None

    def forget_reference(self) -> None:
        """All it had to say is known: free its memory."""
        self.reference = None

    def _begin(self, shares: Sequence[Share], epochs: int, *, ask: bool = False) -> tuple[list[Update], Measurements]:
        """The step's micro-batches, with all that is to be known of them before the first update. With `ask`, what the
        policy says of them whether or not the objective needs it: the gap to the sampler is told in any case."""
        seen = Measurements(self.layout, (*SUMS, *self.objective.sums))
        with seen.timed("pack"):
            updates = self._pack(shares)
        every = [micro for update in updates for micro in update.micro_batches]
        if self.reference is not None:
            self._annotate(self.reference, every, "ref_logprobs", "reference", seen)
        if self.teacher is not None:
            self._annotate(self.teacher, every, "teacher_logprobs", "teacher", seen)
        if ask or self.objective.asks_policy(len(updates) * epochs):
            self._annotate(self.policy, every, "old_logprobs", "old_logprobs", seen)
        if self.critic is not None:
            with seen.timed("values"), self.critic.aboard():
                self.critic.infer(every, _keep_values)
        with seen.timed("advantages"):
            if self.layout.last_stage:
                self.objective.prepare(every, seen)
        return updates, seen

    def _packed(self, samples: Sequence[Sample | Pair], total: Denominator) -> MicroBatch:
        multiple = self.layout.tp.size() if self.config.train.sequence_parallel else 1
        return pack(samples, total, self.layout.device, multiple, self._eyes)

    def _pack(self, shares: Sequence[Share]) -> list[Update]:
        updates = [
            Update([self._packed(samples, total) for samples in micro_batches], total)
            for total, micro_batches in merge(shares)
        ]
        if self._eyes is not None:
            self._eyes.forget()
        return updates

    def _annotate(
        self, network: Model, micro_batches: list[MicroBatch], column: str, part: str, seen: Measurements
    ) -> None:
        """Set `column` of each micro-batch to this model's logprobs, on the last pipeline stage."""
        temperature = self.objective.temperature

        def keep(micro: MicroBatch, logits: Tensor) -> None:
            setattr(micro, column, token_logprobs(logits, micro.batch, temperature, self.layout.tp)[0])

        with seen.timed(part), network.aboard():
            network.infer(micro_batches, keep)

    def _loss(self, micro: MicroBatch, output: Tensor, seen: Measurements) -> Tensor:
        loss = self.objective.loss(micro, output, seen)
        seen.add(loss=loss, tokens=micro.trained)
        return loss

    def _teach_critic(self, updates: Sequence[Update], seen: Measurements) -> dict[str, float]:
        """The critic's updates of the step; returns what is known of them here."""
        assert self.critic is not None and isinstance(self.objective, Reinforcement)
        objective, norms, rate = self.objective, [], 0.0
        with seen.timed("critic"), self.critic.aboard():
            for update in updates:
                self.critic.learn(update.micro_batches, lambda m, output: objective.critic_loss(m, output, seen))
                rate = self.critic.rate
                norms.append(self.critic.step())
        return {"critic_grad_norm": mean_norm(norms), "critic_learning_rate": rate}

    def _report(
        self, total: Mapping[str, float], seen: Measurements, updates: int, numbers: Mapping[str, float]
    ) -> dict[str, Any]:
        """Fields of UpdateReport, from the step's sums."""
        of_objective = self.objective.report(total)
        return {
            **of_objective,
            "loss": total["loss"] / max(1, updates),
            "trained_tokens": int(total["tokens"]),
            "numbers": {**of_objective.get("numbers", {}), **numbers},
            "seconds": seen.seconds,
        }


def mean_norm(norms: Sequence[tuple[float, bool]]) -> float:
    """The mean of the gradient norms that are finite; not a number where none is, 0 where there was no update."""
    finite = [norm for norm, _ in norms if math.isfinite(norm)]
    return sum(finite) / len(finite) if finite else (math.nan if norms else 0.0)


def open_objective(config: Config, layout: Layout) -> Objective:
    """The objective of the algorithm."""
    recipe = config.algorithm.recipe
    return Reinforcement(config, layout) if recipe.reinforces else OFFLINE[recipe.loss](config, layout)


def _keep_values(micro: MicroBatch, output: Tensor) -> None:
    micro.values = token_values(output, micro.batch)

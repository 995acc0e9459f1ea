"""The losses of a policy that learns from responses of its own, and of its critic."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypedDict

import torch
import torch.distributed as dist
from torch import Tensor

from yatt.algorithm import correction
from yatt.algorithm.kl import AdaptiveCoefficient, kl
from yatt.algorithm.load import load_loss, load_token_estimator
from yatt.algorithm.loss import divisor, policy_loss, to_scalar, value_loss
from yatt.algorithm.token_advantage import TokenOutcomes, token_rewards, whiten
from yatt.config.algorithms import TOKEN_ADVANTAGES
from yatt.config.schema import Config, truncates
from yatt.training.batch import MicroBatch, known, token_logprobs, token_values
from yatt.training.layout import Layout
from yatt.training.measure import Measurements
from yatt.training.model import Head
from yatt.training.objective import ObjectiveReport


class _Shape(TypedDict):
    aggregate: str
    max_tokens: int
    denominator: float


class Reinforcement:
    """A policy gradient. Advantages that are worked out per token are made here, over the whole step at once."""

    head: Head = "tokens"
    sums: tuple[str, ...] = (
        *("entropy", "clipped", "kl_ref", "measured", "kl", "gap", "fresh", "fresh_gap", "penalty", "prepared"),
        *("advantage", "advised"),
        *("weight", "squared_weight", "corrected"),
        *("critic_loss", "critic_tokens", "critic_clipped"),
        *("valued", "returns", "squared_returns", "squared_errors"),
    )

    def __init__(self, config: Config, layout: Layout) -> None:
        """Raises ConfigError where a function of the user's cannot be loaded."""
        self._config, self._settings, self._layout = config, config.algorithm, layout
        per_token = config.algorithm.recipe.advantage in TOKEN_ADVANTAGES
        self._estimate = load_token_estimator(config.algorithm) if per_token else None
        self._kind = load_loss(config.algorithm)
        penalty = config.algorithm.kl
        self.coefficient = AdaptiveCoefficient(penalty.coefficient, penalty.target, penalty.horizon)
        # The sampler's logprobs are those of its tempered distribution, so the trainer's are too.
        self.temperature = config.rollout.temperature or 1.0
        # Those of a truncated distribution are another thing than the trainer's, of all tokens.
        self._comparable = not truncates(config.rollout)

    def asks_policy(self, updates: int) -> bool:
        own = self._estimate is not None and self._settings.advantage is not None
        return updates > 1 or self._penalised or self._settings.recipe.teacher or own

    @property
    def _penalised(self) -> bool:
        return self._settings.kl.place == "reward" and self._settings.kl.coefficient > 0

    def prepare(self, micro_batches: Sequence[MicroBatch], seen: Measurements) -> None:
        """Compare with the sampler, and make the step's advantages."""
        for micro in micro_batches:
            if micro.old_logprobs is not None:
                self._compare(micro, micro.old_logprobs, seen)
        advantages, returns = self._advantages(micro_batches, seen)
        sizes = [len(micro.batch.tokens) for micro in micro_batches]
        for micro, column in zip(micro_batches, advantages.split(sizes), strict=True):
            micro.advantages = column
            seen.add(advantage=column[micro.batch.loss_mask].double().abs().sum(), advised=micro.trained)
        if returns is not None:
            for micro, column in zip(micro_batches, returns.split(sizes), strict=True):
                micro.returns = column
        if "critic" in self._settings.loads:
            self._valued(micro_batches, seen)

    def _advantages(self, micro_batches: Sequence[MicroBatch], seen: Measurements) -> tuple[Tensor, Tensor | None]:
        """Of all the micro-batches end to end [T]: advantages, and returns for a critic to learn."""
        settings, device = self._settings, self._layout.device

        def joined(column: Callable[[MicroBatch], Tensor | None]) -> Tensor:
            parts = [known(column(micro)) for micro in micro_batches]
            return torch.cat(parts) if parts else torch.zeros(0, device=device)

        def zeros(micro: MicroBatch) -> Tensor:
            return micro.batch.rewards.new_zeros(len(micro.batch.tokens))

        mask = joined(lambda m: m.batch.loss_mask).bool()
        lengths = joined(lambda m: m.batch.cu_seqlens.diff()).long()
        bounds = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        advantages, returns = joined(lambda m: m.batch.advantages), None
        if self._estimate is not None and micro_batches:
            first, penalty = micro_batches[0], None
            old = None if first.old_logprobs is None else joined(lambda m: m.old_logprobs)
            if self._penalised:
                distance = kl(known(old), joined(lambda m: m.ref_logprobs), settings.kl.kind)
                seen.add(penalty=distance[mask].sum(), prepared=mask.sum())
                penalty = self.coefficient.value * distance
            early = None
            if any(micro.batch.turn_rewards is not None for micro in micro_batches):
                early = joined(lambda m: zeros(m) if m.batch.turn_rewards is None else m.batch.turn_rewards)
            outcomes = TokenOutcomes(
                token_rewards=token_rewards(joined(lambda m: m.batch.rewards), mask, bounds, penalty, early),
                loss_mask=mask,
                cu_seqlens=bounds,
                values=None if first.values is None else joined(lambda m: m.values),
                old_logprobs=old,
                teacher_logprobs=None if first.teacher_logprobs is None else joined(lambda m: m.teacher_logprobs),
            )
            advantages, returns = self._estimate(outcomes, settings)
        return self._whitened(advantages, mask, lengths).float(), returns

    def _whitened(self, advantages: Tensor, mask: Tensor, lengths: Tensor) -> Tensor:
        """Brought to mean 0 and deviation 1 over the tokens, or the sequences, of the step. Collective."""
        if self._settings.whiten == "tokens":
            return whiten(advantages, mask, total=self._total)
        if self._settings.whiten == "none":
            return advantages
        ids = torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)
        trained = torch.zeros(len(lengths), device=lengths.device).index_add(0, ids, mask.float())
        sums = trained.new_zeros(len(lengths)).index_add(0, ids, advantages * mask)
        return whiten(sums / trained.clamp(min=1), trained > 0, total=self._total)[ids]

    def _total(self, values: Tensor) -> Tensor:
        values = values.clone()
        dist.all_reduce(values, group=self._layout.dp)
        return values

    def loss(self, micro: MicroBatch, output: Tensor, seen: Measurements) -> Tensor:
        settings, batch = self._settings, micro.batch
        mask, trained = batch.loss_mask, micro.trained
        logprobs, entropy = token_logprobs(output, batch, self.temperature, self._layout.tp)
        old = logprobs.detach() if micro.old_logprobs is None else micro.old_logprobs
        if micro.old_logprobs is None:
            self._compare(micro, old, seen)
        result = policy_loss(
            logprobs,
            old,
            micro.advantages,
            mask,
            batch.cu_seqlens,
            kind=self._kind,
            clip_low=settings.clip_low,
            clip_high=settings.clip_high,
            dual_clip=settings.dual_clip,
            tau_positive=settings.tau_positive,
            tau_negative=settings.tau_negative,
            weights=self._weights(micro, old, seen),
            **self._shape(micro),
        )
        seen.add(entropy=entropy[mask].sum(), clipped=result.clip_fraction * trained)
        value = result.loss
        if settings.entropy:
            value = value - settings.entropy * self._aggregate(entropy, micro)
        if micro.ref_logprobs is not None:
            seen.add(kl_ref=kl(logprobs.detach(), micro.ref_logprobs, "k3")[mask].sum())
            if settings.kl.place == "loss":
                distance = kl(logprobs, micro.ref_logprobs, settings.kl.kind)
                value = value + settings.kl.coefficient * self._aggregate(distance, micro)
        return value

    def _compare(self, micro: MicroBatch, logprobs: Tensor, seen: Measurements) -> None:
        """How far these logprobs are from the sampler's, on trained tokens."""
        batch, mask = micro.batch, micro.batch.loss_mask
        if batch.rollout_logprobs is None or batch.fresh is None or not (micro.trained and self._comparable):
            return
        sampled, computed = batch.rollout_logprobs[mask], logprobs[mask]
        gap, fresh = (computed - sampled).abs(), batch.fresh[mask]
        seen.add(measured=len(gap), gap=gap.sum(), kl=kl(sampled, computed, "k3").sum())
        seen.add(fresh=fresh.sum(), fresh_gap=gap[fresh].sum())
        seen.gap(gap.max())

    def critic_loss(self, micro: MicroBatch, output: Tensor, seen: Measurements) -> Tensor:
        """As `loss`, of the critic's values."""
        batch, clip = micro.batch, self._config.critic.value_clip
        values = token_values(output, batch)
        mask, bounds = batch.loss_mask, batch.cu_seqlens
        old, returns = known(micro.values), known(micro.returns)
        result = value_loss(values, old, returns, mask, bounds, clip=clip, **self._shape(micro))
        clipped = result.clip_fraction * micro.trained
        seen.add(critic_loss=result.loss, critic_clipped=clipped, critic_tokens=micro.trained)
        return result.loss

    def _shape(self, micro: MicroBatch) -> _Shape:
        """How token losses become one number."""
        kind = self._settings.aggregate
        denominator = divisor(kind, micro.batch.denominator)
        return _Shape(aggregate=kind, max_tokens=self._config.rollout.max_tokens, denominator=denominator)

    def _aggregate(self, values: Tensor, micro: MicroBatch) -> Tensor:
        kind, batch = self._settings.aggregate, micro.batch
        longest, denominator = self._config.rollout.max_tokens, divisor(kind, batch.denominator)
        return to_scalar(values, batch.loss_mask, batch.cu_seqlens, kind, longest, denominator)

    def _weights(self, micro: MicroBatch, old: Tensor, seen: Measurements) -> Tensor | None:
        """Factors of the tokens' losses that correct for the sampler's probabilities, which are not quite the
        trainer's."""
        rule, batch = self._settings.correction, micro.batch
        if rule.level == "none" or batch.rollout_logprobs is None:
            return None
        weights = correction.weights(
            old,
            batch.rollout_logprobs,
            batch.loss_mask,
            batch.cu_seqlens,
            level=rule.level,
            mode=rule.mode,
            low=rule.low,
            high=rule.high,
        )
        inside = weights[batch.loss_mask]
        corrected = (inside != 1).sum()
        seen.add(weight=inside.sum(), squared_weight=inside.square().sum(), corrected=corrected)
        return weights

    def _valued(self, micro_batches: Sequence[MicroBatch], seen: Measurements) -> None:
        """How well the critic's values foretell the returns: squares of both about the means of the step. Collective
        over the replicas."""
        nothing = torch.zeros(0, dtype=torch.float64, device=self._layout.device)
        columns = [(known(m.returns)[m.batch.loss_mask], known(m.values)[m.batch.loss_mask]) for m in micro_batches]
        returns = torch.cat([nothing, *(column.double() for column, _ in columns)])
        errors = returns - torch.cat([nothing, *(column.double() for _, column in columns)])
        own = torch.stack([returns.new_tensor(len(returns)), returns.sum(), errors.sum()])
        count, *sums = self._total(own)
        squares = [(part - added / count).square().sum() for part, added in zip((returns, errors), sums, strict=True)]
        seen.add(valued=own[0], returns=own[1])
        if len(returns):
            seen.add(squared_returns=squares[0], squared_errors=squares[1])

    def report(self, total: Mapping[str, float]) -> ObjectiveReport:
        tokens, measured = max(1.0, total["tokens"]), total["measured"] or math.nan
        return {
            "entropy": total["entropy"] / tokens,
            "kl": total["kl"] / measured,
            "kl_ref": total["kl_ref"] / tokens,
            "clip_fraction": total["clipped"] / tokens,
            "rollout_gap_max": total["gap_max"] if total["measured"] else math.nan,
            "rollout_gap_mean": total["gap"] / measured,
            "fresh_gap_mean": total["fresh_gap"] / (total["fresh"] or math.nan),
            "fresh_tokens": int(total["fresh"]),
            "numbers": self._numbers(total, tokens),
        }

    def critic_numbers(self, total: Mapping[str, float], updates: int) -> dict[str, float]:
        """Of a step with so many updates of the critic."""
        tokens = max(1.0, total["critic_tokens"])
        return {
            "critic_loss": total["critic_loss"] / max(1, updates),
            "value_clip_fraction": total["critic_clipped"] / tokens,
        }

    def adapt(self, total: Mapping[str, float], responses: int) -> None:
        """Once per step: move the coefficient of the KL towards its target."""
        if self._penalised and total["prepared"]:
            self.coefficient.update(total["penalty"] / total["prepared"], responses)

    def _numbers(self, total: Mapping[str, float], tokens: float) -> dict[str, float]:
        numbers = {"advantage_abs": total["advantage"] / total["advised"]} if total["advised"] else {}
        if self._penalised:
            numbers |= {"kl_reward": total["penalty"] / max(1.0, total["prepared"])}
            numbers |= {"kl_coefficient": self.coefficient.value}
        if self._settings.correction.level != "none":
            numbers |= {"correction_weight": total["weight"] / tokens, "corrected": total["corrected"] / tokens}
            # (sum w)^2 / (n sum w^2): the effective sample size as a share of the tokens (Kong 1992).
            squares = tokens * total["squared_weight"]
            numbers |= {"effective_share": total["weight"] ** 2 / squares if squares > 0 else 0.0}
        if (valued := total["valued"]) > 0:
            of_errors, of_returns = total["squared_errors"], total["squared_returns"]
            numbers |= {"explained_variance": 1 - of_errors / of_returns if of_returns > 0 else 0.0}
            numbers |= {"return_mean": total["returns"] / valued}
        return numbers

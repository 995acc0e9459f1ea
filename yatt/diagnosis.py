"""Finds faults of a run in its own numbers: an engine and a trainer that are not one model, steps that teach
nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from yatt.config.schema import Config
from yatt.reports import EvaluationReport, RolloutCounts, StepReport, first_failures

ROUNDING = {"float32": 1e-3, "bfloat16": 0.25}
"""The mean gap of log-probabilities, under one set of weights, that rounding does not reach. Measured between an engine
and the trainer: about 1e-5 in float32; in bfloat16 0.05, and 0.5 for the worst token. Two models are 1 and more
apart."""
ENOUGH = 16
"""Tokens whose mean gap is a good one; that of fewer may be larger, by the square root."""
TENFOLD = 10.0
NOISE = 1e-6
"""Advantages below it, of rewards that are equal up to rounding, are what the rounding left."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """The faults that a step's numbers show. `warnings` are for the user. `broken` ends the run at once: its weights
    are not worth keeping. `idle` ends it too, with a checkpoint."""

    warnings: tuple[str, ...] = ()
    broken: str | None = None
    idle: str | None = None


class Diagnosis:
    """Looks at every step of a run, in their order."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._gap, self._idle = GapAlarm(config), IdleSteps(config)
        self._failed = False

    def look(self, report: StepReport) -> Findings:
        idle, ending = self._idle.look(report)
        warnings = list(lacks(report, self._config, failures=not self._failed)) if idle is None else [idle]
        self._failed |= report.counts is not None and report.counts.reward_failures > 0
        gap, stops = self._gap.look(report)
        if gap is not None and not stops:
            warnings.append(gap)
        return Findings(warnings=tuple(warnings), broken=gap if stops else None, idle=ending)


class GapAlarm:
    """An engine and a trainer are one model in two programs: tokens sampled from the very weights the trainer has
    (`UpdateReport.fresh_gap_mean`) have log-probabilities that differ by rounding. The first step shows whether the two
    read the model's folder alike, as does the first after a resume; later ones whether all weights reach the engine."""

    def __init__(self, config: Config) -> None:
        self._config = config
        # Logits are divided by the temperature, and their rounding with them.
        self._bound = ROUNDING[config.model.dtype] / (config.rollout.temperature or 1.0)
        self._tokens, self._gaps = 0, 0.0
        self._level: float | None = None  # tenfold of it is said
        self._lost = False

    def look(self, report: StepReport) -> tuple[str | None, bool]:
        """A warning about the step, if any, and whether it ends the run."""
        gap, tokens = report.update.fresh_gap_mean, report.update.fresh_tokens
        if not tokens:
            return None, False
        if self._level is None:
            return self._first(report.step, gap, tokens)
        lost, self._lost = self._lost, not math.isfinite(gap)
        if lost if self._lost else gap <= TENFOLD * self._level * _waver(tokens):
            return None, False
        grown = f"step {report.step}: {_apart(gap, tokens)}, where it was {self._level:.2g}: do all weights reach it?"
        self._level = self._level if self._lost else gap
        return grown, False

    def _first(self, step: int, gap: float, tokens: int) -> tuple[str | None, bool]:
        """Until enough tokens were seen, the mean is of all of them."""
        self._tokens += tokens
        self._gaps += gap * tokens
        mean = self._gaps / self._tokens
        self._lost = not math.isfinite(mean)
        right = mean <= self._bound * _waver(self._tokens)
        if not right or self._tokens >= ENOUGH:
            self._level = self._bound if self._lost else max(mean, self._bound / TENFOLD)
        return (None, False) if right else (self._explained(step, mean), self._config.rollout.engine_gap == "stop")

    def _explained(self, step: int, gap: float) -> str:
        config = self._config
        goes_on = "; rollout.engine_gap=warn goes on all the same" if config.rollout.engine_gap == "stop" else ""
        return (
            f"step {step}: {_apart(gap, self._tokens)}, where rounding in {config.model.dtype} stays under "
            f"{self._bound:.3g}: they are not the same model. Most often the two read model.path={config.model.path} "
            "differently (tied embeddings, rope, norms, quantised weights; transformers says what is right), or "
            f"rollout.engine_args changes the engine's model{goes_on}"
        )


def _apart(gap: float, tokens: int) -> str:
    how = f"are {gap:.3g} apart on average" if math.isfinite(gap) else "are not all finite numbers"
    return f"the engine's and the trainer's log-probabilities of {tokens} tokens, under the same weights, {how}"


def _waver(tokens: int) -> float:
    """How much larger a mean of so few may be."""
    return math.sqrt(max(1.0, ENOUGH / tokens))


class IdleSteps:
    """Steps that teach nothing, and when there have been enough of them in a row."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._idle = 0
        self._failures: tuple[str, ...] = ()

    def look(self, report: StepReport) -> tuple[str | None, str | None]:
        """Why a step taught nothing, None where it did teach something; and why the run has to end, where it has to:
        after `train.idle_steps` in a row, or where no step of a whole run did better."""
        cause = why_idle(report, self._config)
        if cause is None:
            self._idle, self._failures = 0, ()
            return None, None
        self._idle += 1
        if report.counts is not None:
            self._failures = first_failures((*self._failures, *report.counts.failures))
        most, last = self._config.train.idle_steps, report.step == self._config.train.steps
        warning = f"step {report.step} {cause}{_told(self._failures)}"
        if not most or not (self._idle >= most or (last and self._idle == report.step)):
            return warning, None
        row = f"{self._idle} steps in a row taught nothing" if self._idle > 1 else "the run taught nothing"
        return warning, f"{row}: {warning}; train.idle_steps={most} ends the run for it, 0 never does"


def why_idle(report: StepReport, config: Config) -> str | None:
    """Why a step teaches nothing, the first cause first; None where it taught something."""
    counts, update = report.counts, report.update
    if counts is not None and not counts.groups:
        late = f", {counts.reward_timeouts} of them out of time" if counts.reward_timeouts else ""
        if counts.responses and not counts.scored:
            return f"has no reward: all {counts.reward_failures} failed{late}"
        return f"has no group to train on: {why_missing(report, config)}"
    norm, rate, tokens = update.grad_norm, update.learning_rate, update.trained_tokens
    if config.algorithm.recipe.critic and report.step <= config.critic.warmup_steps:  # only the critic is to learn
        norm, rate = (update.numbers.get(name, 0.0) for name in ("critic_grad_norm", "critic_learning_rate"))
        tokens = int("advantage_abs" in update.numbers)
    if not tokens:
        return f"trains on no token: {_no_token(counts)}"
    if math.isnan(norm):
        return "skips every update: no gradient is finite"
    if not norm:
        return f"learns nothing: {_no_gradient(report, config)}"
    if not rate:
        return "learns nothing: the learning rate is 0"
    if counts is None or config.algorithm.kl.coefficient or config.algorithm.entropy or config.algorithm.loss:
        return None
    equal = _flat(report, config) or (equal_rewards(counts) if _same(counts) and _only_rewards(config) else None)
    return equal and f"learns nothing: {equal}"


def _no_token(counts: RolloutCounts | None) -> str:
    if counts is None:
        return "no row has one behind its prompt"
    if counts.masked:
        return f"all {counts.masked} responses were cut off (algorithm.overlong=mask)"
    return "every response is empty"


def _no_gradient(report: StepReport, config: Config) -> str:
    counts, numbers = report.counts, report.update.numbers
    if counts is None:
        return "the gradient is 0"
    if not numbers.get("advantage_abs"):
        why = "the teacher and the policy agree" if config.algorithm.recipe.teacher else "though rewards differ"
        return _flat(report, config) or f"every advantage is 0, {why}"
    if config.algorithm.correction.level != "none" and not numbers.get("correction_weight", 1.0):
        return "algorithm.correction gives every token the weight 0"
    return "the gradient is 0, though advantages are not"


def _flat(report: StepReport, config: Config) -> str | None:
    """Says that rewards make no advantage, where that is so."""
    if report.counts is None or config.algorithm.recipe.teacher:
        return None
    return equal_rewards(report.counts) if report.update.numbers.get("advantage_abs", 0.0) < NOISE else None


def equal_rewards(counts: RolloutCounts) -> str | None:
    """Says that no reward differs from those it is compared with; None where one does."""
    if _same(counts):
        return f"all rewards of every group are equal (all {counts.scored} are {counts.reward_min:g})"
    return "all rewards of every group are equal" if counts.groups_equal == counts.groups else None


def _same(counts: RolloutCounts) -> bool:
    return counts.scored > 1 and counts.reward_min == counts.reward_max and not counts.groups_carried


def _only_rewards(config: Config) -> bool:
    """Whether advantages are of the rewards as they were given, and of no comparison with others."""
    algorithm = config.algorithm
    alone = algorithm.recipe.advantage in ("gae", "reinforce_plus_plus")
    return alone and algorithm.overlong != "penalty" and not (algorithm.length_penalty or algorithm.advantage)


def why_missing(report: StepReport, config: Config) -> str:
    """Why groups of the quota are missing."""
    assert report.counts is not None
    counts, rollout = report.counts, config.rollout
    filtered = counts.groups_dropped - counts.groups_unscored
    causes = [f"{counts.groups_unscored} were dropped for rewards that failed"] if counts.groups_unscored else []
    if filtered:
        equal = f" (all {counts.scored} rewards are {counts.reward_min:g})" if _same(counts) else ""
        causes.append(f"{filtered} were dropped by rollout.filter={rollout.filter}{equal}")
    bound = rollout.max_refills * (config.train.batch_size // report.controllers)
    if filtered and not _same(counts) and counts.refills >= bound:  # below it, no controller drew all that it may
        causes.append(f"rollout.max_refills={rollout.max_refills} allows no more prompts")
    elif not counts.groups_dropped:
        causes.append("no prompt is left")
    return " and ".join(causes)


def lacks(report: StepReport, config: Config, *, failures: bool) -> Iterator[str]:
    """Warnings about a step that taught something, but less than it should have; with `failures`, why rewards
    failed."""
    counts = report.counts
    if counts is None:
        return
    if counts.groups_missing:
        batch = config.train.batch_size
        yield f"step {report.step} trains on {counts.groups} of {batch} groups: {why_missing(report, config)}"
    if failures and counts.reward_failures:
        given = counts.reward_failures + counts.scored
        yield f"step {report.step}: {counts.reward_failures} of {given} rewards failed{_told(counts.failures)}"
    if "advantage_abs" in report.update.numbers and (equal := _flat(report, config)):
        yield f"step {report.step} learns nothing from rewards: {equal}"


def unscored(step: int, evaluation: EvaluationReport | None) -> str | None:
    """Says that an evaluation measured nothing, where that is so."""
    if evaluation is None or not evaluation.failures:
        return None
    if evaluation.accuracy_greedy is not None or evaluation.accuracy_sampled is not None:
        return None
    return f"step {step}: nothing could be evaluated, all {evaluation.failures} rewards of held-out responses failed"


def _told(failures: tuple[str, ...]) -> str:
    """The texts of rewards that failed, to put at an end."""
    return f"; the first failures: {'; '.join(map(repr, failures))}" if failures else ""

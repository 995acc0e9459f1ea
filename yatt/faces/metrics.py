"""One flat row of numbers per step: what `metrics.jsonl`, the trackers, the terminal and the report show."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from yatt.histogram import quantile
from yatt.reports import EvaluationReport, Incident, PhaseSpan, RolloutCounts, StepReport, UpdateReport, in_step

WORK_PHASES = ("rollout", "reward", "train", "sync")
OF_THE_STEP = ("step", "epoch", "policy_version", "controllers", "generators", "seconds", "bad_rows")
ASIDE_PHASES = ("evaluate", "checkpoint")
CONVERSATION = (
    *("conversations", "turns", "tool_calls", "tool_failures", "cache_hits", "outside_seconds", "forks", "ended_by"),
)
"""Counts of conversations, which only some runs have."""
NOT_SHOWN = ("_sum", "_sums", "_counts", "_deviations", "_lengths")


def metrics_row(
    report: StepReport,
    *,
    evaluation: EvaluationReport | None = None,
    driver_payload_bytes: int = 0,
    warnings: Sequence[str] = (),
    incidents: Sequence[Incident] = (),
) -> dict[str, Any]:
    """A step as one row. Rollout numbers are 0 where nothing was rolled out (offline algorithms), those of rewards null
    where none was given; accuracies, and what only some algorithms have, are there where they were measured.
    `warnings` are what was said of the step, `incidents` what died since the one before, and what was done about it.

    `tokens_per_s` counts response tokens (offline: trained tokens) over the whole step. `overhead` is the share of the
    step in which nobody was in one of `WORK_PHASES`; evaluating and saving are in neither. Times are in seconds.
    `response_lengths` are bins of a histogram (`yatt/histogram.py`): [smallest length, responses].
    """
    update = report.update
    counts = report.counts or RolloutCounts()
    tokens = counts.response_tokens if report.counts else update.trained_tokens
    row = {
        **{name: getattr(report, name) for name in OF_THE_STEP},
        **_rollout_numbers(counts),
        **update.numbers,
        **{name: value for name, value in asdict(update).items() if name not in ("seconds", "numbers")},
        "tokens_per_s": tokens / report.seconds if report.seconds > 0 else 0.0,
        "phases": dict(report.phases),
        "decisions": [{"at": d.at, "text": d.text, "slots": dict(d.slots)} for d in report.decisions],
        "overhead": overhead(report),
        "driver_payload_bytes": driver_payload_bytes,
        "warnings": list(warnings),
        "incidents": [asdict(incident) for incident in incidents],
    }
    return row | _evaluation_numbers(evaluation)


def first_row(
    evaluation: EvaluationReport | None, *, controllers: int, phases: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """The row of step 0, before anything was trained: the first evaluation, and zeros where there is nothing yet."""
    phases = dict(phases or {})
    report = StepReport(
        step=0,
        epoch=0.0,
        policy_version=0,
        controllers=controllers,
        counts=None,
        update=UpdateReport(loss=0.0, grad_norm=0.0, learning_rate=0.0),
        phases=phases,
        spans=(),
        seconds=sum(phases.values()),
    )
    return metrics_row(report, evaluation=evaluation) | {"overhead": 0.0}


def overhead(report: StepReport) -> float:
    """Share of the step outside generation, reward, training and weight sync: from the spans, else from the phases."""
    aside = _covered(report, ASIDE_PHASES)
    total = report.seconds - aside
    return min(1.0, max(0.0, 1 - _covered(report, WORK_PHASES) / total)) if total > 0 else 0.0


def _covered(report: StepReport, names: Sequence[str]) -> float:
    """Seconds of the step in which somebody was in one of these: an engine's or rank's spans may be of before it."""
    spans = [span for span in report.spans if _kind(span.name) in names]
    own = in_step(report.spans)
    if own:
        start, stop = min(span.start for span in own), max(span.stop for span in own)
        spans = [replace(s, start=max(s.start, start), stop=min(s.stop, stop)) for s in spans]
    return union(spans) if spans else sum(s for name, s in report.phases.items() if _kind(name) in names)


def _kind(name: str) -> str:
    return name.split("/")[0]


def union(spans: Iterable[PhaseSpan]) -> float:
    """Seconds in which at least one of the spans was open."""
    covered, end = 0.0, -math.inf
    for span in sorted(spans, key=lambda s: s.start):
        covered += max(0.0, span.stop - max(span.start, end))
        end = max(end, span.stop)
    return covered


def _rollout_numbers(counts: RolloutCounts) -> dict[str, Any]:
    responses = max(1, counts.responses)
    unplayed = () if counts.conversations else CONVERSATION
    sums = {name: n for name, n in asdict(counts).items() if not name.endswith(NOT_SHOWN) and name not in unplayed}
    return sums | {
        "reward_mean": counts.rewards.mean if counts.scored else None,
        "reward_std": math.sqrt(counts.rewards.variance) if counts.scored else None,
        "parts": counts.part_means,
        "response_length_mean": counts.response_tokens / responses,
        "response_length_p50": min(quantile(counts.response_lengths, 0.5), counts.longest_response),
        "response_length_p90": min(quantile(counts.response_lengths, 0.9), counts.longest_response),
        "response_lengths": sorted(counts.response_lengths.items()),
        "truncated": counts.truncated / responses,
    }


def _evaluation_numbers(evaluation: EvaluationReport | None) -> dict[str, Any]:
    if evaluation is None:
        return {}
    shown = {
        "accuracy_greedy": evaluation.accuracy_greedy,
        "accuracy_sampled": evaluation.accuracy_sampled,
        "held_out_loss": evaluation.loss,
        "held_out_pair_accuracy": evaluation.pair_accuracy,
    }
    details = {name: value for name, value in asdict(evaluation).items() if value is not None}
    details["pass_at_k"] = {str(k): share for k, share in evaluation.pass_at_k.items()}
    return {name: value for name, value in shown.items() if value is not None} | {"evaluation": details}

"""Fits costs to a run with judges. Its phases say little, for roles work side by side in them: each role's costs are
fitted to what its own engines did when, as the timeline has it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from statistics import fmean

from yatt.config.facts import parameters
from yatt.config.schema import Config, JudgeConfig, RolloutConfig
from yatt.controller.assembly import running
from yatt.errors import ConfigError
from yatt.placement.plan import POLICY, TRAINER, Role
from yatt.reports import PhaseSpan
from yatt.simulation.calibrate import FEWEST, Row, steps_of, workload
from yatt.simulation.costs import ControllerCosts, Costs, EngineCosts, JudgeCosts, Lengths, ScorerCosts, TrainerCosts
from yatt.simulation.fit import PhaseFit, fitted

Spans = Mapping[int, Sequence[PhaseSpan]]
"""Of each step."""
ENGINE = {"steps": "decode step", "tokens": "sampled token", "read": "prompt token"}
"""The counts of an engine's spans that its time goes by -> their names in a fit."""
UNSEEN = (
    "seconds per KV token read: inside a decode step's and a token's",
    "seconds of rules, per message: inside the phases",
    "how a judge's answers spread: all of a step are taken to be as long as their mean",
    "KV cache size, link and storage bandwidth: not in a run's timeline",
)


def calibrate_judged(config: Config, rows: Sequence[Row], spans: Spans, *, source: str) -> tuple[Costs, list[PhaseFit]]:
    """Costs of a run from its settings, its metrics and its timeline.

    An engine's seconds are those of a decode step, of a token sampled and of a prompt token read; a rank's those of an
    update and of a token trained: never negative. What is done once a time is its mean: waking, loading, exporting.

    Raises ConfigError for a run too short, or one whose timeline does not say what the engines did.
    """
    steps = steps_of(rows, source)
    seen = {step: _once(held) for step, held in spans.items()}
    later = [span for step, held in seen.items() if step > steps[0]["step"] for span in held]
    settings: dict[Role, RolloutConfig | JudgeConfig] = {POLICY: config.rollout, **config.reward.served}
    fits = {role: _engine_fit(role, later, source) for role in settings}
    fits[TRAINER] = _trainer_fit(later, source)
    engines = {role: _engine(role, fits[role], later, config, held) for role, held in settings.items()}
    done = fits[TRAINER].terms
    costs = Costs(
        source=f"calibration of {source}",
        engine=engines[POLICY],
        trainer=TrainerCosts(
            per_token=done["trained token"],
            per_token_squared=0.0,
            per_update=done["fixed"] / config.train.updates_per_step,
            **{name: _mean(later, TRAINER, name) for name in ("offload", "onload", "export")},
        ),
        scorer=ScorerCosts(seconds=0.0),
        controller=ControllerCosts(
            per_response=0.0,
            per_step=fmean(sum(row["phases"].get(name, 0.0) for name in ("balance", "report")) for row in steps[1:]),
            link_latency=0.0,
        ),
        workload=workload(steps),
        judges={role: _judge(role, engine, seen, steps) for role, engine in engines.items() if role != POLICY},
    )
    return costs, list(fits.values())


def _once(spans: Iterable[PhaseSpan]) -> list[PhaseSpan]:
    """Of spans on several slots, one."""
    return list({(span.actor, span.name, span.start): span for span in spans}.values())


def _engine_fit(role: Role, spans: Sequence[PhaseSpan], source: str) -> PhaseFit:
    spent = [span for span in spans if (span.role, span.name) == (role, "sample") and span.counts.get("steps")]
    if len(spent) < FEWEST:
        raise ConfigError(
            f"{source}: the timeline has {len(spent)} stretches in which an engine of {role} sampled, with its decode "
            f"steps, after the first step; a fit takes at least {FEWEST}: run longer, or once more with this version"
        )
    work = [{name: float(span.counts.get(count, 0)) for count, name in ENGINE.items()} for span in spent]
    return fitted(f"{role}, sampling", [span.stop - span.start for span in spent], work)


def _trainer_fit(spans: Sequence[PhaseSpan], source: str) -> PhaseFit:
    updates = [span for span in spans if (span.role, span.name) == (TRAINER, "update")]
    if len(updates) < FEWEST:
        raise ConfigError(f"{source}: the timeline has {len(updates)} updates; a fit takes at least {FEWEST}")
    work = [{"trained token": float(span.counts["tokens"]), "fixed": 1.0} for span in updates]
    return fitted("update", [span.stop - span.start for span in updates], work)


def _mean(spans: Sequence[PhaseSpan], role: Role, name: str) -> float:
    """Seconds of what a role did under this name; 0 where it never did."""
    seconds = [span.stop - span.start for span in spans if (span.role, span.name) == (role, name)]
    return fmean(seconds) if seconds else 0.0


def _engine(
    role: Role, fit: PhaseFit, spans: Sequence[PhaseSpan], config: Config, settings: RolloutConfig | JudgeConfig
) -> EngineCosts:
    path = settings.path if isinstance(settings, JudgeConfig) else config.model.path
    sizes: dict[str, float] = {}
    with suppress(ConfigError):  # the folder may be gone, and only a weighted split goes by it
        sizes = parameters({role: path or ""})
    step, token, read = (fit.terms[name] for name in ENGINE.values())
    return EngineCosts(
        step=step,
        per_request=token,
        per_kv_token=0.0,
        prefill=read,
        load=_mean(spans, role, "load"),
        sleep=_mean(spans, role, "sleep"),
        wake=_mean(spans, role, "wake"),
        max_running=running(config, role),
        parameters=sizes.get(role, 0.0),
    )


def _judge(role: Role, engine: EngineCosts, seen: Spans, steps: Sequence[Row]) -> JudgeCosts:
    """Answers are of each step's mean length; what is read beyond the question and the response is the template."""
    samples = {step: [s for s in held if (s.role, s.name) == (role, "sample")] for step, held in seen.items()}
    every = _answered([span for held in samples.values() for span in held])
    means = [_answered(samples.get(row["step"], [])) or every for row in steps]
    read = sum(span.counts.get("read", 0) for held in samples.values() for span in held)
    judged = sum(span.counts["requests"] for held in samples.values() for span in held)
    shown = sum(row["prompt_tokens"] + row["response_tokens"] for row in steps) / sum(row["responses"] for row in steps)
    return JudgeCosts(
        engine=engine,
        answers=tuple(Lengths(median=mean, p99=mean) for mean in means),
        template_tokens=max(1, round(read / max(1, judged) - shown)),
    )


def _answered(samples: Sequence[PhaseSpan]) -> float:
    """Mean tokens of an answer; 0 where none ended."""
    requests = sum(span.counts["requests"] for span in samples)
    return max(1.0, sum(span.counts["tokens"] for span in samples) / requests) if requests else 0.0

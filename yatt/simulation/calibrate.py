"""Fits costs to a real run: what its steps took, as a function of what they had to do."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import NormalDist
from typing import Any

from yatt.config.schema import Config
from yatt.controller.assembly import responses_per_prompt, running
from yatt.errors import ConfigError
from yatt.placement.cost import served, shape_of, size_setting
from yatt.placement.plan import POLICY
from yatt.simulation.costs import (
    Z99,
    ControllerCosts,
    Costs,
    EngineCosts,
    Lengths,
    ScorerCosts,
    TrainerCosts,
    Workload,
)
from yatt.simulation.fit import PhaseFit, fitted

FEWEST = 4
"""Steps a fit needs, the first one not counted: it warms caches and kernels up."""

Row = Mapping[str, Any]


def calibrate(config: Config, rows: Sequence[Row], *, source: str, devices: int) -> tuple[Costs, list[PhaseFit]]:
    """Costs of a run without judges on `devices` devices, from its settings and the rows of its metrics.

    Rollout seconds are fixed + decode steps (the longest response) + tokens and KV reads of an engine's share; train
    seconds are fixed + tokens and squared tokens of a rank's share; coefficients are never negative. What cannot be
    split is put where it was spent: a rollout's fixed part into waking the engines (into loading, where they never
    sleep), a train phase's into the update, a sync's into loading.

    Raises ConfigError for a run without rollouts, or one too short.
    """
    steps = steps_of(rows, source)
    engines = max(1, devices // shape_of(config, POLICY).tensor_parallel)
    ranks = max(1, devices // (config.train.tp * config.train.pp))
    work = [_work(row, lengths_of(row), engines, ranks, responses_per_prompt(config)) for row in steps[1:]]
    seconds = [row["phases"] | {"rollout": _inside(row)} for row in steps[1:]]
    fits = {
        phase: fitted(phase, [s.get(phase, 0.0) for s in seconds], [{name: w[name] for name in names} for w in work])
        for phase, names in _TERMS.items()
    }
    rollout, train = fits["rollout"].terms, fits["train"].terms
    costs = Costs(
        source=f"calibration of {source}",
        engine=EngineCosts(
            step=rollout["decode step"],
            per_request=rollout["sampled token"],
            per_kv_token=rollout["KV token read"],
            wake=rollout["fixed"] if config.rollout.sleep else 0.0,
            load=fits["sync"].terms["fixed"] + (0.0 if config.rollout.sleep else rollout["fixed"]),
            max_running=running(config, POLICY),
        ),
        trainer=TrainerCosts(
            per_token=train["trained token"],
            per_token_squared=train["squared token"],
            per_update=train["fixed"] / config.train.updates_per_step,
        ),
        scorer=ScorerCosts(seconds=0.0),
        controller=ControllerCosts(
            per_response=0.0, per_step=fits["balance"].terms["fixed"] + fits["report"].terms["fixed"], link_latency=0.0
        ),
        workload=workload(steps),
    )
    return costs, list(fits.values())


def steps_of(rows: Sequence[Row], source: str) -> list[Row]:
    """The rows of steps with a rollout, the first of which a fit does not count. Raises ConfigError for too few."""
    steps = [row for row in rows if row["step"] > 0 and row.get("responses")]
    if len(steps) < FEWEST + 1:
        raise ConfigError(f"{source} has {len(steps)} steps with a rollout; a fit takes at least {FEWEST + 1}")
    return steps


def to_file(path: Path, costs: Costs, fits: Sequence[PhaseFit], config: Config) -> None:
    """Write costs as `plan.calibration` reads them, with the fit and the layout they hold for."""
    content = {"layout": _layout(config), "costs": costs.to_json(), "fit": [asdict(fit) for fit in fits]}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def from_file(path: str, config: Config) -> Costs:
    """Read `plan.calibration`. Raises ConfigError where it is missing, something else, or of another layout."""
    name, make = f"plan.calibration={path}", "write one with `yatt plan --calibrate RUN`"
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        layout, costs = content["layout"], Costs.from_json(content["costs"])
    except OSError as error:
        raise ConfigError(f"{name}: {error.strerror}; {make}") from None
    except (ValueError, TypeError, KeyError, ConfigError) as error:
        wrong = f": {error}" if isinstance(error, ConfigError) else ""
        raise ConfigError(f"{name} is not a calibration{wrong}; {make}") from None
    for setting, value in _layout(config).items():
        if layout.get(setting) != value:
            raise ConfigError(
                f"{name} was measured with {setting}={layout.get(setting)}, not {value}; {make} like this"
            )
    return costs


def _layout(config: Config) -> dict[str, int]:
    """The settings that costs per engine and per rank depend on."""
    return {
        "train.tp": config.train.tp,
        "train.pp": config.train.pp,
        **{size_setting(config, role): shape.tensor_parallel for role, shape in served(config).items()},
    }


_TERMS: dict[str, tuple[str, ...]] = {
    "rollout": ("decode step", "sampled token", "KV token read", "fixed"),
    "train": ("trained token", "squared token", "fixed"),
    "sync": ("fixed",),
    "balance": ("fixed",),
    "report": ("fixed",),
}
UNSEEN = (
    "seconds per prompt token, of scoring a response, of sleeping and offloading: inside the fixed parts",
    "KV cache size, link and storage bandwidth, what tools say to a policy in tokens: not in a run's metrics",
)


def workload(rows: Sequence[Row]) -> Workload:
    """The work of these steps: response lengths step by step, and means of the rest."""
    total = {name: sum(row.get(name, 0) for row in rows) for name in _COUNTED}
    groups = total["groups"] + total["groups_dropped"]
    return Workload(
        prompt_tokens=max(1, round(total["prompt_tokens"] / max(1, total["responses"]))),
        responses=tuple(lengths_of(row) for row in rows),
        equal_groups=total["groups_dropped"] / max(1, groups),
        image_bytes=round(total["media_bytes"] / max(1, groups)),
        **_turns(total),
    )


_COUNTED = (
    *("groups", "groups_dropped", "responses", "prompt_tokens", "media_bytes"),
    *("conversations", "turns", "outside_seconds"),
)


def _turns(total: Mapping[str, float]) -> dict[str, Any]:
    """Turns of a conversation, and the seconds between two: a lognormal of this mean whose 99th percentile is four
    times its median."""
    talks = total["conversations"]
    turns = round(total["turns"] / talks) if talks else 1
    if turns <= 1:
        return {}
    mean = total["outside_seconds"] / max(1, total["turns"] - talks)
    median = mean / math.exp((math.log(4) / Z99) ** 2 / 2)
    return {"turns": turns, "outside": Lengths(median=median, p99=4 * median) if median else None}


def _inside(row: Row) -> float:
    """Seconds of a rollout, less those that a conversation spent outside the engines in the mean."""
    rollout: float = row["phases"].get("rollout", 0.0)
    outside: float = row.get("outside_seconds", 0.0) / max(1, row.get("conversations", 0))
    return max(0.0, rollout - outside)


def lengths_of(row: Row) -> Lengths:
    """The lognormal whose mean and whose expected longest of N responses are the step's.

    With mean m = exp(mu + sigma^2 / 2) and longest L = exp(mu + z sigma), z the normal quantile at 1 - 1 / N:
    sigma^2 / 2 - z sigma + ln(L / m) = 0, of which the smaller root is taken.
    """
    mean, longest = max(1.0, row["response_length_mean"]), max(1.0, row["longest_response"])
    z = NormalDist().inv_cdf(1 - 1 / max(2, row["responses"]))
    sigma = z - math.sqrt(max(0.0, z * z - 2 * math.log(max(1.0, longest / mean))))
    median = mean * math.exp(-sigma * sigma / 2)
    return Lengths(median=median, p99=median * math.exp(Z99 * sigma))


def _work(row: Row, lengths: Lengths, engines: int, ranks: int, siblings: int) -> dict[str, float]:
    """The work of one step, per engine and per rank. Siblings share the KV tokens of their prompt."""
    mean, responses = row["response_length_mean"], row["responses"]
    prompt = row["prompt_tokens"] / responses
    square = mean * mean * math.exp(lengths.sigma**2)  # the lognormal's second moment
    trained = row["groups"] * responses / max(1, row["groups"] + row["groups_dropped"])
    return {
        "decode step": row["longest_response"],
        "sampled token": row["response_tokens"] / engines,
        "KV token read": responses * (prompt * mean / siblings + square / 2) / engines,
        "trained token": trained * (prompt + mean) / ranks,
        "squared token": trained * (prompt**2 + 2 * prompt * mean + square) / ranks,
        "fixed": 1.0,
    }

"""Conversations with tools: what waiting for them costs, simulated, and the memory of many at once.

    python -m benchmarks.conversations [--quick] [--json]

`idle`: the share of device-seconds in which neither an engine nor a rank works, on 64 simulated H20 with a 7B policy
(benchmarks.placement), of conversations of 4 turns, with tools that take 1 s in the median and 4 s in the 99th
percentile, and with ones that take none. `mode` colocated has no judge; in the others a 7B judge reads each
conversation. `hits` are turns that found their conversation's cache, of those that could. `memory` is that of a process
which plays 1,024 conversations at once, of 8 turns and 4,096 tokens each.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from statistics import fmean
from typing import Any

from benchmarks.common import main, significant
from benchmarks.placement import PROMPT, Case
from yatt.config.load import load_config
from yatt.config.schema import Config
from yatt.simulation.costs import Costs, Lengths
from yatt.simulation.simulate import SimulationReport, simulate

DEVICES, PROMPTS, TURNS, STEPS = 64, 2, 4, 3
TOOL = Lengths(median=1.0, p99=4.0)
SAID = 64  # tokens of a tool's answer
TALKS, TALK_TURNS, TURN_TOKENS, HEARD_TOKENS = 1024, 8, 256, 256


def world(mode: str, median: float, devices: int, tool: Lengths | None) -> tuple[Config, Costs]:
    case = Case(models="7B+7B", devices=devices, median=median, drifting=False, tail=4.0, steps=STEPS, prompts=PROMPTS)
    config, costs = case.world()
    longest = TURNS * (config.rollout.max_tokens + SAID) + PROMPT
    model = config.model.model_copy(update={"context_length": longest})
    placement = config.placement.model_copy(update={"mode": mode})
    config = config.model_copy(update={"model": model, "placement": placement})
    if mode == "colocated":
        config = config.model_copy(update={"reward": load_config(QUICKSTART, []).reward})
        costs = replace(costs, judges={})
    work = replace(costs.workload, turns=TURNS, outside=tool, outside_tokens=SAID)
    return config, replace(costs, workload=work)


QUICKSTART = "examples/quickstart/grpo.yaml"


def played(mode: str, median: float, devices: int, tool: Lengths | None) -> SimulationReport:
    config, costs = world(mode, median, devices, tool)
    return simulate(config, costs, devices=devices, controllers=max(1, devices // 8), steps=STEPS, seed=0)


def figures(report: SimulationReport) -> dict[str, float]:
    """Means over the steps but the first."""
    steps = report.steps[1:]
    turns = sum(step.counts.turns - step.counts.conversations for step in steps)
    return {
        "idle": sum(step.idle * step.seconds for step in steps) / sum(step.seconds for step in steps),
        "step_s": fmean(step.seconds for step in steps),
        "rollout_s": fmean(max(step.rollouts) for step in steps),
        "hits": sum(step.counts.cache_hits for step in steps) / max(1, turns),
    }


def compared(mode: str, median: float, devices: int) -> dict[str, Any]:
    without, tools = (figures(played(mode, median, devices, tool)) for tool in (None, TOOL))
    return {
        "mode": mode,
        "devices": devices,
        "median": round(median),
        "idle_without": significant(without["idle"]),
        "idle": significant(tools["idle"]),
        "more": significant(tools["idle"] - without["idle"]),
        "step_s_without": significant(without["step_s"]),
        "step_s": significant(tools["step_s"]),
        "hits": significant(tools["hits"]),
    }


def measure(quick: bool) -> dict[str, Any]:
    cases = (
        [("colocated", 200.0, 8)]
        if quick
        else [(m, t, DEVICES) for t in (1000.0, 4000.0) for m in ("colocated", "dynamic")]
    )
    rows = []
    for case in cases:
        rows.append(compared(*case))
        print(rows[-1], file=sys.stderr, flush=True)
    return {"idle": rows}


if __name__ == "__main__":
    main("conversations", measure)

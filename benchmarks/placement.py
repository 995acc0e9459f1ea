"""Placement modes on the simulated cluster: seconds of rollout and reward, against the best fixed split and a bound.

    python -m benchmarks.placement --simulate [--devices N] [--median N] [--models 7B+7B] [--quick] [--json]

The real controllers, routers, director and policy run over engines that only spend time, estimated for an H20 from its
data sheet and public shapes of models. A step draws PROMPTS_PER_DEVICE prompts of 8 responses for each device; lengths
are lognormal with a 99th percentile of TAIL times the median, cut at twice that; a judgement's median is 256 tokens.
Stationary runs have STEPS steps; in drifting ones the median grows by four over DRIFT steps, from the one shown. The
first step, in which nothing is measured yet, does not count. Seconds are means over steps, of the slowest controller's
rollout, entering the phase included.

`partial` is the best fixed split of a search over splits; when drifting, `partial_first` is the one that is best in the
first steps, as one could choose it beforehand. `bound` is what no placement goes below: all work at full batches on all
devices, or the longest response and its judgement alone, as `bound_by` says. `drawing` is the time to the end of the
last response where the policy has all devices until then (colocated): who does not know beforehand which responses
are long is hardly faster, judgements or not.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from statistics import fmean
from typing import Any

from benchmarks.common import main, significant
from yatt.config.load import load_config
from yatt.config.schema import Config
from yatt.controller.assembly import layout_of
from yatt.errors import ConfigError
from yatt.models.facts import ModelFacts
from yatt.placement import search as splits
from yatt.placement.cost import shape_of
from yatt.placement.plan import POLICY, Layout
from yatt.simulation.costs import Costs, EngineCosts, Lengths, Workload, from_shape
from yatt.simulation.lengths import LengthModel
from yatt.simulation.simulate import SimulationReport, simulate
from yatt.types import SampleKey

MODELS = ("1.5B+72B", "7B+7B", "32B+7B")  # policy + judge
DEVICES, MEDIANS = (8, 64, 512), (1_000, 4_000, 16_000)  # from 64 devices on the first median, where none is given
STEPS, DRIFT, GROWTH = 4, 9, 4.0
PROMPTS_PER_DEVICE, SIBLINGS, PROMPT, TAIL = 4, 8, 512, 4.0
LARGE_PROMPTS = 1  # for each of more than 64 devices, and no drift there
ANSWERS = Lengths(median=256.0, p99=1024.0)


def _facts(hidden: int, inner: int, layers: int, heads: int, kv_heads: int, *, tied: bool = False) -> ModelFacts:
    return ModelFacts(
        hidden_size=hidden,
        intermediate_size=inner,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        vocab_size=152_064,
        max_positions=1 << 20,
        embedding_rows=152_064,
        head_dim=128,
        tied=tied,
    )


# The public configs of Qwen2.5, and devices of an engine.
SHAPES: dict[str, tuple[ModelFacts, int]] = {
    "1.5B": (_facts(1536, 8960, 28, 12, 2, tied=True), 1),
    "7B": (_facts(3584, 18_944, 28, 28, 4), 1),
    "32B": (_facts(5120, 27_648, 64, 40, 8), 4),
    "72B": (_facts(8192, 29_568, 80, 64, 8), 4),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    models: str
    devices: int
    median: float
    drifting: bool
    tail: float
    steps: int
    prompts: int  # per device

    @property
    def trace(self) -> tuple[Lengths, ...]:
        growth = [GROWTH ** (i / (self.steps - 1)) for i in range(self.steps)] if self.drifting else [1.0]
        return tuple(Lengths(median=self.median * g, p99=self.tail * self.median * g) for g in growth)

    @property
    def layout(self) -> Layout:
        return layout_of(_world(self)[0], self.devices)

    def world(self) -> tuple[Config, Costs]:
        (policy, size), (judge, judge_size) = (SHAPES[name] for name in self.models.split("+"))
        longest = round(2 * max(lengths.p99 for lengths in self.trace))
        settings = [
            f"rollout.engine_args={{tensor_parallel_size: {size}, gpu_memory_utilization: 0.85}}",
            f"reward.models.judge.engine_args={{tensor_parallel_size: {judge_size}, gpu_memory_utilization: 0.85}}",
            f"rollout.max_tokens={longest}",
            f"model.context_length={longest + PROMPT}",
            f"rollout.n={SIBLINGS}",
            "rollout.filter=none",
            f"train.batch_size={self.prompts * self.devices}",
            f"train.tokens_per_micro_batch={max(16_384, longest + PROMPT)}",
        ]
        config = load_config("examples/plan/paper.yaml", settings)
        work = Workload(prompt_tokens=PROMPT, responses=self.trace)
        costs = from_shape(policy, config, work, {"judge": judge})
        return config, replace(costs, judges={"judge": replace(costs.judges["judge"], answers=(ANSWERS,))})

    def run(self, mode: str, split: Mapping[str, int] | None = None) -> SimulationReport:
        config, costs = _world(self)
        placement = config.placement.model_copy(update={"mode": mode, "split": split or {}})
        return simulate(
            config.model_copy(update={"placement": placement}),
            costs,
            devices=self.devices,
            controllers=max(1, self.devices // 8),
            steps=self.steps,
            seed=0,
        )


@cache
def _world(case: Case) -> tuple[Config, Costs]:
    return case.world()


def seconds(report: SimulationReport) -> list[float]:
    """Of each step's rollout and reward, but for the first."""
    return [max(step.rollouts) for step in report.steps[1:]]


def drawing(report: SimulationReport) -> float:
    """Mean seconds from the begin of a rollout to the end of its last response, the first step left out."""
    found = []
    for step in report.steps[1:]:
        begin = min(span.start for span in step.spans if span.name == "rollout")
        found.append(max(span.stop for span in step.spans if (span.name, span.role) == ("sample", POLICY)) - begin)
    return fmean(found)


def bound(case: Case) -> tuple[float, str]:
    """Mean over the steps of what no placement goes below, and which part of it is the larger in most."""
    config, costs = _world(case)
    judge = costs.judges["judge"]
    lengths, answers = LengthModel(case.trace, 0), LengthModel(judge.answers, 0, "judge")
    sizes = tuple(shape_of(config, role).tensor_parallel for role in (POLICY, "judge"))
    each = case.prompts * case.devices
    found: list[tuple[float, str]] = []
    for step in range(2, case.steps + 1):
        lengths.step = step
        work, longest = 0.0, 0.0
        for uid in range((step - 1) * each, step * each):
            for sibling in range(SIBLINGS):
                tokens = min(lengths(SampleKey(uid, sibling)), config.rollout.max_tokens)
                answer = min(answers(SampleKey(uid * SIBLINGS + sibling, 0)), config.reward.models["judge"].max_tokens)
                read = judge.template_tokens + PROMPT + tokens
                work += sizes[0] * _engine_seconds(costs.engine, PROMPT / SIBLINGS, tokens, costs.engine.max_running)
                work += sizes[1] * _engine_seconds(judge.engine, read, answer, judge.engine.max_running)
                alone = _engine_seconds(costs.engine, PROMPT, tokens, 1)
                longest = max(longest, alone + _engine_seconds(judge.engine, read, answer, 1))
        work /= case.devices
        found.append(max((work, "work"), (longest, "longest response")))
    by = [name for _, name in found]
    return fmean(value for value, _ in found), max(by, key=by.count)


def _engine_seconds(costs: EngineCosts, read: float, tokens: int, batch: int) -> float:
    """An engine's time for one of `batch` requests: tokens read, and tokens sampled over a growing prefix."""
    kv = read * tokens + tokens * tokens / 2
    return costs.prefill * read + tokens * (costs.step / batch + costs.per_request) + costs.per_kv_token * kv


def search(case: Case) -> dict[int, list[float]]:
    """Seconds of each step under the fixed splits tried, by the policy's blocks."""
    blocks, size = len(case.layout.blocks), len(case.layout.blocks[0])
    tried: dict[int, list[float]] = {}

    def measure(count: int) -> float:
        if count not in tried:
            split = {POLICY: size * count, "judge": size * (blocks - count)}
            tried[count] = seconds(case.run("partial", split))
        return fmean(tried[count])

    splits.search(blocks, (POLICY, "judge"), lambda split: measure(split[POLICY]))
    return tried


def result(case: Case) -> dict[str, Any]:
    """One row of the table; of a case whose longest response does not fit beside the weights, why."""
    row: dict[str, Any] = {
        "models": case.models,
        "devices": case.devices,
        "median": round(case.median),
        "lengths": "drifting" if case.drifting else f"p99 {case.tail:g}x",
    }
    try:
        floor, by = bound(case)
    except ConfigError as error:
        return row | {"refused": str(error)}
    row |= {"bound": significant(floor), "bound_by": by}
    reports = {mode: case.run(mode) for mode in ("colocated", "weighted", "dynamic")}
    found = {mode: fmean(seconds(report)) for mode, report in reports.items()}
    tried = search(case)
    best = min(tried, key=lambda count: fmean(tried[count]))
    found["partial"] = fmean(tried[best])
    if case.drifting:
        found["partial_first"] = fmean(tried[min(tried, key=lambda count: fmean(tried[count][:2]))])
    row |= {mode: significant(value) for mode, value in found.items()}
    row["split"] = f"{best} of {len(case.layout.blocks)} blocks"
    row |= {f"dynamic_to_{mode}": significant(found["dynamic"] / found[mode]) for mode in found if mode != "dynamic"}
    row["dynamic_to_bound"] = significant(found["dynamic"] / floor)
    row["drawing"] = significant(drawing(reports["colocated"]))
    row["dynamic_to_drawing"] = significant(found["dynamic"] / row["drawing"])
    row["moves"] = significant(fmean(len(step.decisions) - 1 for step in reports["dynamic"].steps[1:]))
    return row


def cases(models: Sequence[str], devices: Sequence[int], medians: Sequence[int]) -> list[Case]:
    """Stationary and drifting ones; on 64 devices also with a tail of ten times the median."""
    found = []
    for name in models:
        for count in devices:
            large = count > 64
            for median in medians if count < 64 else medians[:1]:
                common = {"models": name, "devices": count, "median": median}
                common["prompts"] = LARGE_PROMPTS if large else PROMPTS_PER_DEVICE
                found.append(Case(drifting=False, tail=TAIL, steps=STEPS, **common))
                if not large:
                    found.append(Case(drifting=True, tail=TAIL, steps=DRIFT, **common))
                if count == 64:
                    found.append(Case(drifting=False, tail=10.0, steps=STEPS, **common))
    return found


def measure(quick: bool, simulate: bool, devices: int | None, median: int | None, models: str | None) -> dict[str, Any]:
    counts = (devices,) if devices else DEVICES
    chosen = cases((models,) if models else MODELS, counts, (median,) if median else MEDIANS)
    if quick:
        case = Case(models="7B+7B", devices=8, median=200, drifting=False, tail=TAIL, steps=2, prompts=1)
        chosen = [case, replace(case, drifting=True, steps=3)]
    rows = []
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for row in pool.map(result, chosen):
            rows.append(row)
            print(f"case {len(rows)} of {len(chosen)}: {row}", file=sys.stderr, flush=True)
    return {"results": rows}


if __name__ == "__main__":
    main("placement", measure, flags={"devices": int, "median": int, "models": str, "simulate": bool})

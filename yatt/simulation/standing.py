"""The costs of a config, reckoned before anything has run, and the fixed split that follows from them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from yatt.config.judges import judge_facts
from yatt.config.schema import Config
from yatt.controller.assembly import layout_of, responses_per_prompt
from yatt.models.facts import ModelFacts
from yatt.placement.forecast import SPREAD, Forecast, Load, Loads, Speed, row
from yatt.placement.plan import POLICY, Layout, Role, Split
from yatt.placement.search import search
from yatt.simulation.calibrate import from_file
from yatt.simulation.costs import Costs, EngineCosts, Lengths, Workload, from_shape, written

TURNS, TOOL_SECONDS, TOOL_TOKENS = 2, 1.0, 64
"""What is assumed of conversations: turns, median seconds between two, and tokens said to the policy there."""
TRIES = 400
"""Splits that a forecast is asked for: it takes no time."""


def judges_facts(config: Config) -> dict[Role, ModelFacts]:
    """The models of the judges that the run serves."""
    return {name: judge_facts(name, judge, weights=False) for name, judge in config.reward.served.items()}


def costs_for(config: Config, facts: ModelFacts) -> Costs:
    """The costs that the `plan` section asks for: calibrated or estimated, with the workload it names."""
    settings, rollout = config.plan, config.rollout
    base = from_file(settings.calibration, config) if settings.calibration else None
    assumed = Workload(
        prompt_tokens=1, responses=(Lengths(median=rollout.max_tokens / 4, p99=float(rollout.max_tokens)),)
    )
    work = base.workload if base else assumed
    work = replace(work, **_conversations(config, work))
    if base is None:
        room = config.model.context_length - written(work, rollout.max_tokens)
        work = replace(work, prompt_tokens=config.data.max_prompt_tokens or max(1, room))
    given: dict[str, Any] = {
        name: value
        for name in ("prompt_tokens", "equal_groups", "image_bytes", "images", "image_pixels")
        if (value := getattr(settings, name)) is not None
    }
    if settings.response_median is not None:
        p99 = settings.response_p99 or 4 * settings.response_median
        given["responses"] = (Lengths(median=settings.response_median, p99=p99),)
    workload = replace(work, **given)
    return replace(base, workload=workload) if base else from_shape(facts, config, workload, judges_facts(config))


def _conversations(config: Config, work: Workload) -> dict[str, Any]:
    """What a workload has of conversations, where the config or the workload so far plays them."""
    plan, measured = config.plan, work.turns > 1
    turns = plan.turns or (work.turns if measured else TURNS if config.environment.played else 1)
    if turns == 1:
        return {"turns": 1, "outside": None, "outside_tokens": 0}
    seconds, tokens = plan.tool_seconds, plan.tool_tokens
    if seconds is None and measured:
        outside = work.outside
    else:
        median = TOOL_SECONDS if seconds is None else seconds
        outside = Lengths(median=median, p99=4 * median) if median else None
    said = (work.outside_tokens if measured else TOOL_TOKENS) if tokens is None else tokens
    return {"turns": turns, "outside": outside, "outside_tokens": said}


def divided(config: Config, slots: int, costs: Costs) -> Config:
    """The config, with the split that the forecast finds best where `placement.mode=partial` is given none."""
    placement = config.placement
    if placement.mode != "partial" or placement.split:
        return config
    layout = layout_of(config, slots)
    size = len(layout.blocks[0])
    split = {role: size * count for role, count in foreseen(config, layout, costs).items()}
    return config.model_copy(update={"placement": placement.model_copy(update={"split": split})})


def foreseen(config: Config, layout: Layout, costs: Costs) -> Split:
    """The fixed split, in blocks, under which the forecast has the first rollout end soonest."""
    loads = expected(config, layout, costs)
    forecast = Forecast(loads=loads, blocks=len(layout.blocks), spread=SPREAD)

    def seconds(split: Split) -> float:
        return float(forecast.seconds(row(split, loads))[0])

    tried = search(len(layout.blocks), list(layout.sizes), seconds, tries=TRIES)
    best = min(tried, key=lambda split: tried[split])
    return dict(zip(layout.sizes, best, strict=True))


def expected(config: Config, layout: Layout, costs: Costs) -> Loads:
    """Each role's work of the first step, none of it begun: prompts that the filter will drop are drawn too."""
    work, rollout = costs.workload, config.rollout
    prompts = config.train.batch_size / (1 - work.equal_groups * (rollout.filter != "none"))
    count = prompts * responses_per_prompt(config)
    mean, longest = _lengths(work.lengths(1), count, work.turns * rollout.max_tokens)
    waits = _mean(work.outside) * (work.turns - 1) / mean if work.outside else 0.0
    read = _read(work.prompt_tokens, costs.engine) / rollout.n
    load = _load(count, mean, longest, read, costs.engine, POLICY, layout)
    loads = {POLICY: replace(load, outside=waits)}
    for name in layout.sizes:
        if name != POLICY:
            settings, judge = config.reward.models[name], costs.judges[name]
            asked = count * settings.judgements
            answer, last = _lengths(judge.answers[0], asked, settings.max_tokens)
            read = judge.template_tokens + _read(work.prompt_tokens, judge.engine) + mean
            loads[name] = _load(asked, answer, last, read, judge.engine, name, layout)
    return loads


def _read(tokens: int, engine: EngineCosts) -> float:
    """What an engine reads of a prompt, its images counted as so many tokens."""
    return tokens + (engine.images / engine.prefill if engine.prefill else 0.0)


def _lengths(lengths: Lengths, count: float, limit: int) -> tuple[float, float]:
    """Mean and expected longest tokens of so many requests: the median times e^(sigma^2 / 2), and times
    e^(sigma sqrt(2 ln n)); neither above the limit."""
    sigma = lengths.sigma
    mean = lengths.median * math.exp(sigma * sigma / 2)
    longest = lengths.median * math.exp(sigma * math.sqrt(2 * math.log(max(count, 2.0))))
    return min(mean, limit), min(longest, limit)


def _mean(amounts: Lengths) -> float:
    """The mean of a lognormal."""
    return amounts.median * math.exp(amounts.sigma**2 / 2)


def _load(
    count: float, mean: float, longest: float, read: float, engine: EngineCosts, role: Role, layout: Layout
) -> Load:
    speed = Speed.of(
        engine,
        capacity=max(1, min(engine.max_running, int(engine.kv_tokens / (read + mean)))),
        engines=max(layout.sizes.values()) // layout.sizes[role],
    )
    return Load(requests=0, coming=count, tokens=mean, length=mean, longest=longest, prefix=read, speed=speed)

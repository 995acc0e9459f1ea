"""From which lengths and judgements on phases side by side gain: simulated, with this machine's costs of an engine.

    python -m benchmarks.placement_crossover [--slots 2] [--json]

The costs of a decode step are measured first, in CPU seconds of one thread: a model of the quickstart's shape in the
real generator, at several batches. Then the real controllers, router, director and policy run over engines that
take this time, policy and judge alike, each slot on a core of its own. What controllers compute takes no time, nor does
reading a KV cache. A step draws PROMPTS prompts of 8 responses for each slot, of a mean of MEAN tokens; `longest` is
the expected longest of a step over the mean, `judged` the tokens of a judgement over those of a response. Seconds are
means of the rollout, judgements included, over STEPS steps, but for the first LEARNING, in which dynamic finds out what
its forecasts miss. `partial` is the best of all splits, from 8 slots on of those by quarters.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Mapping
from statistics import fmean, median
from time import process_time
from typing import Any

import numpy as np

from benchmarks import toy
from benchmarks.common import DEVICE, main, significant
from yatt.config.load import load_config
from yatt.config.schema import Config, RolloutConfig
from yatt.generation.stepped import SteppedGenerator
from yatt.placement.fit import least_squares
from yatt.simulation.calibrate import lengths_of
from yatt.simulation.costs import (
    ControllerCosts,
    Costs,
    EngineCosts,
    JudgeCosts,
    Lengths,
    ScorerCosts,
    TrainerCosts,
    Workload,
)
from yatt.simulation.simulate import simulate
from yatt.types import Request, SampleKey, SamplingParams

BATCHES, TOKENS, PROMPT, ROUNDS = (1, 4, 16, 64, 192), 48, 8, 5
NEVER = 1_000_000  # a stop token outside the vocabulary: every response has its full length
PROMPTS, SIBLINGS, MEAN = 24, 8, 18.0
STEPS, LEARNING = 8, 3
LONGEST = (2, 6, 14, 50)
JUDGED = (0.5, 2.0, 8.0)
CONTROLLERS = 2


async def decode_steps(model: str) -> list[tuple[int, float, float]]:
    """Of each batch: requests, median CPU seconds of a decode step, and of reading a prompt token; of one thread."""
    config = RolloutConfig()
    settings = dict(context_length=64, dtype="float32", device=DEVICE, seed=0, stop_token_ids=(NEVER,))
    generator = SteppedGenerator(model=model, config=config, **settings)
    await generator.start()
    found = []
    try:
        for batch in BATCHES:
            seconds = [
                (await _seconds(generator, batch, 1), await _seconds(generator, batch, TOKENS))
                for _ in range(ROUNDS + 1)
            ][1:]
            step = median((whole - first) / (TOKENS - 1) for first, whole in seconds)
            found.append((batch, step, (median(first for first, _ in seconds) - step) / (batch * PROMPT)))
    finally:
        await generator.close()
    return found


async def _seconds(generator: SteppedGenerator, batch: int, tokens: int) -> float:
    random, params = np.random.default_rng(batch), SamplingParams(max_tokens=tokens)
    asked = [
        Request(key=SampleKey(i, 0), tokens=random.integers(4, 60, PROMPT, dtype=np.int32), params=params, seed=i)
        for i in range(batch)
    ]
    start = process_time()
    async for _ in generator.generate(asked):
        pass
    return process_time() - start


def engine(measured: list[tuple[int, float, float]]) -> EngineCosts:
    """A decode step as a constant and a part for each request; weights and caches stay where they are."""
    batches, steps = np.array([m[0] for m in measured], dtype=float), np.array([m[1] for m in measured])
    relative = np.stack([np.ones_like(batches), batches], 1) / steps[:, None]
    step, per_request = least_squares(relative, np.ones_like(steps))
    prefill = max(0.0, measured[-1][2])
    return EngineCosts(
        step=step, per_request=per_request, per_kv_token=0.0, load=0.01, prefill=prefill, sleep=0.01, wake=0.01
    )


def lengths(mean: float, longest: float, count: int) -> Lengths:
    """The lognormal of this mean whose expected longest of `count` is this."""
    return lengths_of({"response_length_mean": mean, "longest_response": longest, "responses": count})


def world(costs: EngineCosts, slots: int, longest: float, judged: float) -> tuple[Config, Costs]:
    count = PROMPTS * SIBLINGS * slots
    most = round(2 * MEAN * max(LONGEST))
    verdicts = round(2 * MEAN * judged + 2)
    config = load_config(
        "examples/plan/paper.yaml",
        [
            *("train.tp=1", f"rollout.n={SIBLINGS}", f"rollout.max_tokens={most}", "rollout.filter=none"),
            *(f"model.context_length={most + 64}", f"train.tokens_per_micro_batch={most + 64}"),
            *(f"train.batch_size={PROMPTS * slots}", f"reward.models.judge.max_tokens={verdicts}"),
            "reward.models.judge.engine_args={tensor_parallel_size: 1}",
        ],
    )
    work = Workload(prompt_tokens=PROMPT, responses=(lengths(MEAN, MEAN * longest, count),))
    verdict = lengths(MEAN * judged, MEAN * judged * 1.2, count)
    return config, Costs(
        source="this machine",
        engine=costs,
        trainer=TrainerCosts(per_token=1e-5, per_token_squared=0.0, per_update=0.0),
        scorer=ScorerCosts(seconds=0.0),
        controller=ControllerCosts(per_response=0.0, per_step=0.0, link_latency=0.0),
        workload=work,
        judges={"judge": JudgeCosts(engine=costs, answers=(verdict,), template_tokens=1)},
    )


def seconds(config: Config, costs: Costs, slots: int, mode: str, split: Mapping[str, int] | None = None) -> float:
    placement = config.placement.model_copy(update={"mode": mode, "split": split or {}})
    config = config.model_copy(update={"placement": placement})
    report = simulate(config, costs, devices=slots, controllers=CONTROLLERS, steps=STEPS, seed=0)
    return fmean(max(step.rollouts) for step in report.steps[LEARNING:])


def row(costs: EngineCosts, slots: int, longest: float, judged: float) -> dict[str, Any]:
    config, all_costs = world(costs, slots, longest, judged)
    found = {mode: seconds(config, all_costs, slots, mode) for mode in ("colocated", "dynamic")}
    splits = {
        n: seconds(config, all_costs, slots, "partial", {"policy": n, "judge": slots - n})
        for n in range(max(1, slots // 4), slots, max(1, slots // 4))
    }
    best = min(splits, key=lambda n: splits[n])
    found["partial"] = splits[best]
    figures = {mode: significant(value) for mode, value in found.items()}
    ratios = {f"{mode}_to_colocated": significant(found[mode] / found["colocated"]) for mode in ("partial", "dynamic")}
    return {"slots": slots, "longest": longest, "judged": judged, **figures, "split": f"{best} of {slots}", **ratios}


def measure(quick: bool, slots: int | None) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        measured = asyncio.run(decode_steps(toy.save_model(folder)))
    costs = engine(measured)
    cases = [
        (n, longest, judged) for n in ((slots,) if slots else (2, 4, 8)) for longest in LONGEST for judged in JUDGED
    ]
    about = {"decode_step_ms": {batch: significant(1e3 * step) for batch, step, _ in measured}}
    about["costs"] = {name: significant(getattr(costs, name)) for name in ("step", "per_request", "prefill")}
    return about | {"results": [row(costs, *case) for case in (cases[:1] if quick else cases)]}


if __name__ == "__main__":
    main("placement_crossover", measure, flags={"slots": int})

"""Forecast: what `yatt plan` counts with for this device against what a rank takes, and a calibration made of that."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.gpu import models, sides
from benchmarks.gpu.device import seconds
from benchmarks.gpu.part import Bench, Section
from yatt.config.schema import Config, PlanConfig, RolloutConfig
from yatt.simulation.calibrate import from_file, to_file
from yatt.simulation.costs import Costs, Lengths, TrainerCosts, Workload, from_shape
from yatt.simulation.fit import Fit, fitted
from yatt.simulation.simulate import simulate
from yatt.training.layout import Layout
from yatt.training.update import Training
from yatt.types import Sample

FILE = "calibration.json"
DEVICES = 8
"""Of the plan that is simulated with both."""
PROMPT, RESPONSE = 512, 1024
"""Tokens of the prompts and the responses that are planned."""
TERMS = ("trained token", "squared token", "fixed")


def sections(bench: Bench) -> Iterator[Section]:
    name = "toy" if bench.toy else "0.5B" if bench.quick else "1.5B"
    with TemporaryDirectory() as folder:
        path = models.write_shape(Path(folder), models.SHAPES[name])
        settings = plan_config(path, bench.device.data_sheet(), toy=bench.toy)
        with sides.joined(settings) as layout:
            yield f"costs of {name}", partial(_costs, bench, name, settings, layout, path)


def plan_config(path: str, sheet: str | None, *, toy: bool) -> Config:
    """GRPO, one update a step, as `yatt plan` has it. An unknown device is planned as an H100."""
    tokens = 400 if toy else 8192
    base = sides.config(path, "bfloat16", tokens=tokens, recompute="full")
    longest = tokens // 4 if toy else 4 * RESPONSE
    return base.model_copy(
        update={
            "algorithm": base.algorithm.model_copy(update={"name": "grpo"}),
            "rollout": RolloutConfig(n=8, max_tokens=longest),
            "train": base.train.model_copy(update={"batch_size": 16}),
            "plan": PlanConfig(device=sheet or "H100"),
        }
    )


def cases(toy: bool) -> list[list[int]]:
    """Lengths of micro-batches that differ in their tokens and in the squares of them."""
    if toy:
        return [[n] * count for n in (20, 60, 180) for count in (1, 2)]
    return [[n] * (total // n) for total in (2048, 4096, 8192) for n in (128, 512, 2048)] + [
        [4096],
        [4096, 4096],
        [8192],
    ]


def _costs(bench: Bench, name: str, settings: Config, layout: Layout, path: str) -> None:
    facts = models.facts(path)
    prompt, response = (20, 40) if bench.toy else (PROMPT, RESPONSE)
    workload = Workload(prompt_tokens=prompt, responses=(Lengths(median=response / 2, p99=2.0 * response),))
    estimate = from_shape(facts, settings, workload)
    training = sides.open_yatt(settings, layout)
    costs, fits = _measured(bench, settings, training, estimate, facts.vocab_size)
    for what in ("per_token", "per_token_squared", "per_micro_batch", "per_update", "offload", "onload", "export"):
        reckoned, found = (getattr(c.trainer, what) for c in (estimate, costs))
        ratio = found / reckoned if reckoned else None
        bench.row("costs", shape=name, seconds_of=what, estimate=reckoned, measured=found, over_estimate=ratio)
    bench.row("fit", of="micro-batches", off_by=fits[0].residual, unseen=", ".join(fits[0].unidentified) or "none")
    _held_out(bench, training, costs, facts.vocab_size)
    file = bench.out / FILE
    to_file(file, costs, fits, settings)
    bench.row("calibration", file=str(file), ok=from_file(str(file), settings) == costs)
    for source, used in (("estimate", estimate), ("calibration", costs)):
        report = simulate(settings, used, devices=DEVICES, controllers=1, steps=2, seed=0)
        phases = {p: sum(s.phases.get(p, 0.0) for s in report.steps) / len(report.steps) for p in ("rollout", "train")}
        step = sum(s.seconds for s in report.steps) / len(report.steps)
        bench.row(
            "plan", costs=source, devices=DEVICES, step_s=step, rollout_s=phases["rollout"], train_s=phases["train"]
        )


def _measured(
    bench: Bench, settings: Config, training: Training, estimate: Costs, vocabulary: int
) -> tuple[Costs, list[Fit]]:
    """Costs with the trainer's own. Engines stay estimated: there is none here."""
    work, taken, updates = [], [], []
    for number, lengths in enumerate(cases(bench.toy)):
        batch = models.samples(lengths, vocabulary, number)
        for repeat in range(2 if bench.toy or bench.quick else 4):
            in_batch, in_update = _update(training, batch)
            if repeat:  # the first one warms up
                tokens, squares = float(sum(lengths)), float(sum(n * n for n in lengths))
                work.append(dict(zip(TERMS, (tokens, squares, 1.0), strict=True)))
                taken.append(in_batch)
                updates.append(in_update)
    fit = fitted("train", taken, work)
    device, shelf = bench.device, training.policy.shelf
    away = seconds(device, shelf.put_away)
    back = seconds(device, shelf.take_back)
    out = seconds(device, lambda: [tensor.cpu() for _, tensor in training.policy.export()])
    trainer = TrainerCosts(
        per_token=fit.terms["trained token"],
        per_token_squared=fit.terms["squared token"],
        per_micro_batch=fit.terms["fixed"],
        per_update=sorted(updates)[len(updates) // 2],
        offload=away,
        onload=back,
        export=out,
    )
    source = f"calibration of a trainer on {device.name()}, engines as in the {estimate.source}"
    return replace(estimate, source=source, trainer=trainer), [fit]


def _update(training: Training, *micro_batches: list[Sample]) -> tuple[float, float]:
    """Seconds of the passes over the micro-batches, and of the update."""
    parts = training.update(models.share(*micro_batches)).seconds
    return sum(parts.values()) - parts["optimizer"], parts["optimizer"]


def _held_out(bench: Bench, training: Training, costs: Costs, vocabulary: int) -> None:
    """Lengths that no fit has seen, in two micro-batches."""
    total = 300 if bench.toy else 8192
    drawn = [models.lognormal(total, seed, median=total / 16, sigma=0.9, most=total // 2) for seed in (21, 22)]
    every = models.samples([n for lengths in drawn for n in lengths], vocabulary, 21)
    batches = [every[: len(drawn[0])], every[len(drawn[0]) :]]
    trainer = costs.trainer
    foreseen = sum(
        trainer.per_micro_batch + trainer.per_token * sum(n) + trainer.per_token_squared * sum(i * i for i in n)
        for n in drawn
    )
    measured = [_update(training, *batches)[0] for _ in range(3)][-1]
    bench.row("forecast", tokens=2 * total, foreseen_s=foreseen, measured_s=measured, over_forecast=measured / foreseen)

"""`yatt plan`: what a config would do on so many devices, by simulating its controllers; and calibrations for it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from yatt.config.facts import ModelFacts
from yatt.config.load import load_config
from yatt.config.rules import check_plan
from yatt.config.schema import Config
from yatt.errors import ConfigError
from yatt.faces.rundir import RunDirectory
from yatt.simulation.calibrate import UNSEEN, Fit, calibrate, from_file, to_file
from yatt.simulation.costs import Costs, Lengths, Workload, from_shape
from yatt.simulation.simulate import SimulationReport, simulate
from yatt.simulation.world import Witness
from yatt.types import StepReport

NODE = 8
"""Devices per controller where neither the command nor the config says how many controllers there are."""


def plan(
    config: Config, *, devices: str | None, controllers: int | None, steps: int, seed: int | None, as_json: bool
) -> int:
    """Simulate `steps` steps on each number of devices and print what they take; returns the exit status.

    Raises ConfigError before anything is simulated.
    """
    counts = _counts(devices or str(config.cluster.slots or NODE))
    for name, number in (("--steps", steps), ("--controllers", controllers)):
        if number is not None and number < 1:
            raise ConfigError(f"{name}={number} must be a whole number of at least 1")
    seed = config.run.seed if seed is None else seed
    held = {count: controllers or config.cluster.controllers or -(-count // NODE) for count in counts}
    for count in counts:
        facts = check_plan(_at(config, held[count]), [count])
    costs = costs_for(config, facts)
    modes = {}
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        for count in counts:
            task = progress.add_task(f"{count} devices", total=steps)
            report = simulate(
                _at(config, held[count]),
                costs,
                devices=count,
                controllers=held[count],
                steps=steps,
                seed=seed,
                witness=Ticker(partial(progress.advance, task)),
            )
            modes[count] = summary(report)
    plans = [{"devices": count, "controllers": held[count], "modes": {"colocated": modes[count]}} for count in counts]
    head = {"costs": costs.source, "calibrated": config.plan.calibration is not None, "steps": steps, "seed": seed}
    head["workload"] = asdict(costs.workload)
    if as_json:
        print(json.dumps({**head, **(plans[0] if len(plans) == 1 else {"plans": plans})}, indent=1))
    else:
        _show(head, plans)
    return 0


class Ticker(Witness):
    """Tells of each simulated step as it ends."""

    def __init__(self, tick: Callable[[], None]) -> None:
        self._tick = tick

    def reported(self, report: StepReport) -> None:
        self._tick()


def summary(report: SimulationReport) -> dict[str, Any]:
    """Means over the steps: seconds, response tokens per second, idle device time, bytes one controller sends."""
    steps = report.steps
    seconds = sum(step.seconds for step in steps)
    phases = {name: sum(step.phases[name] for step in steps) / len(steps) for name in steps[0].phases}
    return {
        "step_s": seconds / len(steps),
        "rollout_s": phases["rollout"],
        "phases": phases,
        "tokens_per_s": sum(step.counts.response_tokens for step in steps) / seconds,
        "idle": sum(step.idle * step.seconds for step in steps) / seconds,
        "controller_bytes": sum(max(step.sent) for step in steps) / len(steps),
        "groups_dropped": sum(step.counts.groups_dropped for step in steps) / len(steps),
        "tokens_wasted": sum(step.counts.tokens_wasted for step in steps) / len(steps),
    }


def costs_for(config: Config, facts: ModelFacts) -> Costs:
    """The costs that the `plan` section asks for: calibrated or estimated, with the workload it names."""
    settings, rollout = config.plan, config.rollout
    base = from_file(settings.calibration, config) if settings.calibration else None
    assumed = Workload(
        prompt_tokens=config.data.max_prompt_tokens or config.model.context_length - rollout.max_tokens,
        responses=(Lengths(median=rollout.max_tokens / 4, p99=float(rollout.max_tokens)),),
    )
    given: dict[str, Any] = {
        name: value
        for name in ("prompt_tokens", "equal_groups", "image_bytes")
        if (value := getattr(settings, name)) is not None
    }
    if settings.response_median is not None:
        p99 = settings.response_p99 or 4 * settings.response_median
        given["responses"] = (Lengths(median=settings.response_median, p99=p99),)
    workload = replace(base.workload if base else assumed, **given)
    return replace(base, workload=workload) if base else from_shape(facts, config, workload)


def calibrate_run(run: Path, out: Path | None) -> int:
    """Fit costs to a run's folder, write them, and print the fit; returns the exit status."""
    folder = RunDirectory(run)
    if not folder.config.is_file():
        raise ConfigError(f"{run} is not a run folder: it has no config.yaml; name one that `yatt train` made")
    config = load_config(str(folder.config), [])
    devices = config.cluster.slots or len(list(folder.log.glob("rank-*.log")))
    if not devices:
        raise ConfigError(f"{folder.config} says no cluster.slots, and {folder.log} no ranks; set cluster.slots in it")
    costs, fits = calibrate(config, folder.read_metrics(), source=str(run), devices=devices)
    out = out or run / "calibration.json"
    to_file(out, costs, fits, config)
    _show_fits(fits)
    print(f"written to {out}; use it with plan.calibration={out}")
    return 0


def _counts(text: str) -> list[int]:
    """Numbers of devices out of `16,64`."""
    words = text.split(",")
    if not all(word.strip().isdecimal() and int(word) > 0 for word in words):
        raise ConfigError(f"--devices={text} must be whole numbers of at least 1, such as 64 or 16,64")
    return [int(word) for word in words]


def _at(config: Config, controllers: int) -> Config:
    return config.model_copy(update={"cluster": config.cluster.model_copy(update={"controllers": controllers})})


def _show(head: Mapping[str, Any], plans: Sequence[Mapping[str, Any]]) -> None:
    """The plans as a table, a column per number of devices."""
    modes = [row["modes"]["colocated"] for row in plans]
    table = Table("devices", *(str(row["devices"]) for row in plans))
    table.add_row("controllers", *(str(row["controllers"]) for row in plans))
    table.add_row("step", *(f"{mode['step_s']:.2f} s" for mode in modes))
    for name in modes[0]["phases"]:
        shares = [(mode["phases"][name], mode["phases"][name] / mode["step_s"]) for mode in modes]
        table.add_row(f"  {name}", *(f"{seconds:.2f} s, {share:.0%}" for seconds, share in shares))
    table.add_row("response tokens/s", *(f"{mode['tokens_per_s']:,.0f}" for mode in modes))
    table.add_row("devices idle", *(f"{mode['idle']:.0%}" for mode in modes))
    table.add_row("sent by a controller", *(f"{mode['controller_bytes'] / 1e6:.1f} MB/step" for mode in modes))
    console = Console(highlight=False)
    console.print(table)
    console.print(f"colocated, mean of {head['steps']} simulated steps, seed {head['seed']}; costs: {head['costs']}")
    work, last = head["workload"], head["workload"]["responses"][-1]
    console.print(
        f"prompts of {work['prompt_tokens']} tokens and {work['image_bytes']} bytes of images, responses of "
        f"{last['median']:.0f} tokens (p99 {last['p99']:.0f}), {work['equal_groups']:.0%} of groups of equal rewards"
    )
    if not head["calibrated"]:
        console.print("An estimate says what hardware could do; `yatt plan --calibrate RUN` measures what yours does.")


def _show_fits(fits: Sequence[Fit]) -> None:
    for fit in fits:
        seen = [(name, value) for name, value in fit.terms.items() if value]
        terms = " + ".join(f"{value:.3g} s" + ("" if name == "fixed" else f"/{name}") for name, value in seen)
        print(f"{fit.phase}: {fit.mean:.3f} s a step, off by {fit.residual:.0%} (RMS) = {terms or '0 s'}")
        if fit.unidentified:
            print(f"  could not be told apart, and counted as 0: {', '.join(fit.unidentified)}")
    for line in UNSEEN:
        print(f"not seen: {line}")

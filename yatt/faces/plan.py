"""`yatt plan`: what a config would do on so many devices, by simulating its controllers; and calibrations for it."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from yatt.config.load import load_config
from yatt.config.placement import train_slots
from yatt.config.rules import check_plan
from yatt.config.schema import Config, PlacementConfig
from yatt.controller.assembly import layout_of
from yatt.errors import ConfigError
from yatt.faces.plan_page import page
from yatt.faces.plan_words import COLUMNS, cells, choices, remarks
from yatt.faces.rundir import RunDirectory
from yatt.models.facts import ModelFacts
from yatt.placement.cost import mistakes, needs
from yatt.placement.plan import POLICY, Role, Split
from yatt.placement.search import TRIES, search
from yatt.reports import StepReport
from yatt.simulation.calibrate import UNSEEN, calibrate, to_file
from yatt.simulation.calibrate_judged import UNSEEN as UNSEEN_JUDGED
from yatt.simulation.calibrate_judged import calibrate_judged
from yatt.simulation.costs import Costs, device
from yatt.simulation.fit import PhaseFit
from yatt.simulation.simulate import SimulationReport, simulate
from yatt.simulation.standing import costs_for, foreseen, judges_facts
from yatt.simulation.witness import Witness

MODES = ("colocated", "dynamic", "weighted", "partial", "disaggregated")
DIVIDED = ("dynamic", "weighted", "partial")
"""Modes that divide slots between the policy and judges."""
SIMPLE = ("colocated", "partial", "weighted", "dynamic", "disaggregated")
"""The simplest first."""
SEARCHED = 2
"""Steps that a search for the best fixed split simulates of each one."""
NODE = 8
"""Devices per controller where neither the command nor the config says how many controllers there are."""


def plan(
    config: Config,
    *,
    devices: str | None,
    controllers: int | None,
    steps: int,
    seed: int | None,
    as_json: bool,
    html: Path | None = None,
) -> int:
    """Simulate `steps` steps in each mode on each number of devices and print what they take; returns the exit status.

    Raises ConfigError before anything is simulated.
    """
    counts = _counts(devices or str(config.cluster.slots or NODE))
    for name, number in (("--steps", steps), ("--controllers", controllers)):
        if number is not None and number < 1:
            raise ConfigError(f"{name}={number} must be a whole number of at least 1")
    seed = config.run.seed if seed is None else seed
    controllers_of = {count: controllers or config.cluster.controllers or -(-count // NODE) for count in counts}
    for count in counts:
        facts = check_plan(_at(config, controllers_of[count]), [count])
    costs = costs_for(config, facts)
    left_out = {count: _left_out(_at(config, controllers_of[count]), facts, count) for count in counts}
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    plans, reports, tried = [], {}, dict[int, int]()
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True) as progress:
        for count in counts:
            simulated: dict[str, SimulationReport] = {}
            for mode in [mode for mode in MODES if mode not in left_out[count]]:
                case = _placed(_at(config, controllers_of[count]), mode)
                numbers: dict[str, Any] = {"devices": count, "controllers": controllers_of[count], "seed": seed}
                if mode == "partial" and not case.placement.split:
                    task = progress.add_task(f"{count} devices, {mode}: splits", total=TRIES)
                    case, tried[count] = _searched(case, costs, steps, numbers, partial(progress.advance, task))
                task = progress.add_task(f"{count} devices, {mode}", total=steps)
                witness = Ticker(partial(progress.advance, task))
                simulated[mode] = simulate(case, costs, witness=witness, steps=steps, **numbers)
            plans.append(_plan(count, controllers_of[count], simulated, left_out[count]) | _tried(tried.get(count)))
            reports[count] = simulated
    head = {"costs": costs.source, "calibrated": config.plan.calibration is not None, "steps": steps, "seed": seed}
    head |= {"workload": asdict(costs.workload), "memory": _memory(config, facts, counts[0])}
    if html is not None:
        html.write_text(page(config.run.name, head, plans, reports), encoding="utf-8")
    if as_json:
        print(json.dumps({**head, **(plans[0] if len(plans) == 1 else {"plans": plans})}, indent=1))
    else:
        _show(head, plans)
    return 0


def _plan(
    devices: int, controllers: int, simulated: Mapping[str, SimulationReport], left_out: Mapping[str, str]
) -> dict[str, Any]:
    """The plan for one number of devices. Chosen is the shortest step, of several within a percent the simplest."""
    modes = {mode: summary(report) for mode, report in simulated.items()}
    best = min(mode["step_s"] for mode in modes.values())
    choice = next(mode for mode in SIMPLE if mode in modes and modes[mode]["step_s"] <= 1.01 * best)
    head = {"devices": devices, "controllers": controllers, "choice": choice}
    return {**head, "modes": modes, "left_out": dict(left_out)}


def _left_out(config: Config, facts: ModelFacts, devices: int) -> dict[str, str]:
    """The modes that are not simulated, each with the reason. Raises ConfigError where none is left."""
    models = {POLICY: facts, **judges_facts(config)}
    why: dict[str, str] = {}
    for mode in MODES:
        if mode in DIVIDED and len(models) == 1:
            why[mode] = "reward.models has no judge with a path: there is nothing to divide the slots between"
            continue
        case = _placed(config, mode)
        try:
            check_plan(case, [devices])
        except ConfigError as error:
            why[mode] = str(error)
            continue
        if config.plan.calibration is None:
            slots, memory = train_slots(case, devices), device(config.plan.device).memory
            if lines := list(mistakes(case, models, train_slots=slots, kind="cuda", capacity=memory)):
                why[mode] = "\n".join(lines)
    if len(why) == len(MODES):
        raise ConfigError("\n".join(dict.fromkeys(why.values())))
    return why


def _placed(config: Config, mode: str) -> Config:
    """The config in another mode."""
    if config.placement.mode == mode:
        return config
    return config.model_copy(update={"placement": PlacementConfig.model_validate({"mode": mode})})


def _searched(
    config: Config, costs: Costs, steps: int, numbers: Mapping[str, Any], tick: Callable[[], None]
) -> tuple[Config, int]:
    """The config with the fixed split that a search finds best in the first steps, and how many splits it tried."""
    layout = layout_of(config, numbers["devices"])
    size, roles = len(layout.blocks[0]), list(layout.sizes)

    def divided(split: Split) -> Config:
        slots = {role: size * count for role, count in split.items()}
        return config.model_copy(update={"placement": config.placement.model_copy(update={"split": slots})})

    def seconds(split: Split) -> float:
        tick()
        return simulate(divided(split), costs, steps=min(steps, SEARCHED), **numbers).seconds

    tried = search(len(layout.blocks), roles, seconds, first=[foreseen(config, layout, costs)])
    best = min(tried, key=lambda split: tried[split])
    return divided(dict(zip(roles, best, strict=True))), len(tried)


def _tried(splits: int | None) -> dict[str, int]:
    """For the plan: of how many splits `partial` has the best, where it was searched."""
    return {} if splits is None else {"splits_tried": splits}


def _begun(report: SimulationReport) -> Mapping[Role, int]:
    """The slots of each role at the beginning of the last rollout."""
    decisions = report.steps[-1].decisions
    return decisions[0].slots if decisions else {}


def _memory(config: Config, facts: ModelFacts, devices: int) -> dict[str, Any] | None:
    """Bytes of each role on a slot, awake and asleep, by the estimate for `plan.device`."""
    if config.plan.calibration is not None:
        return None
    chip, slots = device(config.plan.device), train_slots(config, devices)
    models = {POLICY: facts, **judges_facts(config)}
    table = needs(config, models, train_slots=slots, kind="cuda", capacity=chip.memory)
    return {"slot": chip.memory, **{role: need._asdict() for role, need in table.items()}}


class Ticker(Witness):
    """Tells of each simulated step as it ends."""

    def __init__(self, tick: Callable[[], None]) -> None:
        self._tick = tick

    def reported(self, report: StepReport) -> None:
        self._tick()


def summary(report: SimulationReport) -> dict[str, Any]:
    """Means over the steps: seconds, response tokens per second, idle device time, bytes one controller sends, changes
    of the split within a rollout; and the split that the last rollout began with, in slots."""
    steps = report.steps
    seconds = sum(step.seconds for step in steps)
    names = dict.fromkeys(name for step in steps for name in step.phases)
    phases = {name: sum(step.phases.get(name, 0.0) for step in steps) / len(steps) for name in names}
    return {
        "step_s": seconds / len(steps),
        "rollout_s": phases["rollout"],
        "phases": phases,
        "tokens_per_s": sum(step.counts.response_tokens for step in steps) / seconds,
        "split": dict(_begun(report)),
        "moves": sum(max(0, len(step.decisions) - 1) for step in steps) / len(steps),
        "idle": sum(step.idle * step.seconds for step in steps) / seconds,
        "controller_bytes": sum(max(step.sent) for step in steps) / len(steps),
        "groups_dropped": sum(step.counts.groups_dropped for step in steps) / len(steps),
        "tokens_wasted": sum(step.counts.tokens_wasted for step in steps) / len(steps),
    }


def calibrate_run(run: Path, out: Path | None) -> int:
    """Fit costs to a run's folder, write them, and print the fit; returns the exit status."""
    folder = RunDirectory(run)
    if not folder.config.is_file():
        raise ConfigError(f"{run} is not a run folder: it has no config.yaml; name one that `yatt train` made")
    config = load_config(str(folder.config), [])
    devices = config.cluster.slots or len(list(folder.log.glob("rank-*.log")))
    if not devices:
        raise ConfigError(f"{folder.config} says no cluster.slots, and {folder.log} no ranks; set cluster.slots in it")
    rows, source = folder.read_metrics(), str(run)
    if config.reward.served:
        costs, fits = calibrate_judged(config, rows, folder.read_spans(), source=source)
        unseen: tuple[str, ...] = UNSEEN_JUDGED
    else:
        costs, fits = calibrate(config, rows, source=source, devices=devices)
        unseen = UNSEEN
    out = out or run / "calibration.json"
    to_file(out, costs, fits, config)
    _show_fits(fits, unseen)
    print(f"written to {out}; use it with plan.calibration={shlex.quote(str(out))}")
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
    """The plans as a table, a row per number of devices and mode, and what they come to."""
    table = Table(*COLUMNS)
    for row in plans:
        for name in row["modes"]:
            style, last = ("bold" if name == row["choice"] else None), name == list(row["modes"])[-1]
            table.add_row(*cells(row, name), style=style, end_section=last)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    console.print(table)
    for line in (*choices(plans), *remarks(head, plans)):
        console.print(line)


def _show_fits(fits: Sequence[PhaseFit], unseen: Sequence[str]) -> None:
    for fit in fits:
        seen = [(name, value) for name, value in fit.terms.items() if value]
        terms = " + ".join(f"{value:.3g} s" + ("" if name == "fixed" else f"/{name}") for name, value in seen)
        print(f"{fit.phase}: {fit.mean:.3f} s in the mean, off by {fit.residual:.0%} (RMS) = {terms or '0 s'}")
        if fit.unidentified:
            print(f"  could not be told apart, and counted as 0: {', '.join(fit.unidentified)}")
    for line in unseen:
        print(f"not seen: {line}")

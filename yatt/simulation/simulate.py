"""A whole simulated run, from the settings to its figures."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from yatt.config.schema import Config
from yatt.reward.filter import load_filter
from yatt.simulation.costs import Costs
from yatt.simulation.faults import Fault, inject
from yatt.simulation.ledger import Ledger, violations
from yatt.simulation.loop import VirtualClock, run
from yatt.simulation.world import Event, World
from yatt.supervisor import Supervisor
from yatt.types import EvaluationReport, PhaseSpan, RolloutCounts, StepReport


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFigures:
    """One step. `phases` are controller 0's, as in the metrics of a real run; `rollouts` [controllers] are the seconds
    of each controller's rollout. `idle` is the share of device-seconds in which neither an engine nor a rank worked.
    `sent` and `received` [controllers] are bytes over links."""

    step: int
    seconds: float
    phases: Mapping[str, float]
    rollouts: tuple[float, ...]
    counts: RolloutCounts
    tokens: int
    idle: float
    sent: tuple[int, ...]
    received: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulationReport:
    """A run. `steps` has every step once, as it was done last. `events` and `ledger` are there where asked for."""

    devices: int
    controllers: int
    generators: int
    ranks: int
    last: int
    seconds: float
    steps: tuple[StepFigures, ...]
    events: list[Event] = field(default_factory=list)
    ledger: Ledger | None = None
    wrong: tuple[str, ...] = ()


class Bookkeeper:
    """The run's journal (`yatt.supervisor.Journal`)."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.steps: dict[int, StepFigures] = {}
        self._before = self._used()

    def _used(self) -> tuple[float, float, list[int], list[int]]:
        world = self._world
        engines = (world.engine_busy + sum(e.busy for e in world.engines)) * world.engine_devices
        busy = engines + world.ranks.busy * world.rank_devices
        return VirtualClock().now(), busy, [s.sent for s in world.sites], [s.received for s in world.sites]

    def start(self, evaluation: EvaluationReport, spans: tuple[PhaseSpan, ...]) -> None:
        raise NotImplementedError(evaluation)

    def step(self, report: StepReport, evaluation: EvaluationReport | None, spans: tuple[PhaseSpan, ...]) -> None:
        world, (then, busy, sent, received) = self._world, self._before
        now, *_ = self._before = self._used()
        assert report.counts is not None
        rollouts = [next(s for s in other.spans if s.name == "rollout") for other in world.reports]
        self.steps[report.step] = StepFigures(
            step=report.step,
            seconds=now - then,
            phases=dict(report.phases),
            rollouts=tuple(span.stop - span.start for span in rollouts),
            counts=report.counts,
            tokens=report.counts.prompt_tokens + report.counts.response_tokens,
            idle=1 - (self._before[1] - busy) / max(1e-12, (now - then) * world.devices),
            sent=tuple(a - b for a, b in zip(self._before[2], sent, strict=True)),
            received=tuple(a - b for a, b in zip(self._before[3], received, strict=True)),
        )
        if world.ledger is not None:
            world.ledger.reports[report.step] = report

    def saved(self, step: int) -> None:
        pass

    def save_failed(self, step: int, error: Exception) -> None:
        raise error


def simulate(
    config: Config,
    costs: Costs,
    *,
    devices: int,
    controllers: int,
    steps: int,
    seed: int,
    faults: Sequence[Fault] = (),
    audit: bool = False,
    events: bool = False,
) -> SimulationReport:
    """Run `steps` steps in virtual time; evaluations are left out. The same arguments give the same report.

    `audit` checks the run's invariants (`wrong` says what they found) and keeps the ledger; `events` keeps the log.
    Raises what a real run would raise, and Stuck where all wait for each other.
    """
    sections = {
        "run": config.run.model_copy(update={"seed": seed}),
        "train": config.train.model_copy(update={"steps": steps}),
        "evaluate": type(config.evaluate)(),
    }
    settings = config.model_copy(update=sections)
    with few_collections():
        return run(_simulate(settings, costs, devices, controllers, faults, audit=audit, events=events))


@contextmanager
def few_collections() -> Iterator[None]:
    """Look for cycles rarely: a large run holds many objects for long, and walking them takes a fifth of its time."""
    before = gc.get_threshold()
    gc.set_threshold(100_000, 50, 100)
    try:
        yield
    finally:
        gc.set_threshold(*before)


async def _simulate(
    config: Config,
    costs: Costs,
    devices: int,
    controllers: int,
    faults: Sequence[Fault],
    *,
    audit: bool,
    events: bool,
) -> SimulationReport:
    ledger, log = Ledger() if audit else None, list[Event]() if events else None
    world = World(config, costs, devices=devices, controllers=controllers, ledger=ledger, events=log)
    inject(world, faults)
    journal = Bookkeeper(world)
    last = await Supervisor(config, world, journal, VirtualClock()).run(1)
    wrong: list[str] = []
    if ledger is not None:
        ledger.last = last
        wrong = violations(
            ledger,
            steps=config.train.steps,
            batch=config.train.batch_size,
            siblings=config.rollout.n,
            max_staleness=config.rollout.max_staleness,
            drop=load_filter(config.rollout),
        )
    return SimulationReport(
        devices=devices,
        controllers=controllers,
        generators=len(world.engines),
        ranks=len(world.ranks.nodes),
        last=last,
        seconds=VirtualClock().now(),
        steps=tuple(journal.steps[step] for step in sorted(journal.steps)),
        events=log or [],
        ledger=ledger,
        wrong=tuple(wrong),
    )

"""A whole simulated run, from the settings to its figures."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from yatt.config.schema import Config, EvaluateConfig
from yatt.reports import Decision, EvaluationReport, PhaseSpan, RolloutCounts, StepReport
from yatt.simulation.costs import Costs
from yatt.simulation.faults import Fault, inject
from yatt.simulation.loop import VirtualClock, run
from yatt.simulation.witness import Witness
from yatt.simulation.world import Event, World
from yatt.supervisor import Supervisor


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFigures:
    """One step. `phases` are controller 0's, as in the metrics of a real run; `rollouts` [controllers] are the seconds
    of each controller's rollout. `idle` is the share of device-seconds in which neither an engine nor a rank worked.
    `sent` and `received` [controllers] are bytes over links. `decisions` are the leader's on placement, the split that
    the rollout began with first; `spans` what engines, ranks and controller 0 did."""

    step: int
    seconds: float
    phases: Mapping[str, float]
    rollouts: tuple[float, ...]
    counts: RolloutCounts
    idle: float
    sent: tuple[int, ...]
    received: tuple[int, ...]
    decisions: tuple[Decision, ...]
    spans: tuple[PhaseSpan, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulationReport:
    """A run. `steps` has every step once, as it was done last; `events` is empty unless they were asked for."""

    last: int
    seconds: float
    steps: tuple[StepFigures, ...]
    events: list[Event]


class Bookkeeper:
    """The run's journal (`yatt.supervisor.Journal`)."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.steps: dict[int, StepFigures] = {}
        self._before = self._used()

    def _used(self) -> tuple[float, float, list[int], list[int]]:
        world = self._world
        engines = [*world.gone, *(engine for engines in world.engines.values() for engine in engines)]
        busy = sum(e.busy * len(e.slots) for e in engines) + world.ranks.busy * world.rank_devices
        return VirtualClock().now(), busy, [s.sent for s in world.sites], [s.received for s in world.sites]

    def start(self, evaluation: EvaluationReport, spans: tuple[PhaseSpan, ...]) -> None:
        raise NotImplementedError(evaluation)

    def step(self, report: StepReport, evaluation: EvaluationReport | None, spans: tuple[PhaseSpan, ...]) -> None:
        (then, busy, sent, received), self._before = self._before, self._used()
        now, busy_now, sent_now, received_now = self._before
        assert report.counts is not None
        rollouts = [next(s for s in other.spans if s.name == "rollout") for other in self._world.reports]
        self.steps[report.step] = StepFigures(
            step=report.step,
            seconds=now - then,
            phases=dict(report.phases),
            rollouts=tuple(span.stop - span.start for span in rollouts),
            counts=report.counts,
            idle=1 - (busy_now - busy) / max(1e-12, (now - then) * self._world.devices),
            sent=tuple(a - b for a, b in zip(sent_now, sent, strict=True)),
            received=tuple(a - b for a, b in zip(received_now, received, strict=True)),
            decisions=report.decisions,
            spans=report.spans + self._world.take_spans(),
        )
        self._world.witness.reported(report)

    def recovered(self, step: int) -> None:
        pass  # its steps are overwritten

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
    witness: Witness | None = None,
    events: bool = False,
) -> SimulationReport:
    """Run `steps` steps in virtual time; evaluations are left out. The same arguments give the same report.

    Raises what a real run would raise, and Stuck where all wait for each other.
    """
    sections = {
        "run": config.run.model_copy(update={"seed": seed}),
        "train": config.train.model_copy(update={"steps": steps}),
        "evaluate": EvaluateConfig(),
    }
    settings = config.model_copy(update=sections)
    log = list[Event]()

    async def main() -> SimulationReport:
        world = World(
            settings,
            costs,
            devices=devices,
            controllers=controllers,
            witness=witness or Witness(),
            events=log if events else None,
        )
        inject(world, faults)
        journal, clock = Bookkeeper(world), VirtualClock()
        last = await Supervisor(settings, world, journal, clock).run(1)
        done = tuple(journal.steps[step] for step in sorted(journal.steps))
        return SimulationReport(last=last, seconds=clock.now(), steps=done, events=log)

    with few_collections():
        return run(main())


@contextmanager
def few_collections() -> Iterator[None]:
    """Look for cycles rarely: a large run holds many objects for long, and walking them takes a fifth of its time."""
    before = gc.get_threshold()
    gc.set_threshold(100_000, 50, 100)
    try:
        yield
    finally:
        gc.set_threshold(*before)

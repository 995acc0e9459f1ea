"""Slots that change hands within a rollout: nothing is lost by it, and nothing goes wrong with faults beside it."""

from __future__ import annotations

import itertools
import logging
from collections import Counter
from typing import Any

import pytest

from tests.simulation.ledger import Audited, Ledger, audited
from tests.simulation.worlds import JUDGED, settings
from yatt.config.schema import ClusterConfig
from yatt.controller import director
from yatt.placement import policy
from yatt.placement.policy import Choice, Mode
from yatt.simulation.faults import KINDS, draw_faults
from yatt.simulation.simulate import simulate

SEEDS, BATCHES, DEVICES, CONTROLLERS = 40, 4, 8, 2

OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"refill": "one", "judge": {"judgements": 2}},
    {"oversample": 2.0, "max_staleness": 1, "every": 2},
    {"mode": "colocated"},
)


@pytest.fixture(autouse=True)
def few_looks(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A look every two seconds, where rollouts take twenty; and no word of each lost engine."""
    monkeypatch.setattr(director, "SOONEST", 2.0)
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def world(seed: int, faults: Any = (), **options: Any) -> Audited:
    options = {"mode": "dynamic", "judge": {}} | OPTIONS[seed % len(OPTIONS)] | options
    config = settings(**options)
    # A run that hangs is to end soon: the director looks on for as long as it hangs.
    config = config.model_copy(update={"cluster": ClusterConfig(step_timeout=2000.0)})
    return audited(config, JUDGED, devices=DEVICES, controllers=CONTROLLERS, steps=2, seed=seed, faults=faults)


@pytest.mark.slow
@pytest.mark.parametrize("batch", range(BATCHES))
def test_a_run_with_judges_and_faults_ends_and_is_right(batch: int) -> None:
    happened: Counter[str] = Counter()
    for seed in range(batch * SEEDS // BATCHES, (batch + 1) * SEEDS // BATCHES):
        faults = draw_faults(seed, until=60.0, kinds=KINDS)
        run = world(seed, faults)
        assert run.wrong == (), f"seed {seed}, {faults}: {run.wrong}"
        happened.update(run.happened)
    assert {"died", "recovers", "aborted"} <= happened.keys(), happened


def forced() -> Mode:
    """Changes at every fourth look, whatever was measured: one role gives blocks to the other, in turns."""
    turns = itertools.cycle([{"policy": 2, "judge": 6}, {"policy": 7, "judge": 1}, {"policy": 3, "judge": 5}])
    looks = itertools.count(1)

    def start(*measured: Any) -> Choice:
        return Choice(split={"policy": 8, "judge": 0}, seconds=0.0, why="begin")

    def look(*measured: Any) -> Choice | None:
        return Choice(split=next(turns), seconds=0.0, why="forced") if next(looks) % 4 == 0 else None

    return Mode(start=start, look=look)


@pytest.mark.slow
def test_forced_moves_lose_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every response has the tokens, versions and reward it has where no slot changes hands, in every step."""
    monkeypatch.setitem(policy.MODES, "dynamic", lambda given, parameters: forced())
    moved: Counter[str] = Counter()
    for seed in range(4):
        still, _ = trajectories(seed, mode="partial", split={"policy": 5, "judge": 3})
        forth_and_back, events = trajectories(seed, mode="dynamic")
        assert forth_and_back == still
        assert [len(samples) for samples in still[0].values()] == [24, 24, 24]  # 8 prompts of 3 responses
        moved.update(event[1].split()[0] for event in events if event[2] == "aborted")
    assert moved.keys() == {"generator", "judge"}  # of both roles some went on elsewhere


def trajectories(seed: int, **placement: Any) -> tuple[tuple[Any, ...], list[Any]]:
    """By step, what every response's tokens were sampled under and what was trained; every score; and the events."""
    ledger = Ledger()
    config = settings(batch=8, judge={"judgements": 2}, filter="none", refill="one", **placement)
    options = {"devices": 8, "controllers": 2, "steps": 3, "seed": seed, "events": True}
    report = simulate(config, JUDGED, witness=ledger, **options)
    trained = {step: sorted((key, said) for key, _, said in book.trained) for step, book in ledger.steps.items()}
    accepted = {step: sorted(book.accepted) for step, book in ledger.steps.items()}
    return (trained, accepted, ledger.scores), report.events

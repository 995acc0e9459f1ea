"""Small runs in which things go wrong at random moments, hundreds a change: each ends, and each is right."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from tests.simulation.ledger import Audited, audited
from tests.simulation.worlds import COSTS, settings
from yatt.simulation.costs import Costs, Lengths
from yatt.simulation.faults import KINDS, Fault, draw_faults

STEPS, DEVICES, CONTROLLERS = 3, 16, 2  # two nodes of two engines of four devices each
BATCH = 100
"""Seeds of a test."""
BATCHES = (*range(5), *(pytest.param(batch, marks=pytest.mark.long) for batch in range(5, 40)))

# Steps of a second: long enough that routers look twice at an engine that has turned slow, and take its work over.
SLOW_DECODING = replace(COSTS, engine=replace(COSTS.engine, step=1.0))

MANY_EQUAL = replace(COSTS, workload=replace(COSTS.workload, equal_groups=0.6, image_bytes=0))

# What a seed's world is like beside its faults.
OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"refill": "one", "n": 2},
    {"oversample": 2.0, "max_staleness": 1, "every": 2},
    {"sleep": False, "max_refills": 0, "n": 2},
)


@pytest.fixture(autouse=True)
def quiet() -> Any:
    """The fleet warns of every engine it loses."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def world(seed: int, faults: Sequence[Fault], costs: Costs | None = None, **options: Any) -> Audited:
    return audited(
        settings(
            train={"tp": 4}, **({"engine_args": {"tensor_parallel_size": 4}} | OPTIONS[seed % len(OPTIONS)] | options)
        ),
        costs or (SLOW_DECODING if seed % 3 else MANY_EQUAL),
        devices=DEVICES,
        controllers=CONTROLLERS,
        steps=STEPS,
        seed=seed,
        faults=faults,
    )


@cache
def seconds(seed: int) -> float:
    """How long such a run is without faults."""
    return world(seed, ()).report.seconds


@pytest.mark.slow
@pytest.mark.parametrize("batch", BATCHES)
def test_a_run_with_faults_ends_and_is_right(batch: int) -> None:
    happened: Counter[str] = Counter()
    for seed in range(batch * BATCH, (batch + 1) * BATCH):
        faults = draw_faults(seed, until=seconds(seed % 12))
        run = world(seed, faults)
        assert run.wrong == (), f"seed {seed}, {faults}: {run.wrong}"
        happened.update(run.happened)
    # The faults do come to bear: engines and others die, the crew recovers, messages are late, requests are put back.
    assert {"died", "recovers", "slow", "delayed", "aborted", "preempt"} <= happened.keys(), happened


def test_a_run_with_greedy_responses_ends_and_is_right() -> None:
    for seed in range(12):
        run = world(seed, draw_faults(seed, until=seconds(seed % 12)), algorithm="remax")
        assert run.wrong == (), f"seed {seed}: {run.wrong}"
        drawn = 3 if seed % 2 else 4  # n is 2 or 3
        for step in run.report.steps:
            assert step.counts.responses == drawn * (step.counts.groups_accepted + step.counts.groups_dropped)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_fault_at_every_twentieth_of_a_run(kind: Any) -> None:
    for twentieth in range(20):
        run = world(1, [Fault(kind=kind, at=seconds(1) * twentieth / 20, target=1, amount=8.0)])
        assert run.wrong == (), f"{kind} after {twentieth}/20: {run.wrong}"


def test_a_run_with_faults_is_reproduced_by_its_seed() -> None:
    for seed in range(5):
        faults = draw_faults(seed, until=seconds(seed % 12))
        assert draw_faults(seed, until=seconds(seed)) == faults != draw_faults(seed + 1, until=seconds(seed))
        assert world(seed, faults).report.events == world(seed, faults).report.events


def test_an_engine_that_dies_is_lost_to_its_controllers_and_its_work_is_not() -> None:
    """At five seconds all four engines draw. Every group of the step is trained all the same, by the three left."""
    run = world(1, [Fault(kind="engine dies", at=5.0, target=2)], filter="none")
    assert ("generator 2", "died") in {event[1:3] for event in run.report.events}
    assert run.wrong == () and all(step.counts.groups == 4 for step in run.report.steps)
    assert "recovers" not in run.happened


def test_a_controller_that_dies_costs_the_steps_since_the_checkpoint_and_no_more() -> None:
    whole = world(0, ())
    second = next(event[0] for event in whole.report.events if event[2:4] == ("step", 2))
    run = world(0, [Fault(kind="controller dies", at=second + 1.0, target=1)])
    steps = [event[3] for event in run.report.events if event[2] == "step"]
    assert steps == [1, 2, 2, 3]
    assert run.wrong == ()


def test_a_hanging_score_is_a_failure_and_never_a_reward() -> None:
    """The sibling whose score hung is not trained; the others of its group are, or are dropped."""
    run = world(0, [Fault(kind="scorer hangs", at=1.0, target=0)])
    assert sum(step.counts.reward_timeouts for step in run.report.steps) >= 1
    assert run.wrong == ()


def test_a_slow_engine_loses_its_work_to_the_others() -> None:
    """Responses of 50 tokens or so, a second each; of one engine a hundred seconds each. What it was given is aborted
    after two looks, at 20 s, and drawn by the others: the step takes minutes, not the hour and more of 50 tokens."""
    slow = Fault(kind="engine is slow", at=0.0, target=1, amount=100.0)
    long = replace(SLOW_DECODING, workload=replace(COSTS.workload, responses=(Lengths(median=50, p99=60),)))
    run = world(1, [slow], long, filter="none")
    assert run.wrong == ()
    assert "aborted" in {event[2] for event in run.report.events if event[1] == "generator 1"}
    assert run.report.steps[0].seconds < 600


def test_death_while_recovering_is_recovered_from() -> None:
    """The second controller dies while the first one's death is being recovered from, in the load of the weights."""
    whole = world(0, [Fault(kind="controller dies", at=2.0, target=0)])
    recovering = next(event[0] for event in whole.report.events if event[2] == "recovers")
    run = world(0, [Fault(kind="controller dies", at=a, target=t) for t, a in enumerate((2.0, recovering + 1.2))])
    assert [event[2] for event in run.report.events].count("recovers") == 2
    assert run.wrong == ()

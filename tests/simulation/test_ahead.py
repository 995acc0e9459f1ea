"""Responses drawn while the step before trains, on slots of their own."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest

from tests.simulation.ledger import Audited, audited
from tests.simulation.worlds import COSTS, settings
from yatt.simulation.faults import draw_faults
from yatt.simulation.simulate import simulate
from yatt.simulation.witness import Witness
from yatt.types import Share

# A step's training takes about as long as its rollout.
SLOW_TRAINING = replace(COSTS, trainer=replace(COSTS.trainer, per_update=6.0))


def run(max_staleness: int, *, seed: int = 1, every: int = 0, faults=()) -> Audited:
    config = settings(max_staleness=max_staleness, batch=8, mode="disaggregated", every=every)
    return audited(config, SLOW_TRAINING, devices=4, controllers=2, steps=5, seed=seed, faults=faults)


def test_training_hides_behind_the_next_rollout() -> None:
    """Steps of the same work: one after the other each takes rollout + training, ahead the longer of both."""
    after, ahead = run(0), run(1)
    assert after.wrong == ahead.wrong == ()
    assert ahead.report.seconds < 0.75 * after.report.seconds


class Versions(Witness):
    """Which policy versions the response tokens of each trained sample come from: their ids, past the prompt."""

    def __init__(self) -> None:
        self.of: dict[int, list[tuple[int, ...]]] = {}

    def trained(self, step: int, share: Share) -> None:
        samples = [sample for update in share.updates for micro in update for sample in micro]
        seen = [tuple(np.unique(sample.tokens[sample.loss_mask]).tolist()) for sample in samples]
        self.of.setdefault(step, []).extend(seen)


def test_what_is_being_drawn_when_the_version_changes_goes_on_under_the_new_one() -> None:
    seen = Versions()
    config = settings(max_staleness=1, batch=8, mode="disaggregated", every=0)
    simulate(config, SLOW_TRAINING, devices=4, controllers=2, steps=5, seed=1, witness=seen)
    for step, versions in seen.of.items():
        assert {version for mine in versions for version in mine} <= {step - 2, step - 1} - {-1}
    assert any(len(mine) == 2 for versions in seen.of.values() for mine in versions)


@pytest.mark.slow
def test_with_faults_and_checkpoints_every_group_is_trained_once() -> None:
    logging.disable(logging.WARNING)  # the fleet warns of every engine it loses
    try:
        until, died = run(1, every=2).report.seconds, 0
        for seed in range(100):
            faulty = run(1, seed=seed, every=2, faults=draw_faults(seed, until=until))
            assert faulty.wrong == (), f"seed {seed}: {faulty.wrong}"
            died += "recovers" in faulty.happened
        assert died > 20
    finally:
        logging.disable(logging.NOTSET)

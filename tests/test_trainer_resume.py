"""Settings that differ from those of the checkpoint a run goes on from: the new ones are what happens."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.megatron_cases import OPTIMIZER, RATES, Reference, config, make_samples, shares, worst
from tests.megatron_pool import play
from tests.tiny_models import save_tiny
from yatt.algorithm.kl import AdaptiveCoefficient

pytestmark = pytest.mark.slow

PLAIN = (1e-3, 8.875e-4)
"""Rates of the third and the fourth update as the checkpoint's settings have them: down from 1e-3 to 1e-4 in eight."""


@dataclass(frozen=True)
class Case:
    """What is set anew, and what that makes of torch's AdamW: the two rates, its groups, and the largest norm."""

    optimizer: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)
    rates: tuple[float, float] = PLAIN
    groups: dict[str, Any] = field(default_factory=dict)
    clip: float = 1.0


CASES = {
    "betas": Case({"betas": (0.1, 0.5)}, groups={"betas": (0.1, 0.5)}),
    "eps": Case({"eps": 1e-2}, groups={"eps": 1e-2}),
    "weight_decay": Case({"weight_decay": 2.0}, groups={"weight_decay": 2.0}),
    "clip_grad": Case({"clip_grad": 0.01, "eps": 1e-2}, groups={"eps": 1e-2}, clip=0.01),
    "clip_grad off": Case({"clip_grad": 0.0, "eps": 1e-2}, groups={"eps": 1e-2}, clip=math.inf),
    "learning_rate": Case({"learning_rate": 5e-4}, rates=(5e-4, 4.5e-4)),
    "min_learning_rate": Case({"min_learning_rate": 5e-4}, rates=(1e-3, 9.375e-4)),
    "schedule": Case({"schedule": "constant"}, rates=(1e-3, 1e-3)),
    "cosine": Case({"schedule": "cosine"}, rates=(1e-3, 1e-4 + 9e-4 * (1 + math.cos(math.pi / 8)) / 2)),
    "warmup_steps": Case({"warmup_steps": 4}, rates=(7.5e-4, 1e-3)),
    "steps": Case(train={"steps": 4}, rates=(1e-3, 5.5e-4)),
    # Two of ten steps are done: four of twenty updates, of which two were the warm-up.
    "updates_per_step": Case(train={"updates_per_step": 2}, rates=(9e-4, 8.5e-4)),
    "epochs_per_step": Case(train={"epochs_per_step": 2, "steps": 10}, rates=(9e-4, 9e-4)),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny(tmp_path_factory.mktemp("model"), "qwen3", spread=2.0)


@pytest.fixture(scope="module")
def begun(folder: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Reference]:
    """A checkpoint after two updates, and torch's own state then."""
    path = str(tmp_path_factory.mktemp("checkpoint") / "c")
    script = [*(("update", shares(make_samples(seed), 1)) for seed in (0, 1)), ("call", "save", path)]
    play(1, config(folder), script)
    reference = Reference(folder)
    for seed in (0, 1):
        reference.step(make_samples(seed), RATES[seed])
    return path, reference


def by_hand(reference: Reference, case: Case) -> Reference:
    """Torch's state, set by hand and gone on with."""
    reference = copy.deepcopy(reference)
    for group, matrices in zip(reference.optimizer.param_groups, (True, False), strict=True):
        group |= {key: value for key, value in case.groups.items() if matrices or key != "weight_decay"}
    reference.clip = case.clip
    for seed, rate in zip((2, 3), case.rates, strict=True):
        reference.step(make_samples(seed), rate)
    return reference


@pytest.mark.parametrize("name", [name for name in CASES if name != "epochs_per_step"])
def test_what_is_set_anew_is_what_happens(folder: str, begun: tuple[str, Reference], name: str) -> None:
    path, reference = begun
    case = CASES[name]
    settings = config(folder, **{"optimizer": OPTIMIZER | case.optimizer, **case.train})
    script = [("call", "load", path), *(("update", shares(make_samples(seed), 1)) for seed in (2, 3)), ("export",)]
    _, third, fourth, found = play(1, settings, script)[0]
    assert (third.learning_rate, fourth.learning_rate) == pytest.approx(case.rates, rel=1e-12)
    wanted = by_hand(reference, case)
    assert worst(found, wanted.weights()) <= 1e-5
    assert worst(by_hand(reference, Case()).weights(), wanted.weights()) > 4e-5, "else nothing is shown"


def test_two_passes_over_a_step_keep_the_schedules_place(folder: str, begun: tuple[str, Reference]) -> None:
    """The rate reported is that of the step's last update: the second of two."""
    settings = config(folder, **CASES["epochs_per_step"].train)
    script = [("call", "load", begun[0]), ("update", shares(make_samples(2), 1))]
    assert play(1, settings, script)[0][1].learning_rate == pytest.approx(8.5e-4, rel=1e-12)


def test_the_last_step_is_the_schedules_last(folder: str, begun: tuple[str, Reference]) -> None:
    """However many updates a step has from here on, the rate reaches its end with the run."""
    for train in ({"steps": 3}, {"steps": 3, "epochs_per_step": 4}):
        script = [("call", "load", begun[0]), ("update", shares(make_samples(2), 1))]
        rate = play(1, config(folder, **train), script)[0][1].learning_rate
        updates = 3 * train.get("epochs_per_step", 1)
        assert rate == pytest.approx(1e-3 - 9e-4 * (updates - 1 - 2) / (updates - 2), rel=1e-12)


def test_the_weight_of_the_kl_is_the_settings_unless_it_was_adapted_from_there() -> None:
    adapted = AdaptiveCoefficient(0.5, 6.0, 1000.0)
    adapted.update(60.0, 100)
    for first, target, then in (
        (0.5, 6.0, 0.51),
        (0.5, 3.0, 0.51),
        (0.2, 6.0, 0.2),
        (0.5, None, 0.5),
        (0.2, None, 0.2),
    ):
        resumed = AdaptiveCoefficient(first, target, 1000.0)
        resumed.restore(adapted.state())
        assert resumed.value == pytest.approx(then), (first, target)
    older = AdaptiveCoefficient(0.5, 6.0, 1000.0)
    older.restore(0.3)
    assert older.value == 0.3
    fixed = AdaptiveCoefficient(0.1, None, 1000.0)
    fixed.restore(0.3)
    assert fixed.value == 0.1


def test_a_fixed_weight_of_the_kl_set_anew_is_what_happens(folder: str, tmp_path: Path) -> None:
    """The KL is all the reward there is here: four times its weight is four times the advantage."""
    other = save_tiny(tmp_path / "other", "qwen3", spread=2.0, seed=1)
    path = str(tmp_path / "c")

    def settings(weight: float) -> dict[str, Any]:
        given = config(folder)
        given["model"]["reference"] = other
        given["algorithm"] |= {"name": "reinforce_plus_plus", "kl": {"coefficient": weight, "place": "reward"}}
        given["algorithm"]["whiten"] = "none"
        return given

    update = ("update", shares(make_samples(2), 1))
    play(1, settings(0.1), [("update", shares(make_samples(0), 1)), ("call", "save", path)])
    weights = {weight: play(1, settings(weight), [("call", "load", path), update])[0][1] for weight in (0.1, 0.4)}
    assert [weights[w].numbers["kl_coefficient"] for w in (0.1, 0.4)] == [0.1, 0.4]
    assert weights[0.4].grad_norm > 2 * weights[0.1].grad_norm > 0

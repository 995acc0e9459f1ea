"""Whole simulated runs without faults: deterministic, right, and as long as the costs say."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest

from tests.simulation.ledger import audited
from tests.simulation.worlds import COSTS, costs, settings
from yatt.config.algorithms import RECIPES
from yatt.errors import BackendError, ConfigError
from yatt.simulation.costs import ControllerCosts, EngineCosts, Lengths, ScorerCosts, TrainerCosts
from yatt.simulation.simulate import simulate

PLAIN = EngineCosts(step=0.1, per_request=0.0, per_kv_token=0.0, load=0.0)
NOTHING = TrainerCosts(per_token=0.0, per_token_squared=0.0, per_update=0.0)
SMALL = partial(audited, settings(), COSTS, devices=4, controllers=2, steps=3)


def test_a_seed_reproduces_every_event() -> None:
    first, again, other = (SMALL(seed=seed).report for seed in (1, 1, 2))
    assert len(first.events) > 50
    assert first.events == again.events and first.steps == again.steps
    assert first.events != other.events


def test_three_steps_of_two_controllers_are_right() -> None:
    run = SMALL(seed=1)
    report = run.report
    assert report.last == 3 and [s.step for s in report.steps] == [1, 2, 3]
    assert run.wrong == ()
    assert [s.counts.groups for s in report.steps] == [4, 4, 4]
    assert sum(s.counts.groups_dropped for s in report.steps) > 0
    assert sum(s.seconds for s in report.steps) == pytest.approx(report.seconds)
    assert all(0 < s.idle < 1 for s in report.steps)


@pytest.mark.parametrize("name", [name for name, recipe in RECIPES.items() if recipe.reinforces])
def test_every_algorithm_that_draws_responses_is_simulated(name: str) -> None:
    config = settings(algorithm=name)
    reward = config.reward.model_copy(update={"function": "reward.py:reward"})  # its value is a part, too
    run = audited(config.model_copy(update={"reward": reward}), COSTS, devices=2, controllers=1, steps=1, seed=0)
    assert run.wrong == ()
    assert run.report.steps[0].counts.part_sums["reward"] == pytest.approx(run.report.steps[0].counts.reward_sum)


@pytest.mark.parametrize(
    ("controllers", "devices", "options"),
    [
        (1, 2, {}),
        (3, 8, {"batch": 5}),
        (4, 16, {"batch": 8, "train": {"tp": 2}, "engine_args": {"tensor_parallel_size": 4}}),
        (2, 8, {"train": {"pp": 2, "updates_per_step": 2}}),
        (2, 4, {"sleep": False, "refill": "one"}),
        (2, 4, {"oversample": 2.0, "max_staleness": 2}),
    ],
)
def test_many_shapes_are_right(controllers: int, devices: int, options: dict) -> None:
    for seed in range(5):
        run = audited(settings(**options), COSTS, devices=devices, controllers=controllers, steps=3, seed=seed)
        assert run.wrong == ()


def test_phases_by_hand() -> None:
    """One engine, one rank, one controller; every response of 10 tokens, all 2 x 3 drawn at once.

    Rollout: reading 2 prompts of 16 tokens at 0.01 s, 10 steps of 0.1 + 6 * 0.05 = 0.4 s, six responses handled one
    after the other at 0.02 s, a score of 0.5 s: 0.32 + 4 + 0.12 + 0.5 = 4.94 s. The rank, awake at the start, is first
    offloaded in 0.3 s and the engine, awake too, needs nothing: 5.24 s; in step 2 it also wakes, in 0.7 s: 5.94 s.
    Train: the engine sleeps in 0.6 s, the rank is loaded in 0.4 s; 6 samples of 26 tokens at 0.01 s make 1.56 s, two
    micro-batches of at most 100 tokens 0.2 s, the update 0.25 s: 3.01 s.
    Sync: 0.5 s to export and 1 s to load.
    """
    costs = replace(
        COSTS,
        engine=EngineCosts(step=0.1, per_request=0.05, per_kv_token=0.0, prefill=0.01, load=1.0, sleep=0.6, wake=0.7),
        trainer=TrainerCosts(
            per_token=0.01,
            per_token_squared=0.0,
            per_micro_batch=0.1,
            per_update=0.25,
            offload=0.3,
            onload=0.4,
            export=0.5,
        ),
        scorer=ScorerCosts(seconds=0.5),
        controller=ControllerCosts(per_response=0.02, per_step=0.05),
        workload=replace(
            COSTS.workload, responses=(Lengths(median=10, p99=10),), equal_groups=0.0, image_bytes=0, prompt_tokens=16
        ),
    )
    config = settings(batch=2, filter="none")
    config = config.model_copy(update={"train": config.train.model_copy(update={"tokens_per_micro_batch": 100})})
    report = simulate(config, costs, devices=1, controllers=1, steps=2, seed=0)
    first, second = (step.phases for step in report.steps)
    assert first["rollout"] == pytest.approx(5.24) and second["rollout"] == pytest.approx(5.94)
    assert first["train"] == pytest.approx(3.01) and second["train"] == pytest.approx(3.01)
    assert first["sync"] == pytest.approx(1.5) and second["sync"] == pytest.approx(1.5)
    assert first["report"] == pytest.approx(0.05)


def test_a_prompts_images_are_seen_once_by_its_engine_and_once_in_a_micro_batch() -> None:
    """Of 2 prompts with 3 responses each: 2 towers of 0.5 s in the rollout, and in the one micro-batch 2 of 0.25 s.

    Rollout: offloading 0.3, reading 0.32, towers 1.0, 10 steps of 0.1 s: 2.62 s. Train: sleeping and loading 1.0,
    6 samples of 26 tokens at 0.01 s 1.56, the micro-batch 0.1, towers 0.5: 3.16 s.
    """
    costs = replace(
        COSTS,
        engine=replace(PLAIN, step=0.1, prefill=0.01, images=0.5, sleep=0.6),
        trainer=replace(NOTHING, per_token=0.01, per_micro_batch=0.1, offload=0.3, onload=0.4, images=0.25),
        scorer=ScorerCosts(seconds=0.0),
        controller=ControllerCosts(per_response=0.0, per_step=0.0),
        workload=replace(
            COSTS.workload, responses=(Lengths(median=10, p99=10),), equal_groups=0.0, image_bytes=0, image_pixels=9
        ),
    )
    (step,) = simulate(settings(batch=2, filter="none"), costs, devices=1, controllers=1, steps=1, seed=0).steps
    assert step.phases["rollout"] == pytest.approx(2.62)
    assert step.phases["train"] == pytest.approx(3.16)


def test_bytes_are_split_over_controllers() -> None:
    """Images of 100 kB outweigh the rest: of 8 prompts' images each of 4 controllers sends about a quarter."""
    run = partial(simulate, settings(batch=8, filter="none"), costs(image_bytes=100_000), devices=32, steps=2, seed=0)
    (one,) = run(controllers=1).steps[0].sent
    several = run(controllers=4).steps[0].sent
    assert len(several) == 4 and max(several) < 0.5 * one


def test_devices_must_divide() -> None:
    with pytest.raises(ConfigError, match=r"train.tp \* train.pp=3 does not divide 4 devices; use 3"):
        simulate(settings(train={"tp": 3}), COSTS, devices=4, controllers=1, steps=1, seed=0)


def test_a_response_that_cannot_fit_is_an_error() -> None:
    with pytest.raises(BackendError, match="do not fit a KV cache of 120"):
        simulate(settings(max_tokens=400), COSTS, devices=4, controllers=1, steps=1, seed=0)

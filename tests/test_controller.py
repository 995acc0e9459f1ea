"""The heart on doubles: the whole loop, its invariants, and what it does when things do not come."""

import asyncio
import json
from collections import Counter
from dataclasses import asdict, replace

import numpy as np
import pytest
from doubles import RecordingTrainer, ScriptedGenerator, World, merge

from yatt.cluster.payload import payload_bytes
from yatt.config.schema import (
    AlgorithmConfig,
    Config,
    ModelConfig,
    PlacementConfig,
    RolloutConfig,
    RunConfig,
    TrainConfig,
)
from yatt.controller.assembly import resident
from yatt.controller.exchange import Exchange
from yatt.controller.fleet import Fleet
from yatt.controller.peers import Hub, HubPeers
from yatt.controller.recorder import Recorder
from yatt.controller.responder import request_seed
from yatt.controller.weight_sync import WeightSync
from yatt.errors import BackendError, WaitTimeout
from yatt.faces.metrics import metrics_row
from yatt.reports import RolloutCounts, UpdateReport, add_counts, first_failures
from yatt.types import Sample, SampleKey, Score, WeightManifest


def by_seed(trajectory):
    return float(trajectory.tokens[-2] % 3)


async def test_the_result_does_not_depend_on_which_controller_drew_which_prompt():
    worlds = [World(c, by_seed) for c in (1, 2, 3)]
    for world in worlds:
        for step in (1, 2, 3):
            await world.step(step)
    for step in (1, 2, 3):
        one, two, three = (world.trained(step) for world in worlds)
        assert len(one) == 6 * 4
        assert one == two == three
    assert [sorted(w.groups[2]) for w in worlds] == [list(range(6, 12))] * 3


async def test_a_step_publishes_one_version_and_every_engine_serves_it_before_the_next():
    world = World(2, by_seed)
    reports = [await world.step(step) for step in (1, 2)]
    assert [r.policy_version for r in reports[1]] == [2, 2]
    assert world.trainer.exported == [1, 2]
    for generator in world.generators:
        first = later = ["wake", "resume"]
        train = ["sleep"]
        assert generator.events == [*first, *train, "load 1", *later, *train, "load 2"]
    versions = {s.tokens[-1] for rank in world.trainer.steps[2][0] for micro in rank for s in micro}
    assert versions == {1}


async def test_counts_add_up_over_controllers_and_reports_agree():
    world = World(3, by_seed, batch=7)
    reports = await world.step(1)
    counts = reports[0].counts
    assert all(r.counts == counts and r.update == reports[0].update for r in reports)
    assert (counts.groups, counts.responses, counts.scored, counts.response_tokens) == (7, 28, 28, 56)
    seeds = [request_seed(11, SampleKey(uid, sibling), "rollout") for uid in range(7) for sibling in range(4)]
    assert counts.reward_sum == counts.part_sums["r"] == sum(seed % 7 % 3 for seed in seeds)
    assert (counts.groups_missing, counts.groups_wasted, reports[0].generators) == (0, 0, 2)
    assert set(reports[0].phases) == {"rollout", "balance", "train", "sync", "report"}


def some_parts(trajectory):
    """A part that siblings 0 and 1 have, with 2.5 and 4.5, and one that row 3 alone has."""
    parts = {"r": 1.0} | ({"some": 2.5 + 2 * trajectory.sibling} if trajectory.sibling < 2 else {})
    return Score(
        status="ok",
        value=float(trajectory.sibling),
        parts=parts | ({"rare": 7.0} if trajectory.prompt.text == "3" else {}),
    )


@pytest.mark.parametrize("controllers", [1, 2, 3])
async def test_a_part_is_averaged_over_the_responses_that_have_it(controllers):
    world = World(controllers, some_parts, batch=6, rows=6)
    report = (await world.step(1))[0]
    assert report.counts.part_counts == {"r": 24, "some": 12, "rare": 4}
    row = metrics_row(report)
    assert row["parts"] == {"r": 1.0, "some": 3.5, "rare": 7.0}  # not over all 24: 1.75 and 28 / 24
    assert "part_counts" not in row


@pytest.mark.parametrize("order", [range, lambda n: range(n - 1, -1, -1)])
async def test_dropped_groups_are_replaced_by_the_next_prompts_whatever_ends_first(order):
    # Rows 1, 3, 5 ... teach nothing. One controller owes 4: it takes the shortest run of its order with 4 even rows.
    world = World(
        1, lambda t: float(t.sibling) if int(t.prompt.text) % 2 == 0 else 1.0, batch=4, order=order,
        rollout=RolloutConfig(n=2, filter="all_equal", refill="one", max_refills=5),
    )  # fmt: skip
    source = world.controllers[0].desk.source
    source.begin_step()
    rows = [int(source.draw().text) for _ in range(24)]
    expected = next(d for d in range(4, 25) if sum(row % 2 == 0 for row in rows[:d]) == 4)
    counts = (await world.step(1))[0].counts
    assert (counts.groups, counts.groups_dropped, counts.refills) == (4, expected - 4, expected - 4)
    assert source.state()["next"] == expected


async def test_refills_are_bounded_and_the_step_goes_on_with_what_it_has():
    judge = lambda t: float(t.sibling) if t.prompt.uid < 2 else 1.0  # noqa: E731
    world = World(1, judge, batch=3, rollout=RolloutConfig(n=2, filter="all_equal", refill="one", max_refills=2))
    counts = (await world.step(1))[0].counts
    assert (counts.groups, counts.groups_dropped, counts.refills) == (2, 7, 6)
    assert len(world.trained(1)) == 4


async def test_a_step_without_any_group_still_ends():
    world = World(
        2, lambda t: 1.0, batch=2, rollout=RolloutConfig(n=2, filter="all_equal", refill="one", max_refills=0)
    )
    reports = await world.step(1)
    assert reports[0].counts.groups == 0
    assert world.trained(1) == []


async def test_failed_rewards_are_excluded_and_counted_never_zero():
    judge = lambda t: None if t.sibling == 1 else float(t.sibling)  # noqa: E731
    world = World(1, judge, batch=2)
    counts = (await world.step(1))[0].counts
    assert (counts.reward_failures, counts.scored, counts.reward_sum) == (2, 6, 2 * (0 + 2 + 3))
    assert {key.sibling for _, _, _, key, _, _ in world.trained(1)} == {0, 2, 3}
    # Rewards 0, 2, 3: mean 5/3, sample standard deviation sqrt(7/3); the failed sibling is not part of either.
    advantages = sorted({a for *_, a in world.trained(1)})
    std = (7 / 3) ** 0.5
    assert advantages == pytest.approx([(0 - 5 / 3) / std, (2 - 5 / 3) / std, (3 - 5 / 3) / std], rel=1e-5)


async def test_a_group_with_one_score_left_is_dropped():
    world = World(
        1, lambda t: None if t.sibling else 1.0, batch=1, rollout=RolloutConfig(n=3, refill="one", max_refills=1)
    )
    counts = (await world.step(1))[0].counts
    assert (counts.groups, counts.groups_dropped, counts.refills) == (0, 2, 1)


async def test_a_resumed_run_sees_the_prompts_that_an_uninterrupted_one_sees():
    through = World(2, by_seed)
    for step in (1, 2, 3, 4):
        await through.step(step)
    first = World(2, by_seed)
    for step in (1, 2):
        await first.step(step)
    await asyncio.gather(*(c.phases.enter("rollout") for c in first.controllers))  # as an evaluation leaves it
    states = await asyncio.gather(*(c.state() for c in first.controllers))
    assert states[0] == states[1]
    state, carried = states[0]
    assert carried == []
    assert first.trainer.awake, "what only training needs is saved too: the ranks must have it back"
    second = World(3, by_seed)
    await asyncio.gather(*(c.restore(state) for c in second.controllers))
    assert [g.served for g in second.generators] == [2, 2]
    for step in (3, 4):
        await second.step(step)
        assert second.trained(step) == through.trained(step)


def sample(uid, sibling, length):
    mask = np.zeros(length, dtype=bool)
    mask[length // 2 :] = True
    return Sample(key=SampleKey(uid, sibling), tokens=np.full(length, uid, dtype=np.int32), loss_mask=mask)


async def test_the_exchange_sends_each_sample_once_and_counts_globally():
    everything = [sample(uid, sibling, 3 + (uid * 7 + sibling) % 9) for uid in range(20) for sibling in range(2)]
    results = []
    for count in (1, 3):
        hub = Hub(count, timeout=5)
        each = await asyncio.gather(
            *(
                Exchange(HubPeers(i, count, hub), ranks=4, updates=2, budget=24, quadratic=0.01).balance(
                    5, everything[i::count]
                )
                for i in range(count)
            )
        )
        shares = [share for mine in each for share in mine]
        merged = merge(shares, 4)
        sent = Counter(s.key for update in merged for rank in update for micro in rank for s in micro)
        assert sent == Counter(s.key for s in everything)
        assert all(sum(len(s.tokens) for s in micro) <= 24 for u in merged for rank in u for micro in rank)
        assert all(len({len(rank) for rank in update}) == 1 for update in merged)
        denominators = shares[0].denominators
        assert all(s.denominators == denominators for s in shares)
        for update, denominator in zip(merged, denominators, strict=True):
            held = [s for rank in update for micro in rank for s in micro]
            assert denominator.tokens == sum(s.trained_tokens for s in held)
            assert denominator.sequences == len(held)
        results.append([[[[s.key for s in micro] for micro in rank] for rank in update] for update in merged])
    assert results[0] == results[1]


async def test_the_hub_names_who_did_not_come():
    hub = Hub(3, timeout=0.05)
    with pytest.raises(WaitTimeout, match=r"controller 0 waited 0.05 s at 'x' for controllers \[1\]"):
        await asyncio.gather(hub.gather("x", 0, "a"), hub.gather("x", 2, "c"))
    hub = Hub(2, timeout=5)
    for _ in range(2):
        assert await asyncio.gather(hub.gather("y", 1, "b"), hub.gather("y", 0, "a")) == [["a", "b"]] * 2


def test_seeds_depend_on_run_prompt_sibling_and_purpose_alone():
    keys = [SampleKey(u, s) for u in range(50) for s in range(8)]
    seeds = {request_seed(0, k, "rollout") for k in keys} | {request_seed(1, k, "rollout") for k in keys}
    assert len(seeds) > 795 and all(0 <= s < 2**31 for s in seeds)
    assert request_seed(0, keys[3], "rollout") == request_seed(0, keys[3], "rollout")
    assert request_seed(0, keys[3], "rollout") != request_seed(0, keys[3], "evaluate")


async def test_an_engine_left_behind_is_an_error():
    class Stubborn(ScriptedGenerator):
        async def load(self, manifest):
            return 0

    peers = HubPeers(0, 1, Hub(1, 1))
    with pytest.raises(BackendError, match=r"version 3 did not reach the generators on slots \[\(0,\)\]"):
        await WeightSync(Fleet([Stubborn(0)]), RecordingTrainer(1), peers, 1e-3).send(3)


async def test_a_node_without_a_manifest_is_named():
    class Elsewhere(RecordingTrainer):
        async def export(self, version):
            return {"there": WeightManifest(version=version, kind="flat", path="", checksum="")}

    with pytest.raises(BackendError, match="node here has a generator but no rank"):
        await WeightSync(Fleet([ScriptedGenerator(0)]), Elsewhere(1), HubPeers(0, 1, Hub(1, 1)), 1e-3).send(1)


class Clock:
    """A clock that is set by hand."""

    time = 0.0

    def now(self):
        return self.time


def test_a_step_lasts_from_its_first_phase_to_its_last_however_slots_moved_within():
    """A rollout from 100 to 109 with a move from 103 to 104, training until 115: 15 s, not the 11 from the span that
    ended first; the move before 100, of an evaluation, is in no step."""
    desk = World(1, by_seed).controllers[0].desk
    desk.recorder = Recorder("controller 0", clock := Clock())
    for name, start, stop in (("move", 80, 81), ("move", 103, 104), ("rollout", 100, 109), ("train", 109, 115)):
        clock.time = float(stop)
        desk.recorder.add(name, float(start), {})
    report = desk.report(1, RolloutCounts(response_tokens=300), UpdateReport(loss=0, grad_norm=0, learning_rate=0))
    assert report.seconds == 15.0 and report.phases == {"rollout": 9.0, "train": 6.0}
    assert [span.name for span in report.spans] == ["move", "move", "rollout", "train"]  # to be drawn
    row = metrics_row(report)
    assert row["tokens_per_s"] == 20.0 and row["overhead"] == 0.0


async def test_a_report_says_why_rewards_failed_and_what_was_left_out_for_its_length():
    """Two controllers with two prompts each; texts are few, short and on one line, and no data for the driver."""
    failed = lambda t: None if t.sibling < 2 else 1.0  # noqa: E731
    world = World(2, failed, batch=4, algorithm=AlgorithmConfig(overlong="mask"))
    for generator in world.generators:
        generator.finish = "length"
    report, _ = await world.step(1)
    counts = report.counts
    assert (counts.groups, counts.groups_equal, counts.masked, counts.truncated) == (4, 4, 8, 16)
    assert (counts.reward_min, counts.reward_max, counts.reward_failures) == (1.0, 1.0, 8)
    assert counts.failures == ("no digit in it",) and world.trained(1) == []
    assert payload_bytes(report) == 0
    many = first_failures(["", "a\n b", "a b", "x" * 9000, "c", "d"])
    assert many == ("a b", "x" * 240, "c") and payload_bytes(many) == 0
    told = replace(counts, failures=("c", "d", "e"), reward_min=None, reward_max=2.0)
    both = add_counts([counts, told, RolloutCounts()])
    assert both.failures == ("no digit in it", "c", "d") and (both.reward_min, both.reward_max) == (1.0, 2.0)


async def test_groups_without_rewards_are_told_from_those_that_the_filter_dropped():
    judge = lambda t: None if t.prompt.uid == 0 else float(t.sibling if t.prompt.uid == 1 else 1)  # noqa: E731
    world = World(1, judge, batch=3, rollout=RolloutConfig(n=2, filter="all_equal", max_refills=0))
    counts = (await world.step(1))[0].counts
    assert (counts.groups, counts.groups_dropped, counts.groups_unscored, counts.groups_missing) == (1, 2, 1, 2)


async def test_what_rewards_said_before_a_checkpoint_is_reported_after_it():
    first = World(1, by_seed, batch=2)
    told = RolloutCounts(failures=("a", "b"), reward_min=-1.0, reward_failures=2, response_lengths={3: 1})
    first.controllers[0].rollouter.restore(json.loads(json.dumps(asdict(told))))
    counts = (await first.step(1))[0].counts
    assert counts.failures == ("a", "b") and (counts.reward_min, counts.reward_failures) == (-1.0, 2)


@pytest.mark.parametrize(
    ("sleep", "trains", "mode", "expected"),
    [
        (True, True, "colocated", False),
        (True, False, "colocated", True),  # no rank wants the memory
        (False, True, "colocated", True),
        (True, True, "disaggregated", True),
        (True, True, "partial", False),
    ],
)
def test_engines_keep_their_memory_where_no_rank_takes_its_turn_on_their_slots(sleep, trains, mode, expected):
    config = Config(
        run=RunConfig(),
        model=ModelConfig(path="none"),
        rollout=RolloutConfig(sleep=sleep),
        train=TrainConfig(steps=1, batch_size=1),
        placement=PlacementConfig(mode=mode),
    )
    assert resident(config, trains=trains) is expected

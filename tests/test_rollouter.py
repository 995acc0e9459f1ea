"""Dynamic sampling on one controller: sized refills, early stop, surplus, carry-over, and what a checkpoint keeps."""

import asyncio
import json
from dataclasses import asdict
from math import ceil, sqrt

import numpy as np
import pytest
from doubles import Numbers, ScriptedGenerator, World, number_prompt
from hypothesis import given, settings
from hypothesis import strategies as st

from yatt.algorithm.filter import FILTERS, AcceptanceRate, all_equal, band
from yatt.config.rules import _FILTERS
from yatt.config.schema import AlgorithmConfig, RolloutConfig
from yatt.controller.carry_over import CarriedGroup, carried_group, restored_group
from yatt.controller.responder import request_seed
from yatt.controller.rollouter import Rollouter
from yatt.data.loader import Loader
from yatt.errors import BackendError, ConfigError, ProcessDied
from yatt.reports import RolloutCounts
from yatt.reward.filter import load_filter
from yatt.types import Media, SampleKey, Score, Span, Trajectory


class Desk:
    """A responder whose groups are answered by the test: `reply(uid, rewards)`."""

    def __init__(self, version=0):
        self.version = version
        self.open = {}  # uid -> (future, on_drawn)
        self.aborted = []
        self.started = []
        self.drawn_before = set()

    async def respond(self, prompt, params, on_drawn):
        self.params = params
        future = asyncio.get_running_loop().create_future()
        self.open[prompt.uid] = (future, on_drawn)
        self.started.append(prompt.uid)
        rewards, finish = await future
        if prompt.uid not in self.drawn_before:
            on_drawn()
        return [self._trajectory(prompt, i, reward, finish) for i, reward in enumerate(rewards)]

    def _trajectory(self, prompt, sibling, reward, finish):
        tokens = np.zeros(len(prompt.tokens) + 3, dtype=np.int32)
        return Trajectory(
            prompt=prompt,
            sibling=sibling,
            tokens=tokens,
            loss_mask=tokens == 0,
            rollout_logprobs=tokens.astype(np.float32),
            spans=(Span(start=0, stop=3, version=self.version),),
            finish=finish,
            text="",
            score=None if finish == "aborted" else Score(status="failed" if reward is None else "ok", value=reward),
        )

    def drawn(self, uid):
        """All responses are there; scores are not."""
        self.open[uid][1]()
        self.drawn_before.add(uid)

    async def reply(self, uid, rewards):
        self.open.pop(uid)[0].set_result((rewards, "stop"))
        await settle()

    async def abort(self, prompts, siblings):
        for prompt in prompts:
            self.aborted.append(prompt.uid)
            self.open.pop(prompt.uid)[0].set_result(([0.0] * siblings, "aborted"))


async def settle():
    for _ in range(10):
        await asyncio.sleep(0)


def make(rows=100, version=0, drop=all_equal, advantage="grpo", **options):
    source = Loader(Numbers(rows), number_prompt, seed=0, shuffle=False, index=0, count=1, bad_rows="fail")
    desk = Desk(version)
    options = {"n": 2, "filter": "all_equal"} | options
    config = RolloutConfig(**options)
    return source, desk, Rollouter(source=source, responder=desk, drop=drop, config=config, advantage=advantage)


GOOD, EQUAL = [0.0, 1.0], [1.0, 1.0]


async def collecting(rollouter, quota, version=0):
    task = asyncio.create_task(rollouter.collect(quota, version))
    await settle()
    return task


async def test_refills_are_sized_by_the_acceptance_rate():
    _, desk, rollouter = make(max_refills=9)
    rollouter.rate.close(kept=4, ended=24)  # (16 + 4) / (16 + 24) = 1/2
    task = await collecting(rollouter, 4)
    assert desk.started == list(range(8))  # 4 missing / (1/2)
    await desk.reply(0, EQUAL)  # (16 + 4) / (16 + 25) = 20/41: 4 * 41/20 = 8.2, so 9 in flight
    assert len(desk.started) == 10
    await desk.reply(1, GOOD)  # (16 + 5) / (16 + 26) = 1/2: 3 / (1/2) = 6 in flight, 8 are
    assert len(desk.started) == 10
    for uid in (2, 3, 4):
        await desk.reply(uid, GOOD)
    groups, counts = await task
    assert [g.prompt.uid for g in groups] == [1, 2, 3, 4]
    assert sorted(desk.aborted) == [5, 6, 7, 8, 9]
    assert (counts.groups, counts.groups_dropped, counts.groups_missing, counts.refills) == (4, 1, 0, 6)
    assert (counts.groups_wasted, counts.tokens_wasted, counts.groups_accepted) == (5, 5 * 2 * 3, 4)


async def test_oversampling_takes_the_first_to_end_and_offers_the_rest_again():
    source, desk, rollouter = make(filter="none", drop=FILTERS["none"], oversample=1.5)
    source.begin_step()
    task = await collecting(rollouter, 4)
    assert desk.started == list(range(6))
    for uid in (5, 1, 3, 2):
        await desk.reply(uid, GOOD)
    groups, counts = await task
    assert [g.prompt.uid for g in groups] == [1, 2, 3, 5]
    source.end_step([source.drawn()], source.returned())
    assert source.state()["holes"] == [0, 4] and source.state()["next"] == 6
    source.begin_step()
    task = await collecting(rollouter, 2, version=1)
    assert desk.started[6:] == [0, 4, 6]
    task.cancel()
    assert counts.groups_wasted == 2


async def test_the_bound_on_refills_ends_the_step_with_what_there_is():
    _, desk, rollouter = make(max_refills=1)
    task = await collecting(rollouter, 2)
    for uid in range(4):
        await desk.reply(uid, GOOD if uid == 1 else EQUAL)
    groups, counts = await task
    assert [g.prompt.uid for g in groups] == [1]
    assert (counts.groups, counts.groups_missing, counts.groups_dropped, counts.refills) == (1, 1, 3, 2)


async def test_running_out_of_prompts_ends_the_step():
    _, desk, rollouter = make(rows=0)
    groups, counts = await rollouter.collect(3, 0)
    assert groups == [] and counts.groups_missing == 3 and desk.started == []


@pytest.mark.parametrize(("staleness", "carried", "wasted"), [(0, 0, 1), (1, 1, 0)])
async def test_a_good_group_that_comes_late_is_carried_over_only_where_staleness_allows(staleness, carried, wasted):
    source, desk, rollouter = make(oversample=2.0, max_staleness=staleness)
    task = await collecting(rollouter, 2)
    assert len(desk.started) == 4
    desk.drawn(3)  # waits for its scores: it is neither aborted nor waited for
    await desk.reply(0, GOOD)
    await desk.reply(1, GOOD)
    groups, first = await task
    assert desk.aborted == [2] and [g.prompt.uid for g in groups] == [0, 1]
    await desk.reply(3, GOOD)
    desk.version = 1
    task = await collecting(rollouter, 1, version=1)
    if staleness == 0:
        await desk.reply(next(iter(desk.open)), GOOD)
    groups, second = await task
    assert ([g.prompt.uid for g in groups] == [3]) == bool(carried)
    assert (first.groups_surplus, second.groups_surplus + second.groups) == (0, 2 - carried)
    assert 3 in source.returned() or not wasted


async def test_carried_groups_come_first_and_are_counted():
    _, desk, rollouter = make(max_staleness=2)
    await fill(rollouter, desk, surplus=2)
    assert [g.prompt.uid for g in rollouter.carried] == [1, 2]
    task = await collecting(rollouter, 3, version=2)
    assert len(desk.open) == 3  # one is missing, and (16 + 3) / (16 + 32 + 3) of the groups so far were good
    await desk.reply(next(iter(desk.open)), GOOD)
    groups, counts = await task
    assert [g.prompt.uid for g in groups][:2] == [1, 2] and len(groups) == 3
    assert (counts.groups, counts.groups_carried, counts.groups_accepted) == (3, 2, 3)  # two came between the steps


async def fill(rollouter, desk, surplus):
    """One step of one group, and `surplus` good groups that came after it."""
    rollouter.rate.close(kept=0, ended=16 * surplus)  # 16 / (16 + 16 surplus): 1 is missing, 1 + surplus are drawn
    task = await collecting(rollouter, 1)
    for uid in range(1, surplus + 1):
        desk.drawn(uid)
    await desk.reply(0, GOOD)
    await task
    for uid in range(1, surplus + 1):
        await desk.reply(uid, GOOD)
    await rollouter.rest(1)


async def test_groups_too_old_are_given_up_and_their_prompts_offered_again():
    source, desk, rollouter = make(max_staleness=1)
    await fill(rollouter, desk, surplus=2)
    assert len(rollouter.carried) == 2
    await rollouter.rest(2)  # version 2 is two updates newer than theirs
    assert rollouter.carried == [] and source.returned() == [1, 2]


async def test_an_error_ends_the_step_and_everything_under_way():
    _, desk, rollouter = make()
    task = await collecting(rollouter, 2)
    desk.open[0][0].set_exception(BackendError("broken"))
    with pytest.raises(BackendError, match="broken"):
        await task
    await settle()
    assert desk.open[1][0].cancelled()


@given(st.lists(st.booleans(), min_size=1, max_size=200))
def test_the_estimate_never_leaves_0_to_1_and_counts_everything_since_the_last_step(seen):
    rate = AcceptanceRate()
    assert rate.value == 1.0
    for kept in seen:
        rate.see(kept)
        assert 0 < rate.value <= 1
    assert rate.value == (16 + sum(seen)) / (16 + len(seen))
    rate.close(10, 30)
    assert rate.value == 26 / 46  # everyone's counts take the place of those seen here
    rate.close(0, 0)
    assert rate.value == 21 / 31
    other = AcceptanceRate()
    other.restore(rate.state())
    assert other.value == rate.value


@settings(max_examples=60)
@given(
    st.lists(st.booleans(), min_size=80, max_size=80),
    st.integers(0, 10),
    st.integers(0, 3),
    st.sampled_from([1.0, 1.5, 3.0]),
    st.sampled_from(["one", "estimate"]),
    st.randoms(use_true_random=False),
)
def test_whatever_ends_first_no_prompt_is_lost_or_used_twice(good, quota, waves, oversample, refill, random):
    asyncio.run(play(good, quota, waves, oversample if refill == "estimate" else 1.0, refill, random))


async def play(good, quota, waves, oversample, refill, random):
    source, desk, rollouter = make(max_refills=waves, oversample=oversample, refill=refill)
    used = []
    for step in range(3):
        source.begin_step()
        task = await collecting(rollouter, quota, version=step)
        desk.version = step
        while not task.done():
            uid = random.choice(sorted(desk.open))
            await desk.reply(uid, GOOD if good[uid % 80] else EQUAL)
        groups, counts = await task
        drawn, returned = source.drawn(), source.returned()
        assert drawn <= quota * (1 + waves) and counts.refills == max(0, drawn - quota)
        assert counts.groups == len(groups) == quota - counts.groups_missing
        assert all(good[g.prompt.uid % 80] for g in groups)
        assert not counts.groups_missing or drawn == quota * (1 + waves)
        assert drawn == counts.groups + counts.groups_dropped + counts.groups_wasted
        assert len(returned) == counts.groups_wasted and (refill == "estimate" or not returned)
        used += [g.prompt.uid for g in groups]
        source.end_step([drawn], returned)
        rollouter.rate.close(counts.groups_accepted, counts.groups_accepted + counts.groups_dropped)
    assert len(used) == len(set(used))
    assert set(source.state()["holes"]).isdisjoint(used)


async def test_remax_has_one_greedy_response_more_whose_reward_is_the_baseline():
    _, desk, rollouter = make(advantage="remax", temperature=0.7, top_p=0.9, max_tokens=5)
    task = await collecting(rollouter, 2)
    assert [(p.temperature, p.top_p, p.max_tokens) for p in desk.params] == [(0.7, 0.9, 5)] * 2 + [(0.0, 1.0, 5)]
    await desk.reply(0, [0.0, 1.0, 0.25])
    await desk.reply(1, [1.0, 1.0, 0.0])  # all equal but for the greedy one, which the filter does not see
    await desk.reply(2, [None, 1.0, 0.0])  # a group of one, that the filter drops: it has nothing to compare
    await desk.reply(3, [0.0, 1.0, None])  # no baseline
    await desk.reply(4, [0.5, 0.0, 1.0])
    groups, counts = await task
    assert [(g.prompt.uid, g.rewards, g.baseline) for g in groups] == [(0, [0.0, 1.0], 0.25), (4, [0.5, 0.0], 1.0)]
    assert all([t.sibling for t in g.trajectories] == [0, 1] for g in groups)
    # 5 prompts, 3 responses of 3 tokens each: all are work; 10 - 1 siblings have rewards, 0 1, 1 1, 1, 0 1, 0.5 0
    assert (counts.responses, counts.response_tokens, counts.scored, counts.reward_failures) == (15, 45, 9, 2)
    assert (counts.reward_sum, counts.groups_dropped) == (5.5, 3)
    assert counts.reward_deviations == pytest.approx(5.25 - 5.5**2 / 9)
    assert sum(counts.response_lengths.values()) == 15 and counts.prompt_tokens == 3 * (1 + 2 + 3 + 4 + 5)


@pytest.mark.parametrize(
    ("advantage", "rewards", "good"),
    [
        ("grpo", [1.0, None], False),
        ("rloo", [1.0, 0.0], True),
        ("gdpo", [None, 0.0], False),
        ("reinforce_plus_plus_baseline", [1.0, None], False),
        ("gae", [None, 1.0], True),
        ("reinforce_plus_plus", [1.0, None], True),
        ("distillation", [1.0, None], True),
        ("gae", [None, None], False),
        ("remax", [1.0, None, 0.5], True),
        ("remax", [1.0, 0.0, None], False),
        ("remax", [None, None, 0.5], False),
    ],
)
async def test_how_many_scored_responses_a_group_needs(advantage, rewards, good):
    _, desk, rollouter = make(advantage=advantage, drop=FILTERS["none"], max_refills=0)
    task = await collecting(rollouter, 1)
    await desk.reply(0, rewards)
    groups, counts = await task
    assert (len(groups), counts.groups_dropped) == (int(good), int(not good))


async def test_the_greedy_response_is_aborted_carried_over_and_kept_in_a_checkpoint_with_its_siblings():
    source, desk, rollouter = make(
        advantage="remax", oversample=3.0, max_staleness=1, filter="none", drop=FILTERS["none"]
    )
    task = await collecting(rollouter, 1)
    desk.drawn(2)
    await desk.reply(0, [0.0, 1.0, 0.5])
    _, counts = await task
    assert desk.aborted == [1] and (counts.groups_wasted, counts.tokens_wasted) == (1, 9)  # 3 responses of 3 tokens
    await desk.reply(2, [1.0, 0.0, 0.75])
    await rollouter.rest(1)
    [group] = rollouter.carried
    saved = CarriedGroup(**json.loads(json.dumps(asdict(carried_group(group)))))
    again = restored_group(saved, source.again(2))
    assert (again.rewards, again.baseline) == ([1.0, 0.0], 0.75)
    old = {k: v for k, v in asdict(saved).items() if k != "baseline"}  # of a checkpoint from before there was one
    assert restored_group(CarriedGroup(**old), source.again(2)).baseline is None


async def test_images_are_counted_once_per_prompt():
    source, desk, rollouter = make()
    plain = source._encode
    source._encode = lambda *row: Numbered(plain(*row))
    task = await collecting(rollouter, 2)
    for uid in (0, 1):
        await desk.reply(uid, GOOD)
    assert (await task)[1].media_bytes == 2 * 12


def Numbered(prompt):
    media = (Media(handle=None, nbytes=5), Media(handle=None, nbytes=7))
    return type(prompt)(uid=prompt.uid, text=prompt.text, tokens=prompt.tokens, media=media)


def test_the_band_keeps_mean_rewards_within_it():
    drop = band(0.25, 0.75)
    assert not band(1.0, 1.0)([0.7 + 0.2 + 0.1] * 3) and not band(0.0, 0.3)([0.1 + 0.2])  # rounded at an edge
    assert [drop(r) for r in ([0, 0, 0, 1], [1, 1, 1, 1], [0, 0, 0, 0], [0, 1], [])] == [False, True, True, False, True]


def test_filters_by_name_and_from_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(
        "def few(rewards):\n    return len(rewards) < 3\n\ndef bad(rewards):\n    1 / 0\n"
    )
    assert load_filter(RolloutConfig(filter="all_equal")) is all_equal
    assert load_filter(RolloutConfig(filter="band", reward_band=(0, 0.5)))([1.0, 1.0])
    drop = load_filter(RolloutConfig(filter="mine.py:few"))
    assert drop([1.0, 2.0]) and not drop([1.0, 2.0, 3.0])
    with pytest.raises(BackendError, match=r"rollout.filter=mine.py:bad failed: ZeroDivisionError"):
        load_filter(RolloutConfig(filter="mine.py:bad"))([1.0])
    with pytest.raises(ConfigError, match=r"rollout.filter=mine.py:fewer: mine.py has no 'fewer'.*did you mean 'few'"):
        load_filter(RolloutConfig(filter="mine.py:fewer"))
    assert set(_FILTERS) == {*FILTERS, "band"}


@pytest.mark.parametrize("controllers", [1, 3])
async def test_what_is_carried_over_is_resumed_with_another_number_of_controllers(controllers):
    rollout = RolloutConfig(n=2, filter="all_equal", oversample=2.0, max_staleness=3)
    world = World(2, lambda t: float(t.sibling), batch=4, rollout=rollout)
    for controller in world.controllers:  # groups that are there when the quota is full: all end in one turn
        controller.rollouter._stop = lambda quota, version: asyncio.sleep(0)
    await world.step(1)
    saved = await asyncio.gather(*(c.state() for c in world.controllers))
    assert saved[0][0] == saved[1][0]
    state, carried = saved[0][0], [group for _, groups in saved for group in groups]
    assert len(carried) == 4
    before = sorted((g for c in world.controllers for g in c.rollouter.carried), key=lambda g: g.prompt.uid)
    other = World(controllers, lambda t: float(t.sibling), batch=4, rollout=rollout)
    await asyncio.gather(*(c.restore(state, carried) for c in other.controllers))
    after = sorted((g for c in other.controllers for g in c.rollouter.carried), key=lambda g: g.prompt.uid)
    assert [len(c.rollouter.carried) for c in other.controllers] == [
        ceil((4 - i) / controllers) for i in range(controllers)
    ]
    for a, b in zip(before, after, strict=True):
        assert a.prompt.uid == b.prompt.uid and a.prompt.tokens.tolist() == b.prompt.tokens.tolist()
        for t, u in zip(a.trajectories, b.trajectories, strict=True):
            assert (t.sibling, t.spans, t.finish, t.text, t.score) == (u.sibling, u.spans, u.finish, u.text, u.score)
            assert all((getattr(t, c) == getattr(u, c)).all() for c in ("tokens", "loss_mask", "rollout_logprobs"))
    assert other.controllers[0].rollouter.rate.state() == world.controllers[0].rollouter.rate.state() == [4.0, 4.0]


async def test_what_ended_after_the_last_report_is_reported_once_by_whoever_resumes():
    _, desk, rollouter = make(oversample=2.0, max_staleness=1)
    task = await collecting(rollouter, 1)
    desk.drawn(1)  # its scores come after the step
    await desk.reply(0, GOOD)
    assert (await task)[1].responses == 2
    await desk.reply(1, GOOD)
    await rollouter.rest(0)
    ahead = RolloutCounts(groups=3, groups_carried=1, groups_missing=1, responses=6, reward_sum=4.0, longest_response=9)
    unreported = rollouter.unreported(ahead)
    assert (unreported.groups, unreported.groups_missing, unreported.groups_accepted) == (0, 0, 3)
    assert (unreported.responses, unreported.scored, unreported.reward_sum) == (8, 2, 5.0)

    _, desk, resumed = make()
    saved = json.loads(json.dumps(asdict(unreported)))
    former = {name: value for name, value in saved.items() if name != "reward_deviations"}
    resumed.restore(former | {"scored": 2, "reward_sum": 5.0, "reward_square_sum": 13.0})  # of 2 and 3
    assert resumed.unreported(RolloutCounts()).reward_deviations == 0.5
    resumed.restore(saved)
    assert resumed.unreported(RolloutCounts()) == unreported  # where it is saved again before a step
    task = await collecting(resumed, 1)
    await desk.reply(0, EQUAL)
    await desk.reply(1, GOOD)
    _, counts = await task
    assert (counts.groups, counts.groups_accepted, counts.groups_dropped) == (1, 4, 1)
    assert (counts.responses, counts.reward_sum, counts.longest_response) == (12, 8.0, 9)
    assert counts.response_lengths == {3: 6}
    assert resumed.unreported(RolloutCounts()) == RolloutCounts()


async def test_generators_that_die_leave_the_step_whole():
    class Mortal(ScriptedGenerator):
        async def generate(self, requests):
            stream = super().generate(requests)
            yield await anext(stream)
            self.events.append("died")
            raise_dead()

        async def pause(self):
            raise_dead()

        load = sleep = wake = pause

    def raise_dead():
        raise ProcessDied("generator 0 died")

    world = World(1, lambda t: float(t.sibling), batch=4, generators=[Mortal(0), ScriptedGenerator(1)])
    reports = [(await world.step(step))[0] for step in (1, 2)]
    assert [r.generators for r in reports] == [1, 1]
    for step in (1, 2):
        keys = [row[3] for row in world.trained(step)]
        assert len(keys) == len(set(keys)) == 16
    assert world.generators[1].served == 2


@pytest.mark.parametrize("controllers", [1, 3])
async def test_remax_trains_the_siblings_against_the_greedy_response(controllers):
    def judge(t):  # the greedy response to one prompt cannot be scored
        return None if t.sibling == 2 and t.prompt.uid == 1 else float(t.tokens[-2] % 3)

    remax = AlgorithmConfig(name="remax")
    world = World(controllers, judge, batch=4, rollout=RolloutConfig(n=2, refill="one"), algorithm=remax)
    [report, *_] = await world.step(1)
    counts = report.counts
    assert (counts.groups, counts.groups_dropped) == (4, 1)  # position 1 has no baseline, 4 takes its place
    assert sorted(world.groups[1]) == [0, 2, 3, 4]
    assert (counts.responses, counts.scored, counts.reward_failures) == (15, 10, 1)

    def reward(uid, sibling):  # as ScriptedGenerator answers: the seed's rest
        return request_seed(11, SampleKey(uid, sibling), "rollout") % 7 % 3

    trained = {key: advantage for *_, key, _, advantage in world.trained(1)}
    assert trained == {
        SampleKey(uid, sibling): reward(uid, sibling) - reward(uid, 2) for uid in (0, 2, 3, 4) for sibling in (0, 1)
    }


def test_engines_are_given_and_expected_to_draw_the_greedy_response_too():
    rollout = RolloutConfig(n=2, engine_args={"max_num_seqs": 1})
    for name, drawn in (("grpo", 2), ("remax", 3)):
        world = World(4, lambda t: 1.0, batch=4, rollout=rollout, algorithm=AlgorithmConfig(name=name))
        controller = world.controllers[0]
        router = controller.rollouter._responder._router
        assert router._admission.limit == drawn  # a group fits, however few an engine runs
        assert controller.responses == 4 * drawn


@pytest.mark.parametrize("controllers", [1, 3])
async def test_rewards_are_shaped_by_those_of_earlier_steps_on_all_controllers(controllers):
    shaped = AlgorithmConfig(name="reinforce_plus_plus", reward_normalize=True)
    world = World(controllers, lambda t: float(t.prompt.uid % 2), batch=4, rollout=RolloutConfig(n=2), algorithm=shaped)

    async def rewards(world, step):
        await world.step(step)
        samples = [s for ranks in world.trainer.steps[step] for micros in ranks for m in micros for s in m]
        return {s.key.uid: s.reward for s in samples}

    assert await rewards(world, 1) == {0: 0.0, 1: 1.0, 2: 0.0, 3: 1.0}
    states = await asyncio.gather(*(c.state() for c in world.controllers))
    assert all(state["rewards"] == {"count": 8, "mean": 0.5, "deviations": pytest.approx(2.0)} for state, _ in states)
    # 8 rewards, 4 of them 1: mean 1/2, deviation sqrt((4 - 8 / 4) / 7) = sqrt(2 / 7)
    expected = {4: -0.5 / sqrt(2 / 7), 5: 0.5 / sqrt(2 / 7), 6: -0.5 / sqrt(2 / 7), 7: 0.5 / sqrt(2 / 7)}
    resumed, older, sums = (
        World(1, lambda t: float(t.prompt.uid % 2), batch=4, rollout=RolloutConfig(n=2), algorithm=shaped)
        for _ in range(3)
    )
    await sums.controllers[0].restore(states[0][0] | {"rewards": [8.0, 4.0, 4.0]})  # as they were once written
    await resumed.controllers[0].restore(states[0][0])
    await older.controllers[0].restore({k: v for k, v in states[0][0].items() if k != "rewards"})
    assert await rewards(world, 2) == pytest.approx(expected)
    assert await rewards(resumed, 2) == pytest.approx(expected)
    assert await rewards(sums, 2) == pytest.approx(expected)
    assert await rewards(older, 2) == {4: 0.0, 5: 1.0, 6: 0.0, 7: 1.0}  # a checkpoint from before: anew

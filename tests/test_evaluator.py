"""Accuracy on held-out prompts: what is counted, how sure it is, and what it is for each source."""

import asyncio
import statistics
from math import sqrt

import numpy as np
import pytest
from doubles import RecordingTrainer, ScriptedGenerator, ScriptedScorer, Ticks

from yatt.config.schema import EvaluateConfig, RolloutConfig
from yatt.config.sources import MOST_SOURCES
from yatt.controller.director import Director
from yatt.controller.evaluator import Evaluator, pass_at_k
from yatt.controller.fleet import Fleet
from yatt.controller.peers import Hub, HubPeers
from yatt.controller.phases import Phases
from yatt.controller.recorder import Recorder
from yatt.controller.responder import Responder
from yatt.controller.router import Router
from yatt.controller.weight_sync import WeightSync
from yatt.errors import ConfigError
from yatt.intervals import normal, wilson
from yatt.placement.plan import POLICY, Layout
from yatt.placement.policy import open_mode
from yatt.types import Prompt, Score


def phases_of(router: Router, peers: HubPeers) -> Phases:
    """One where the only generator holds the only slot."""
    mode = open_mode("colocated", given={}, parameters={})
    layout = Layout(slots=(0,), sizes={POLICY: 1})
    director = Director(mode=mode, layout=layout, routers={POLICY: router}, stats={}, clock=Ticks())
    return Phases(
        routers={POLICY: router},
        director=director,
        trainer=(trainer := RecordingTrainer(1)),
        weight_sync=WeightSync(router.fleet, trainer, peers, bound=1.0),
        peers=peers,
        recorder=Recorder("controller", Ticks()),
        resident=True,
    )


@pytest.mark.parametrize(
    ("n", "correct", "k", "value"),
    [
        (4, 1, 1, 1 / 4),
        (4, 1, 2, 1 - 3 / 6),  # C(3,2)/C(4,2) = 3/6 of the pairs miss it
        (4, 0, 2, 0.0),
        (4, 3, 2, 1.0),
        (5, 2, 3, 1 - 1 / 10),  # C(3,3)/C(5,3) = 1/10
    ],
)
def test_pass_at_k_by_hand(n, correct, k, value):
    assert pass_at_k(n, correct, k) == pytest.approx(value)


def judge(t):
    """Greedy: prompts 0 and 1 right; sampled 1, 2: prompt 0 both, prompt 2 one, prompt 3 none, a score of it failed."""
    return {0: (1, 1, 1), 1: (1, 0, 0), 2: (0, 1, 0), 3: (0, None, 0)}[t.prompt.uid][t.sibling]


async def evaluate(controllers, *, sources=(None,) * 4, judge=judge, logged=None, **config):
    """What every controller reports of one prompt per source."""
    generator, hub = ScriptedGenerator(0), Hub(controllers, 5)
    prompts = [
        Prompt(uid=i, text=str(i), tokens=np.array([1]), metadata={} if source is None else {"source": source})
        for i, source in enumerate(sources)
    ]

    def evaluator(i):
        peers = HubPeers(i, controllers, hub, None if i else hub)
        router = Router(Fleet([generator]), clock=Ticks())
        return Evaluator(
            prompts=prompts[i::controllers],
            responder=Responder(router, ScriptedScorer(judge), str, 0, "evaluate"),
            rollout=RolloutConfig(),
            config=EvaluateConfig(samples=2, **config),
            peers=peers,
            phases=phases_of(router, peers),
            on_evaluated=lambda step, ts: (logged if logged is not None else []).extend(ts),
        )

    evaluators = [evaluator(i) for i in range(controllers)]
    reports = await asyncio.gather(*(e.evaluate(0) for e in evaluators))
    assert all(r == reports[0] for r in reports)
    return reports[0]


@pytest.mark.parametrize("controllers", [1, 2])
async def test_evaluation_counts_what_was_right(controllers):
    logged = []
    report = await evaluate(controllers, logged=logged)
    assert (report.prompts, report.failures, len(logged)) == (4, 1, 12)
    assert report.accuracy_greedy == 2 / 4
    assert report.accuracy_sampled == 1.5 / 4  # mean@2: 1, 0, 1/2, and 0 of the one that was scored
    # pass@1 is the same; pass@2 needs two scored samples: prompts 0, 1, 2 -> (1 + 0 + 1) / 3
    assert report.pass_at_k == {1: 1.5 / 4, 2: 2 / 3}
    assert report.parts_sampled == {"r": 3 / 7} and report.parts_greedy == {"r": 2 / 4}
    assert report.sources == {}


@pytest.mark.parametrize("controllers", [1, 2, 4])
async def test_a_part_is_averaged_over_the_responses_that_have_it(controllers):
    def some(t):
        parts = {"share": 1.0} if (t.prompt.uid, t.sibling) in {(0, 0), (1, 1), (3, 2)} else {}
        return Score(status="ok", value=1.0, parts=parts | ({"zero": 0.0} if t.sibling == 0 else {}))

    report = await evaluate(controllers, judge=some)
    assert report.parts_greedy == {"share": 1.0, "zero": 0.0} and report.parts_sampled == {"share": 1.0}


async def test_a_sum_that_was_rounded_is_still_correct():
    values = {0: 0.7 + 0.2 + 0.1, 1: 1 - 1e-6, 2: 1.0, 3: 0.1 + 0.2 + 0.7}
    assert values[0] < 1.0
    report = await evaluate(1, judge=lambda t: values[t.prompt.uid])
    assert report.accuracy_greedy == report.accuracy_sampled == report.pass_at_k[2] == 3 / 4


@pytest.mark.parametrize("controllers", [1, 2])
async def test_intervals_are_over_prompts(controllers):
    report = await evaluate(controllers)
    # greedy, 2 of 4 by Wilson: (1/2 + 0.480182 +- 1.959964 sqrt(0.0625 + 0.060023)) / 1.960365
    assert report.intervals["accuracy_greedy"] == pytest.approx((0.150039, 0.849961), abs=1e-6)
    # shares 1, 0, 1/2, 0: s^2 = (1.25 - 4 * 0.375^2) / 3 = 0.229167; 1.959964 sqrt(0.229167 / 4) = 0.469131; cut at 0
    assert report.intervals["accuracy_sampled"] == pytest.approx((0.0, 0.844131), abs=1e-6)
    assert report.intervals["pass@1"] == report.intervals["accuracy_sampled"]
    # 1, 0, 1: s^2 = (2 - 4/3) / 2 = 1/3; 1.959964 sqrt(1/9) = 0.653321 around 2/3, cut at 1
    assert report.intervals["pass@2"] == pytest.approx((0.013345, 1.0), abs=1e-6)
    assert set(report.intervals) == {"accuracy_greedy", "accuracy_sampled", "pass@1", "pass@2"}


@pytest.mark.parametrize("controllers", [1, 2])
async def test_accuracy_by_source(controllers):
    report = await evaluate(controllers, sources=["web", 7, "web", None], by="source")
    assert list(report.sources) == ["(none)", "7", "web"]  # what is no text is written out; a row may have none
    web, seven, none = (report.sources[name] for name in ("web", "7", "(none)"))
    assert (web.prompts, web.accuracy_greedy, web.accuracy_sampled) == (2, 1 / 2, (1 + 1 / 2) / 2)
    assert (seven.prompts, seven.accuracy_greedy, seven.accuracy_sampled) == (1, 1.0, 0.0)
    assert (none.prompts, none.accuracy_greedy, none.accuracy_sampled) == (1, 0.0, 0.0)
    # 1 and 1/2: s^2 = 1/8; 1.959964 sqrt(1/16) = 0.489991; of one prompt there is no spread, but there is Wilson's
    assert web.intervals["accuracy_sampled"] == pytest.approx((0.260009, 1.0), abs=1e-6)
    assert set(seven.intervals) == {"accuracy_greedy"}
    assert report.accuracy_greedy == 2 / 4 and report.intervals.keys() >= {"accuracy_greedy", "accuracy_sampled"}


async def test_columns_that_say_no_source_are_refused():
    right = {"judge": lambda t: 1.0}
    report = await evaluate(2, sources=range(MOST_SOURCES), by="source", **right)
    assert len(report.sources) == MOST_SOURCES
    with pytest.raises(
        ConfigError, match=r"evaluate.by=source has more than 50 values, such as 0, 1, 10; name a column"
    ):
        await evaluate(1, sources=range(MOST_SOURCES + 1), by="source", **right)  # seen before anything is drawn
    with pytest.raises(ConfigError, match=r"evaluate.by=source has more than 50 values"):
        await evaluate(2, sources=range(MOST_SOURCES + 1), by="source", **right)  # each controller has 26 or 25
    with pytest.raises(ConfigError, match=r"evaluate.by=sauce: no held-out row has this column among its metadata"):
        await evaluate(2, sources=["web", "web", "web"], by="sauce", **right)


def test_wilson_by_hand():
    # nothing right in n: from 0 to z^2 / (n + z^2) = 3.841459 / 13.841459; all right is its mirror
    assert wilson(0, 10) == pytest.approx((0.0, 0.277533), abs=1e-6)
    assert wilson(10, 10) == pytest.approx((1 - 0.277533, 1.0), abs=1e-6)
    low, high = wilson(30, 100)
    for end in (low, high):  # the ends are the shares p with (0.3 - p)^2 = z^2 p (1 - p) / n
        assert (0.3 - end) ** 2 == pytest.approx(1.959964**2 * end * (1 - end) / 100)
    assert low < 0.3 < high


def test_the_interval_of_a_mean_is_that_of_the_values_behind_its_sums():
    values = [0.5, 0.25, 0.75, 1.0, 0.25, 0.5]
    half = 1.959964 * statistics.stdev(values) / sqrt(6)
    interval = normal(sum(values), sum(v * v for v in values), 6)
    assert interval == pytest.approx((statistics.mean(values) - half, statistics.mean(values) + half))
    assert normal(0.5, 0.25, 1) is None
    assert normal(3.0, 3.0, 3) == (1.0, 1.0)  # no spread, no width


def test_the_interval_holds_the_truth_19_times_in_20_however_alike_a_prompts_responses_are():
    draw = np.random.default_rng(0)
    chances = draw.beta(0.4, 0.4, size=(2000, 100))  # prompts that are mostly easy or hard; their mean is 1/2
    shares = draw.binomial(8, chances) / 8
    ends = [normal(row.sum(), (row * row).sum(), 100) for row in shares]
    held = np.mean([low <= 0.5 <= high for low, high in ends])
    assert 0.93 < held < 0.965
    means = shares.mean(axis=1)
    narrow = 1.959964 * np.sqrt(means * (1 - means) / 800)  # as if all 800 responses had nothing in common
    assert np.mean(np.abs(means - 0.5) <= narrow) < 0.7

"""Links, processors and images by hand."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest

from tests.simulation.worlds import COSTS, costs
from yatt.simulation.costs import ControllerCosts, ScorerCosts
from yatt.simulation.lengths import LengthModel, uniform
from yatt.simulation.loop import run
from yatt.simulation.network import Network, Site
from yatt.simulation.scorer import SimulatedScorer
from yatt.types import Completion, Prompt, SampleKey, Trajectory

# 100 bytes a second, a tenth of a second from node to node; images are read at 50 bytes a second.
CONTROLLER = ControllerCosts(per_response=2.0, link_bandwidth=100.0, link_latency=0.1, storage_bandwidth=50.0)


def network(nodes: int) -> Network:
    return Network(CONTROLLER, nodes, lambda *event: None)


def test_messages_follow_each_other_on_the_senders_link() -> None:
    """200 bytes take 2 s, then 100 bytes 1 s: there at 2.1 and 3.1. Within a node nothing is spent."""

    async def main() -> list[float]:
        net = network(3)
        a, b, c = net.nodes
        return [net.send(a, b, 200), net.send(a, c, 100), net.send(a, a, 10**9)]

    assert run(main()) == [pytest.approx(2.1), pytest.approx(3.1), 0.0]


def test_messages_follow_each_other_on_the_receivers_link() -> None:
    """Two senders at once: 2 s of the receiver's link for the first, 1 s more for the second. The third finds the
    sender's link free at 1 s, but the receiver's at 3 s."""

    async def main() -> list[float]:
        net = network(4)
        a, b, c, d = net.nodes
        return [net.send(a, d, 200), net.send(b, d, 100), net.send(b, d, 100), net.send(c, a, 100)]

    assert run(main()) == [pytest.approx(2.1), pytest.approx(3.1), pytest.approx(4.1), pytest.approx(1.1)]


def test_a_late_message() -> None:
    async def main() -> list[float]:
        net = network(2)
        a, b = net.nodes
        net.delay(7.0)
        return [net.send(a, a, 0), net.send(a, b, 100), net.send(b, a, 100)]

    assert run(main()) == [0.0, pytest.approx(8.1), pytest.approx(1.1)]


def test_an_image_is_read_once_and_sent_once_to_each_node() -> None:
    """100 bytes are read by 2 s, and sent as they are read: on node 1 by 2 s, though the link was done at 1 s. To node
    2 they take the link's next second: 2.1. Messages that name them again follow on the link, at 2.1 too, and bring no
    bytes."""

    async def main() -> tuple[list[float], int]:
        net = network(3)
        site = Site(net, 0, net.nodes[0])
        media = (site.read(100),)
        there = [site.send(net.nodes[n], 0, media) for n in (1, 2, 1, 2)]
        return there, site.sent

    there, sent = run(main())
    assert there == [pytest.approx(t) for t in (2.0, 2.1, 2.1, 2.1)]
    assert sent == 200


def test_responses_take_the_link_and_then_the_processor() -> None:
    """25 tokens of 8 bytes: 2 s of link, 0.1 s under way, 2 s of processor: 4.1. The second, there at 4.1, is done at
    6.1."""

    async def main() -> tuple[list[float], int]:
        net = network(2)
        site = Site(net, 0, net.nodes[0])
        completion = Completion(
            key=SampleKey(0, 0),
            tokens=np.zeros(25, dtype=np.int32),
            rollout_logprobs=np.zeros(25, dtype=np.float32),
            spans=(),
            finish="stop",
        )
        times = []

        async def take() -> None:
            await site.receive(net.nodes[1], [completion])
            times.append(asyncio.get_running_loop().time())

        await asyncio.gather(take(), take())
        return times, site.received

    times, received = run(main())
    assert times == [pytest.approx(4.1), pytest.approx(6.1)] and received == 400


def test_lengths_have_the_median_and_the_99th_percentile() -> None:
    model = LengthModel(COSTS.workload.responses, seed=5)
    drawn = np.array([model(SampleKey(uid, sibling)) for uid in range(5000) for sibling in range(4)])
    assert np.median(drawn) == pytest.approx(12, rel=0.05)
    assert np.percentile(drawn, 99) == pytest.approx(60, rel=0.08)
    assert drawn.min() >= 1
    again = LengthModel(COSTS.workload.responses, seed=5)
    assert [again(SampleKey(uid, 1)) for uid in range(50)] == drawn[1:200:4].tolist()
    judge = LengthModel(COSTS.workload.responses, seed=5, role="judge")
    assert [judge(SampleKey(uid, 1)) for uid in range(50)] != drawn[1:200:4].tolist()
    assert [LengthModel(COSTS.workload.responses, seed=6)(SampleKey(uid, 1)) for uid in range(50)] != drawn[
        1:200:4
    ].tolist()


def test_a_trace_of_steps_is_replayed() -> None:
    short, long = replace(COSTS.workload.responses[0], median=5.0, p99=5.0), COSTS.workload.responses[0]
    model = LengthModel((short, replace(long, median=9.0, p99=9.0)), seed=0)
    found = []
    for model.step in (1, 2, 3):
        found.append(model(SampleKey(3, 0)))
    assert found == [5, 9, 9]


def test_uniform_is_uniform() -> None:
    drawn = np.array([uniform(1, "x", n) for n in range(4000)])
    assert drawn.min() > 0 and drawn.max() < 1
    assert drawn.mean() == pytest.approx(0.5, abs=0.02) and drawn.var() == pytest.approx(1 / 12, abs=0.005)


def trajectory(uid: int, sibling: int) -> Trajectory:
    prompt = Prompt(uid=uid, text="", tokens=np.zeros(1, dtype=np.int32))
    empty = np.zeros(0)
    return Trajectory(
        prompt=prompt,
        sibling=sibling,
        tokens=empty,
        loss_mask=empty,
        rollout_logprobs=empty,
        spans=(),
        finish="stop",
        text="",
    )


def scorer_of(equal: float) -> SimulatedScorer:
    """A second for each score."""
    slow = replace(costs(equal_groups=equal), scorer=ScorerCosts(seconds=1.0))
    return SimulatedScorer(slow, timeout=9.0, seed=0, on_scored=lambda key, score: None)


def test_a_share_of_groups_has_equal_rewards() -> None:
    async def main() -> list[int]:
        scorer = scorer_of(equal=0.3)
        scores = [await scorer.score([trajectory(uid, s) for s in range(3)]) for uid in range(1000)]
        return [len({score.value for score in group}) for group in scores]

    different = run(main())
    assert set(different) == {1, 3}
    assert different.count(1) == pytest.approx(300, abs=45)  # three standard deviations


def test_a_hanging_score_is_cut_off() -> None:
    async def main() -> tuple[list[str], float, list[str], float]:
        loop = asyncio.get_running_loop()
        scorer = scorer_of(equal=0.0)
        scorer.hang()
        first = await scorer.score([trajectory(0, 0)])
        then = loop.time()
        second = await scorer.score([trajectory(0, 1)])
        return [s.status for s in first], then, [s.status for s in second], loop.time()

    assert run(main()) == (["timed_out"], 9.0, ["ok"], 10.0)

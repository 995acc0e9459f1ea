"""What every `Scorer` must do: one suite, run for each kind of reward, for the double, and simulated.

A subclass gives the fixture `case`.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import psutil

from yatt.protocols import Scorer
from yatt.types import Prompt, Score, Trajectory


def children() -> set[int]:
    return {process.pid for process in psutil.Process().children(recursive=True)}


@dataclass(frozen=True, slots=True)
class Case:
    """A started scorer, and how to make one that is not. `fail` makes the judgement of a trajectory fail that stands at
    place `at` of the next call, and returns it. `before` are the processes there were."""

    scorer: Scorer
    fresh: Callable[[], Scorer]
    fail: Callable[[], Trajectory]
    at: int = 2
    before: set[int] = field(default_factory=children)


def trajectory(text: str, sibling: int = 0) -> Trajectory:
    """Token i of the response is i, one for each character."""
    prompt = Prompt(uid=7, text="2+2=", tokens=np.arange(3, 5), question="2+2=", answer="4")
    tokens = np.arange(3, 5 + len(text)).astype(np.int32)
    return Trajectory(
        prompt=prompt,
        sibling=sibling,
        tokens=tokens,
        loss_mask=np.arange(len(tokens)) >= 2,
        rollout_logprobs=np.zeros(len(tokens), dtype=np.float32),
        spans=(),
        finish="stop",
        text=text,
    )


GOOD = [trajectory("1" * length, sibling) for sibling, length in enumerate((3, 1, 4, 2))]


def check(score: Score) -> None:
    """Whether it is a reward or not, and nothing between."""
    if score.status == "ok":
        assert score.value is not None and math.isfinite(score.value)
        assert all(math.isfinite(part) for part in score.parts.values())
    else:
        assert score.status in ("failed", "timed_out") and score.value is None and score.detail


class ScorerContract:
    async def test_each_trajectory_has_its_own_score_wherever_it_stands(self, case):
        scores = await case.scorer.score(GOOD)
        assert len(scores) == len(GOOD) and all(score.status == "ok" for score in scores)
        for score in scores:
            check(score)
        turned = await case.scorer.score(GOOD[::-1])
        alone = [(await case.scorer.score([one]))[0] for one in GOOD]
        assert scores == turned[::-1] == alone
        assert len({score.value for score in scores}) > 1, "the case tells no order"

    async def test_nothing_has_no_score(self, case):
        assert await case.scorer.score([]) == []

    async def test_a_judgement_that_fails_is_a_status_and_the_others_are_given(self, case):
        expected = await case.scorer.score(GOOD)
        scores = await case.scorer.score([*GOOD[: case.at], case.fail(), *GOOD[case.at :]])
        failed = scores.pop(case.at)
        check(failed)
        assert failed.status != "ok" and scores == expected
        assert await case.scorer.score(GOOD) == expected, "later ones too"

    async def test_calls_may_overlap(self, case):
        expected = await case.scorer.score(GOOD)
        several = await asyncio.gather(case.scorer.score(GOOD[:2]), case.scorer.score(GOOD), case.scorer.score([]))
        assert several == [expected[:2], expected, []]

    async def test_a_call_that_is_given_up_leaves_the_others_alone(self, case):
        expected = await case.scorer.score(GOOD)
        given_up, other = (asyncio.create_task(case.scorer.score(GOOD)) for _ in range(2))
        for _ in range(3):
            await asyncio.sleep(0)
        given_up.cancel()
        assert await other == expected
        assert await case.scorer.score(GOOD) == expected

    async def test_close_leaves_no_process_behind_and_may_come_twice(self, case):
        await case.scorer.score(GOOD[:1])
        for _ in range(2):
            await case.scorer.close()
        assert children() <= case.before

    async def test_one_that_was_never_started_can_be_closed(self, case):
        await case.fresh().close()
        assert len(await case.scorer.score(GOOD)) == len(GOOD)

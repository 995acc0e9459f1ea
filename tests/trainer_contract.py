"""What every `Trainer` must do: one suite, run over real ranks, through the wire, on the double, and simulated.

A subclass gives the fixture `place` (started, awake): two controllers' views of the same ranks.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from yatt.errors import WaitTimeout
from yatt.protocols import Trainer
from yatt.types import Denominator, Pair, Sample, SampleKey, Share

WORK = ("update", "evaluate", "reference")


@dataclass(frozen=True, slots=True)
class Place:
    """`learned` tells something that every update changes, and nothing else does; `impatient` makes trainers of the
    same ranks whose deadline is so short that what never comes is soon missed."""

    trainers: Sequence[Trainer]
    replicas: int
    learned: Callable[[], Awaitable[Any]]
    impatient: Callable[[], Sequence[Trainer]]


def pair(uid: int) -> Pair:
    """Two sequences of 6 and 4 tokens that begin with the same two."""
    random = np.random.default_rng(uid)
    tokens = random.integers(3, 90, 6).astype(np.int32)
    other = np.concatenate([tokens[:2], (tokens[2:4] + 1).astype(np.int32)])
    first, second = (
        Sample(key=SampleKey(uid, 0), tokens=one, loss_mask=np.arange(len(one)) >= 2, reward=1.0)
        for one in (tokens, other)
    )
    return Pair(first=first, second=second)


def shares(
    place: Place, step: int, controller: int, uids: Sequence[int], *, senders: tuple[int, ...], pairs: int | None = None
) -> list[Share]:
    """One for each replica, every one of these pairs in one of them; `pairs` are everyone's."""
    mine = [pair(uid) for uid in uids]
    count = len(mine) if pairs is None else pairs
    return [
        Share(
            step=step,
            rank=rank,
            controller=controller,
            senders=senders,
            updates=((tuple(mine[rank :: place.replicas]),),),
            denominators=(Denominator(tokens=6 * count, sequences=count),),
        )
        for rank in range(place.replicas)
    ]


def both(place: Place, step: int) -> list[list[Share]]:
    """Four pairs of each of two controllers."""
    return [
        shares(place, step, c, range(100 * step + 10 * c, 100 * step + 10 * c + 4), senders=(0, 1), pairs=8)
        for c in (0, 1)
    ]


async def asked(place: Place, work: str, step: int) -> list[Any]:
    """What both controllers are told of a step of both."""
    calls = zip(place.trainers, both(place, step), strict=True)
    return await asyncio.gather(*(getattr(trainer, work)(sent) for trainer, sent in calls))


async def waits(*tasks: asyncio.Task[Any]) -> bool:
    """Whether none of them ends by itself."""
    done, _ = await asyncio.wait(tasks, timeout=0.1, return_when=asyncio.FIRST_COMPLETED)
    return not done


class TrainerContract:
    async def test_all_who_send_hear_the_same_report_of_everyones_samples(self, place):
        first, second = await asked(place, "update", 1)
        assert first == second
        assert first.trained_tokens == 8 * 6
        assert math.isfinite(first.loss) and math.isfinite(first.grad_norm)

    async def test_each_update_teaches_and_an_evaluation_and_the_reference_do_not(self, place):
        known = [await place.learned()]
        for step in (1, 2):
            await asked(place, "update", step)
            known.append(await place.learned())
        assert known[0] != known[1] != known[2] != known[0]
        report, _ = await asked(place, "evaluate", 2)
        await asked(place, "reference", 3)
        assert await place.learned() == known[2]
        assert report.trained_tokens == 8 * 6 and math.isfinite(report.loss)

    async def test_it_evaluates_the_weights_as_they_are(self, place):
        before, again = [await asked(place, "evaluate", step) for step in (1, 1)]
        assert before[0].loss == again[0].loss == again[1].loss

    async def test_who_has_nothing_to_send_hears_nothing_and_nobody_waits_for_it(self, place):
        trainer, idle = place.trainers
        alone = shares(place, 1, 0, range(4), senders=(0,))
        assert await idle.update([]) is None and await idle.evaluate([]) is None
        assert not await idle.reference([])
        assert (await trainer.update(alone)).trained_tokens == 4 * 6

    async def test_all_senders_are_waited_for(self, place):
        before = await place.learned()
        for work in WORK:
            first, second = both(place, 1)
            task = asyncio.create_task(getattr(place.trainers[0], work)(first))
            assert await waits(task), work
            assert await place.learned() == before, work
            await getattr(place.trainers[1], work)(second)
            await task
            before = await place.learned()

    async def test_an_empty_share_counts(self, place):
        """The first controller sends one where nobody else has anything for a rank."""
        nothing = shares(place, 1, 0, [], senders=(0, 1), pairs=4)
        task = asyncio.create_task(place.trainers[1].update(shares(place, 1, 1, range(4), senders=(0, 1))))
        assert await waits(task)
        report = await place.trainers[0].update(nothing)
        assert report == await task and report.trained_tokens == 4 * 6

    async def test_an_update_and_an_evaluation_of_one_step_do_not_mix(self, place):
        one, two = place.trainers
        updates, looks = both(place, 1), [shares(place, 1, c, [10 * c], senders=(0, 1), pairs=2) for c in (0, 1)]
        early = [asyncio.create_task(one.update(updates[0])), asyncio.create_task(two.evaluate(looks[1]))]
        assert await waits(*early)
        late = await asyncio.gather(one.evaluate(looks[0]), two.update(updates[1]))
        assert [report.trained_tokens for report in late] == [12, 48]
        assert [(await task).trained_tokens for task in early] == [48, 12]

    async def test_the_reference_says_two_numbers_of_every_pair(self, place):
        told = await asked(place, "reference", 1)
        for controller, found in enumerate(told):
            own = range(100 + 10 * controller, 100 + 10 * controller + 4)
            assert found.keys() >= set(own)
            assert all(len(sums) == 2 and all(map(math.isfinite, sums)) for sums in found.values())
        again = await asked(place, "reference", 2)
        assert not set(again[0]) & set(told[0])
        alone = await place.trainers[0].reference(shares(place, 3, 0, range(100, 104), senders=(0,)))
        for uid in range(100, 104):
            assert alone[uid] == pytest.approx(told[0][uid]), "it depends on who else sends something"

    async def test_what_is_asked_of_ranks_without_their_memory_waits_for_it(self, place):
        leader = place.trainers[0]
        for step, work in enumerate(WORK, 1):
            before = await place.learned()
            await leader.offload()
            task = asyncio.create_task(asked(place, work, step))
            assert await waits(task), work
            await leader.onload()
            assert await task
            assert (await place.learned() == before) is (work != "update")

    async def test_memory_may_be_given_back_twice(self, place):
        leader = place.trainers[0]
        await leader.onload()
        for _ in range(2):
            await leader.offload()
        for _ in range(2):
            await leader.onload()
        assert (await asked(place, "update", 1))[0].trained_tokens == 48

    async def test_exported_weights_have_the_version_asked_for(self, place):
        leader = place.trainers[0]
        for version in (1, 2):
            await asked(place, "update", version)
            before = await place.learned()
            manifests = await leader.export(version)
            assert manifests and all(m.version == version for m in manifests.values())
            assert all(isinstance(node, str) for node in manifests)
            assert await place.learned() == before

    async def test_a_share_that_does_not_come_is_named(self, place):
        trainer = place.impatient()[0]
        for work in WORK:
            with pytest.raises(WaitTimeout, match=r"in step 1 for the shares of controllers \[1\]"):
                await getattr(trainer, work)(both(place, 1)[0])

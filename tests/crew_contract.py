"""What every `Crew` must do: one suite, run for the cluster's, the double, and the simulated one.

A subclass gives the fixture `case`, before the first step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from yatt.cluster.payload import payload_bytes
from yatt.errors import ProcessDied, YattError
from yatt.supervisor import Crew


@dataclass(frozen=True, slots=True)
class Case:
    """`saved` is the step of the last complete checkpoint, 0 before the first. `fail` makes the next save fail.
    `recovers` is whether this runtime brings up anew what died, `evaluates` whether it has held-out rows."""

    crew: Crew
    saved: Callable[[], int]
    fail: Callable[[], Any]
    recovers: bool
    evaluates: bool


async def fail_to_save(case: Case, step: int) -> None:
    """What it raises is of the kinds that a save may raise; where somebody died of it, the crew recovers."""
    case.fail()
    with pytest.raises((OSError, YattError)) as caught:
        await case.crew.save(step)
    if isinstance(caught.value, ProcessDied):
        assert await case.crew.recover(caught.value) == case.saved()


class CrewContract:
    async def test_a_report_is_of_its_step(self, case):
        reports = [await case.crew.step(step) for step in (1, 2)]
        assert [report.step for report in reports] == [1, 2]
        assert [report.policy_version for report in reports] == [1, 2]
        assert 0 < reports[0].epoch < reports[1].epoch
        assert all(report.controllers >= 1 and report.seconds > 0 for report in reports)

    async def test_what_comes_back_is_numbers(self, case):
        told: list[Any] = [await case.crew.step(1)]
        if case.evaluates:
            told.append(await case.crew.evaluate(1))
        assert payload_bytes(told) == 0

    async def test_an_evaluation_changes_nothing(self, case):
        if not case.evaluates:
            with pytest.raises(YattError, match="held-out"):
                await case.crew.evaluate(0)
            return
        before = await case.crew.evaluate(0)
        report = await case.crew.step(1)
        after = [await case.crew.evaluate(1) for _ in range(2)]
        assert before.prompts == after[0].prompts > 0 and after[0] == after[1]
        assert (await case.crew.step(2)).policy_version == report.policy_version + 1

    async def test_a_checkpoint_is_complete_once_save_returns(self, case):
        assert case.saved() == 0
        for step in (1, 2):
            await case.crew.step(step)
            assert case.saved() == step - 1
            await case.crew.save(step)
            assert case.saved() == step
        assert (await case.crew.step(3)).policy_version == 3

    async def test_a_save_that_fails_leaves_the_last_one_and_the_run_goes_on(self, case):
        await case.crew.step(1)
        await case.crew.save(1)
        await case.crew.step(2)
        await fail_to_save(case, 2)
        assert case.saved() == 1
        again = case.saved() + 1 if case.recovers else 3
        assert (await case.crew.step(again)).step == again
        await case.crew.save(again)
        assert case.saved() == again

    async def test_it_recovers_to_the_last_checkpoint_or_says_why_not(self, case):
        died = ProcessDied("rank 0 died")
        if not case.recovers:
            with pytest.raises(ProcessDied) as caught:
                await case.crew.recover(died)
            assert caught.value is died
            return
        assert await case.crew.recover(died) == 0
        first = await case.crew.step(1)
        await case.crew.save(1)
        for _ in range(2):
            second = await case.crew.step(2)
            assert await case.crew.recover(died) == 1
        again = await case.crew.step(2)
        assert (again.step, again.policy_version) == (second.step, second.policy_version) == (2, 2)
        assert again.epoch == second.epoch > first.epoch

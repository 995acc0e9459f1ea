"""Deaths, as the driver sees them: engines come back one by one, all else together, and not without end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from yatt.errors import BackendError, ProcessDied
from yatt.placement.plan import POLICY
from yatt.recovery import Recovery
from yatt.reports import Incident
from yatt.revival import ATTEMPTS
from yatt.simulation.loop import VirtualClock, run

ENGINES = [(POLICY, 0), (POLICY, 1)]


class Runtime:
    """Hosts and builder in one, with a note of every call. `bad` says which calls fail, by name and the number of the
    call of this name."""

    def __init__(self, bad: Callable[[str, int], bool] = lambda name, number: False, most: int = 3) -> None:
        self.calls: list[str] = []
        self.told: list[Incident] = []
        self.bad = bad
        self.dead = {engine: asyncio.Event() for engine in ENGINES}
        self.recovery = Recovery(self, self, VirtualClock(), self.told.append, most=most)

    def note(self, name: str, engine: tuple[str, int] | None = None) -> None:
        text = name if engine is None else f"{name} {engine[1]}"
        self.calls.append(text)
        if self.bad(text, self.calls.count(text)):
            raise ProcessDied(f"{text} failed")

    @property
    def texts(self) -> list[tuple[str, str]]:
        return [(one.process, one.kind) for one in self.told]

    # Hosts

    def name(self, engine: tuple[str, int]) -> str:
        return f"generator {engine[1]}"

    async def death(self, engine: tuple[str, int]) -> ProcessDied:
        await self.dead[engine].wait()
        return ProcessDied(f"{self.name(engine)} died")

    async def start(self, engine: tuple[str, int]) -> None:
        self.dead[engine].clear()
        await asyncio.sleep(20)
        self.note("start", engine)

    async def join(self, engine: tuple[str, int]) -> None:
        self.note("join", engine)

    async def end(self, engine: tuple[str, int]) -> None:
        self.note("end", engine)

    async def give_up(self, engine: tuple[str, int], error: ProcessDied) -> None:
        self.note("give up", engine)

    # Builder

    def revivable(self) -> Any:
        return ENGINES

    async def tear_down(self) -> None:
        self.note("tear down")

    async def build(self) -> None:
        await asyncio.sleep(5)
        self.note("build")

    async def go_back(self) -> int:
        self.note("go back")
        return 7


def played(story: Callable[[Runtime], Any], **runtime: Any) -> Runtime:
    async def main() -> Runtime:
        there = Runtime(**runtime)
        await story(there)
        await there.recovery.close()
        return there

    return run(main())


def test_an_engine_that_dies_comes_back_and_may_die_again():
    async def story(there: Runtime) -> None:
        there.recovery.watch()
        for _ in range(2):
            there.dead[POLICY, 1].set()
            await asyncio.sleep(100)

    there = played(story)
    assert there.calls == ["start 1", "join 1"] * 2
    assert there.texts == [("generator 1", "died"), ("generator 1", "back")] * 2
    assert there.told[1].at - there.told[0].at == 20


def test_an_engine_that_keeps_failing_is_given_up_and_stays_so_for_those_who_come_after():
    async def story(there: Runtime) -> None:
        there.recovery.watch()
        there.dead[POLICY, 0].set()
        await asyncio.sleep(1000)
        assert await there.recovery.recover(ProcessDied("rank 0 died")) == 7
        await asyncio.sleep(1000)

    there = played(story, bad=lambda call, number: call == "start 0")
    assert there.calls.count("start 0") == there.calls.count("end 0") == ATTEMPTS
    assert there.calls[-4:] == ["tear down", "build", "go back", "give up 0"]
    assert there.calls.count("give up 0") == 2, "the new controllers are told too"
    assert there.texts == [("generator 0", "died"), ("generator 0", "given up"), ("run", "died"), ("run", "back")]
    # Four starts of 20 s, and 2, 6 and 18 s between them.
    assert there.told[1].at - there.told[0].at == 4 * 20 + 2 + 6 + 18


def test_a_step_that_is_done_forgives_an_engine_what_it_did_before():
    async def story(there: Runtime) -> None:
        there.recovery.watch()
        for step in range(2 * ATTEMPTS):
            there.dead[POLICY, 0].set()
            await asyncio.sleep(100)
            there.recovery.step_done(step + 1)

    assert played(story).texts[-1] == ("generator 0", "back")


def test_what_dies_on_the_way_back_is_started_anew_too_and_too_many_deaths_end_the_run():
    async def story(there: Runtime) -> None:
        assert await there.recovery.recover(ProcessDied("rank 0 died")) == 7
        with pytest.raises(ProcessDied, match="controller 1 died"):
            await there.recovery.recover(ProcessDied("controller 1 died"))

    there = played(story, bad=lambda call, number: (call, number) in {("build", 1), ("go back", 1)})
    assert there.calls == [*("tear down", "build"), *("tear down", "build", "go back") * 2]
    assert [one.text for one in there.told] == [
        "rank 0 died; starting ranks and controllers anew (1 of 3)",
        "build failed; starting ranks and controllers anew (2 of 3)",
        "go back failed; starting ranks and controllers anew (3 of 3)",
        f"going on from the end of step 7, after {3 * 5 + 2 + 6:.1f} s",
    ]


def test_a_start_that_fails_otherwise_is_tried_again_too():
    class Odd(Runtime):
        async def build(self) -> None:
            await super().build()
            if self.calls.count("build") == 1:
                raise BackendError("starting ranks: rank 1 failed: the port is taken")

    async def main() -> None:
        there = Odd()
        assert await there.recovery.recover(ProcessDied("rank 0 died")) == 7
        await there.recovery.close()
        assert "the port is taken" in there.told[1].text

    run(main())


def test_only_a_step_that_was_never_done_before_forgives_a_death():
    async def story(there: Runtime) -> None:
        recover, done = there.recovery.recover, there.recovery.step_done
        for step in (8, 9, 10):  # a run that gets on may die any number of times
            for _ in range(3):
                await recover(ProcessDied("rank 0 died"))
                done(step - 1)
            done(step)
        for _ in range(3):
            await recover(ProcessDied("rank 0 died"))
            for step in (8, 9, 10):  # done again, and the eleventh kills
                done(step)
        with pytest.raises(ProcessDied):
            await recover(ProcessDied("rank 0 died"))

    played(story)


def test_no_recoveries_are_none():
    async def story(there: Runtime) -> None:
        with pytest.raises(ProcessDied, match="rank 0"):
            await there.recovery.recover(ProcessDied("rank 0 died"))

    assert played(story, most=0).calls == []


def test_an_engine_that_is_being_started_when_all_else_dies_is_begun_with_anew():
    async def story(there: Runtime) -> None:
        there.recovery.watch()
        there.dead[POLICY, 1].set()
        await asyncio.sleep(10)
        there.dead[POLICY, 1].set()  # half a start is none
        assert await there.recovery.recover(ProcessDied("rank 0 died")) == 7
        await asyncio.sleep(100)

    assert played(story).calls == ["tear down", "build", "go back", "start 1", "join 1"]

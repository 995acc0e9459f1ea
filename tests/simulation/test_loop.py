"""The virtual loop: time jumps, order is kept, and a deadlock is found at once."""

from __future__ import annotations

import asyncio

import pytest

from yatt.errors import BackendError
from yatt.simulation.loop import Stuck, VirtualClock, run


def test_time_jumps_to_the_next_timer_and_is_exact() -> None:
    async def main() -> list[float]:
        clock = VirtualClock()
        times = [clock.now()]
        for seconds in (0.1, 3600.0, 86400.0 * 365, 1e-7):
            await clock.sleep(seconds)
            times.append(clock.now())
        return times

    year = 0.1 + 3600.0 + 86400.0 * 365
    assert run(main()) == [0.0, 0.1, 3600.1, year, year + 1e-7]


def test_timers_run_in_order_of_time_and_ready_work_takes_none() -> None:
    seen: list[tuple[str, float]] = []

    async def wait(name: str, seconds: float) -> None:
        await asyncio.sleep(seconds)
        for _ in range(5):
            await asyncio.sleep(0)
        seen.append((name, VirtualClock().now()))

    async def main() -> None:
        await asyncio.gather(wait("b", 2.0), wait("a", 1.0), wait("c", 2.5), wait("now", 0.0))

    run(main())
    assert seen == [("now", 0.0), ("a", 1.0), ("b", 2.0), ("c", 2.5)]


def test_a_cancelled_timer_does_not_move_time() -> None:
    async def main() -> float:
        async with asyncio.timeout(1000):
            await asyncio.sleep(1)
        await asyncio.sleep(1)
        return VirtualClock().now()

    assert run(main()) == 2.0


def test_a_wait_with_a_deadline_passes_it() -> None:
    async def main() -> float:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.Event().wait(), 3600)
        return VirtualClock().now()

    assert run(main()) == 3600.0


def test_a_deadlock_is_found_at_once_and_named() -> None:
    async def left(mine: asyncio.Event, other: asyncio.Event) -> None:
        await other.wait()
        mine.set()

    async def main() -> None:
        a, b = asyncio.Event(), asyncio.Event()
        await asyncio.gather(left(a, b), left(b, a))

    with pytest.raises(Stuck, match=r"at 0 s all wait.*left, line \d+ \(2 tasks\)") as caught:
        run(main())
    assert isinstance(caught.value, BackendError)


def test_errors_and_answers_come_through() -> None:
    async def main() -> int:
        await asyncio.sleep(1)
        return 7

    async def fail() -> None:
        await asyncio.sleep(1)
        raise KeyError("x")

    assert run(main()) == 7
    with pytest.raises(KeyError, match="x"):
        run(fail())


def test_time_does_not_stand_still_far_from_zero() -> None:
    async def main() -> int:
        await asyncio.sleep(1e9)  # where the spacing of floats is 1.2e-7
        ticks = 0
        while VirtualClock().now() < 1e9 + 1e-3:
            await asyncio.sleep(1e-5)
            ticks += 1
        return ticks

    assert 50 < run(main()) < 200

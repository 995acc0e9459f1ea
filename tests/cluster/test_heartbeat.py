"""Signs of life: who is ended, who is not, and what is said of it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest

from yatt.cluster import heartbeat as heartbeat_module
from yatt.cluster.calls import WAITS
from yatt.cluster.heartbeat import GRACE, QUESTIONS, Heartbeat
from yatt.cluster.process import DUMP, Beat
from yatt.reports import Incident
from yatt.simulation.loop import VirtualClock, run

SILENCE = 40.0
BEAT = Beat(host="elsewhere", pid=1, progress=None, waits=())


@dataclass
class Process:
    """Answers as `answer` does."""

    answer: Callable[[], Awaitable[Beat]]

    @property
    def beat(self) -> Any:
        return SimpleNamespace(remote=lambda: asyncio.ensure_future(self.answer()))


def heard(processes: dict[str, Callable[[], Awaitable[Beat]]], seconds: float, patch: Any) -> tuple[list, list]:
    """What is told in so many seconds, and which processes are ended."""
    told: list[Incident] = []
    killed: list[Any] = []
    patch.setattr(heartbeat_module.ray, "kill", killed.append)

    async def main() -> None:
        heartbeat = Heartbeat(SILENCE, VirtualClock(), told.append)
        actors = {name: Process(answer) for name, answer in processes.items()}
        for name, actor in actors.items():
            heartbeat.listen(name, actor)
        await asyncio.sleep(seconds)
        await heartbeat.close()
        killed[:] = [name for name, actor in actors.items() if actor in killed]

    run(main())
    return told, killed


async def well() -> Beat:
    return BEAT


async def never() -> Beat:
    await asyncio.Event().wait()
    return BEAT


def test_who_is_silent_is_ended_and_nobody_else(monkeypatch):
    waiting = Beat(host="elsewhere", pid=2, progress=None, waits=("for rank 0 (update of step 3, 40 s)",))

    async def waits() -> Beat:
        return waiting

    told, killed = heard({"rank 0": never, "rank 1": well, "controller 0": waits}, 1000, monkeypatch)
    assert killed == ["rank 0"]
    (incident,) = told
    assert (incident.process, incident.kind, incident.at) == ("rank 0", "silent", SILENCE * (1 - 1 / QUESTIONS) + GRACE)
    assert incident.text == (
        "no sign of life for 40 s; it is ended, and the stacks of all are in the run's log/ "
        "(controller 0 for rank 0 (update of step 3, 40 s))"
    )


def test_an_answer_that_comes_late_is_an_answer(monkeypatch):
    async def late() -> Beat:
        await asyncio.sleep(SILENCE * (1 - 1 / QUESTIONS) + GRACE - 1)
        return BEAT

    assert heard({"rank 0": late}, 1000, monkeypatch) == ([], [])


def test_who_has_work_and_gets_nowhere_is_ended(monkeypatch):
    """One that gets on slowly, one that has nothing to do, and one that stands still while it has."""
    clock = VirtualClock()

    async def slow() -> Beat:
        return replace(BEAT, progress=(int(clock.now() / (SILENCE - 6)),))

    async def stands() -> Beat:
        return replace(BEAT, progress=(7, 7))

    async def comes_and_goes() -> Beat:
        return replace(BEAT, progress=(7, 7) if int(clock.now() / 20) % 2 else None)

    told, killed = heard({"a": slow, "b": stands, "c": comes_and_goes, "d": well}, 1000, monkeypatch)
    assert killed == ["b"]
    assert told[0].text.startswith("it has had work for 40 s and got nowhere; it is ended")


def test_who_is_dead_is_left_to_others(monkeypatch):
    async def dead() -> Beat:
        raise ConnectionError

    assert heard({"rank 0": dead}, 1000, monkeypatch) == ([], [])


async def test_what_a_process_waits_for_is_told_while_it_does():
    with WAITS.on("update of step 3", names := ["rank 0", "rank 1"]):
        assert WAITS.told() == ["rank 0, rank 1 (update of step 3, 0 s)"]
        names.remove("rank 0")
        assert WAITS.told() == ["rank 1 (update of step 3, 0 s)"]
    assert WAITS.told() == []


@pytest.mark.slow
def test_a_process_that_is_stopped_is_told_from_others_and_can_be_ended_and_one_that_runs_says_where_it_is(tmp_path):
    (tmp_path / "log").mkdir()
    log = tmp_path / "log" / "rank-0.log"
    program = f"""
import time
from yatt.cluster.process import SlotProcess, settle
settle(SlotProcess(name="rank 0", device="cpu", directory="/", log={str(log)!r}))
def where_it_hangs():
    print("up", flush=True)
    time.sleep(600)
where_it_hangs()
"""
    process = subprocess.Popen([sys.executable, "-c", program], cwd=os.getcwd())
    try:
        beat = Beat(host=os.uname().nodename, pid=process.pid, progress=None, waits=())
        until(lambda: log.exists() and "up" in log.read_text())
        heartbeat_module._signal(beat, DUMP)
        until(lambda: "where_it_hangs" in log.read_text())
        assert heartbeat_module._state(beat) == "" and process.poll() is None
        process.send_signal(signal.SIGSTOP)
        until(lambda: heartbeat_module._state(beat) == ": it is stopped")
        heartbeat_module._signal(beat, signal.SIGKILL)
        assert process.wait(60) == -signal.SIGKILL
        heartbeat_module._signal(beat, signal.SIGKILL)  # it is gone: nothing happens
    finally:
        process.kill()
        process.wait()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)

"""Signs of life. The driver asks every process how it is; one that does not answer, or has work and gets nowhere, is
ended, and so becomes a death, after all have written down where they are."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from yatt.cluster.calls import WAITS
from yatt.cluster.process import DUMP, Beat
from yatt.protocols import Clock
from yatt.reports import Incident

GRACE = 2.0
"""Seconds more for an answer: the driver itself may have stood still."""
QUESTIONS = 8
"""How often a process is asked within the time that it may be silent."""
SHOWN = 6
"""Processes of which it is told what they wait for."""


@dataclass(slots=True)
class _Process:
    """A process that is listened to, and what it said last."""

    name: str
    actor: Any
    task: asyncio.Task[None] | None = None
    beat: Beat | None = None


class Heartbeat:
    """Listens to processes, one task each, from when each is up. One that is silent for `silence` seconds is ended, and
    `tell` hears why."""

    def __init__(self, silence: float, clock: Clock, tell: Callable[[Incident], object]) -> None:
        self._silence = silence
        self._clock = clock
        self._tell = tell
        self._processes: dict[str, _Process] = {}

    def listen(self, name: str, actor: Any) -> None:
        """From now on; to this process in place of another of the same name."""
        self.leave([name])
        one = self._processes[name] = _Process(name, actor)
        one.task = asyncio.create_task(self._listen(one))

    def leave(self, names: Iterable[str]) -> None:
        """Listen to these no more."""
        for name in names:
            if (one := self._processes.pop(name, None)) is not None and one.task is not None:
                one.task.cancel()

    async def close(self) -> None:
        """Listen to none."""
        tasks = [one.task for one in self._processes.values() if one.task is not None]
        self.leave(list(self._processes))
        await asyncio.gather(*tasks, return_exceptions=True)

    def dump(self) -> None:
        """Have every process that listens write the stacks of its threads into its log."""
        for one in self._processes.values():
            _signal(one.beat, DUMP)

    def waiting(self) -> str:
        """Who waits for whom, in words; the driver first."""
        told = [f"the driver for {wait}" for wait in WAITS.told()]
        for one in self._processes.values():
            told += [f"{one.name} {wait}" for wait in (one.beat.waits if one.beat else ())]
        return "; ".join(told[:SHOWN])

    async def _listen(self, one: _Process) -> None:
        seen, since = None, self._clock.now()
        while True:
            call = asyncio.ensure_future(_answer(one.actor.beat.remote()))
            done, _ = await asyncio.wait([call], timeout=self._silence * (1 - 1 / QUESTIONS))
            if not done:
                done, _ = await asyncio.wait([call], timeout=GRACE)
            if not done:
                call.cancel()
                return self._end(one, f"no sign of life for {self._silence:g} s{_state(one.beat)}")
            if call.exception() is not None:  # it is dead, or ends: others hear of that
                return None
            one.beat = call.result()
            if one.beat.progress is None or one.beat.progress != seen:
                seen, since = one.beat.progress, self._clock.now()
            elif self._clock.now() - since > self._silence:
                return self._end(one, f"it has had work for {self._silence:g} s and got nowhere")
            await asyncio.sleep(self._silence / QUESTIONS)

    def _end(self, one: _Process, why: str) -> None:
        """Have all say where they are, and end this one."""
        self.dump()
        waiting = self.waiting()
        text = f"{why}; it is ended, and the stacks of all are in the run's log/" + (f" ({waiting})" if waiting else "")
        self._tell(Incident(at=self._clock.now(), process=one.name, kind="silent", text=text))
        asyncio.get_running_loop().call_later(1.0, _kill, one)  # once the stacks are written


def _kill(one: _Process) -> None:
    _signal(one.beat, signal.SIGKILL)  # Ray asks it to end, which one that is stopped does not hear
    ray.kill(one.actor)


async def _answer(call: Any) -> Beat:
    beat: Beat = await call
    return beat


def _signal(beat: Beat | None, number: int) -> None:
    """Send a signal to another process of this machine; to those of other machines, nothing."""
    if beat is not None and beat.host == os.uname().nodename and beat.pid != os.getpid():
        with suppress(ProcessLookupError, PermissionError):
            os.kill(beat.pid, number)


def _state(beat: Beat | None) -> str:
    """What the system says of a process that is silent, where that is something to know."""
    if beat is None or beat.host != os.uname().nodename:
        return ""
    with suppress(OSError, IndexError):
        letter = Path(f"/proc/{beat.pid}/stat").read_text().rpartition(")")[2].split()[0]
        return {"T": ": it is stopped", "D": ": it waits for a disk", "Z": ": it has ended"}.get(letter, "")
    return ""

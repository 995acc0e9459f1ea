"""The settings of an actor process: where it runs, how many threads it has, where its output goes."""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import os
import signal
import sys
from dataclasses import dataclass
from typing import Literal

from yatt.cluster.calls import WAITS
from yatt.cluster.clock import WallClock
from yatt.controller.recorder import Recorder


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotProcess:
    """One actor process. `log` is a file its stdout and stderr are appended to; `role` and `slots` are those of its
    spans on the timeline."""

    name: str
    device: Literal["cpu", "cuda"]
    directory: str
    log: str
    role: str = ""
    slots: tuple[int, ...] = ()

    def recorder(self) -> Recorder:
        """Records what this process does."""
        return Recorder(self.name, WallClock(), role=self.role, slots=self.slots)


DUMP = signal.SIGUSR2
"""Has a process write the stacks of its threads into its log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """A sign of life. `progress` is None where there is nothing to do, else what changes as work gets on; `waits` say
    what is waited for, or done."""

    host: str
    pid: int
    progress: tuple[int, ...] | None
    waits: tuple[str, ...]


class Hosted:
    """Base of all actors."""

    _recorder: Recorder

    async def beat(self) -> Beat:
        """A sign of life."""
        waits = (*(f"for {wait}" for wait in WAITS.told()), *(f"in {phase}" for phase in self._recorder.doing()))
        return Beat(host=os.uname().nodename, pid=os.getpid(), progress=await self.progress(), waits=waits)

    async def progress(self) -> tuple[int, ...] | None:
        """See `Beat`. What has a deadline of its own need not say."""
        return None

    async def lasts(self) -> None:
        """Never returns: who calls hears when the process is gone."""
        await asyncio.Event().wait()


def settle(process: SlotProcess) -> None:
    """Take the driver's working directory and send everything this process prints to its own log file."""
    if os.path.isdir(process.directory):
        os.chdir(process.directory)
        sys.path.insert(0, process.directory)
    if os.path.isdir(os.path.dirname(process.log)):
        sys.stdout.flush()
        sys.stderr.flush()
        file = os.open(process.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        os.dup2(file, 1)
        os.dup2(file, 2)
        os.close(file)
    faulthandler.enable()
    faulthandler.register(DUMP, file=2, all_threads=True)
    logging.basicConfig(level=logging.INFO, format=f"%(asctime)s {process.name} %(levelname)s %(message)s", force=True)

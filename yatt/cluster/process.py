"""The settings of an actor process: where it runs, how many threads it has, where its output goes."""

from __future__ import annotations

import faulthandler
import logging
import os
import sys
from dataclasses import dataclass
from typing import Literal

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
    logging.basicConfig(level=logging.INFO, format=f"%(asctime)s {process.name} %(levelname)s %(message)s", force=True)

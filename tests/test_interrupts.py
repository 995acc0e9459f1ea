"""How a run is told to stop, without a run: the signals that reach the driver, and its terminal."""

from __future__ import annotations

import errno
import io
import os
import pty
import signal
import subprocess
import sys

from rich.console import Console

from yatt.faces.progress import Progress

RUN = """
import asyncio, os, signal, sys
from yatt.faces.train import interruptible

def stop():
    asked.append(1)
    return len(asked) == 1

def save():
    saves.append(1)

async def main():
    with interruptible(stop, save, print):
        os.kill(os.getpid(), signal.SIGUSR1)
        while not saves:
            await asyncio.sleep(0.01)
        print("ready", flush=True)
        while not asked:
            await asyncio.sleep(0.01)
        os.kill(os.getpid(), signal.SIGHUP)
        await asyncio.sleep(0.2)
        print("a step ends", flush=True)

asked, saves = [], []
asyncio.run(main())
os._exit(7 if asked and saves == [1] else 8)
"""


def test_a_terminal_that_goes_away_stops_a_run_and_fails_none_of_its_words():
    """Its driver is told by the system, here twice; what it writes then goes nowhere. SIGUSR1, before that, saves and
    stops nothing."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", "import fcntl, termios; fcntl.ioctl(1, termios.TIOCSCTTY, 0)\n" + RUN]
    run = subprocess.Popen(
        command,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    )
    os.close(theirs)
    said = b""
    while b"ready\r\n" not in said:
        said += os.read(ours, 1000)
    os.close(ours)
    assert run.wait(60) == 7


class Gone(io.StringIO):
    """A terminal that has gone away."""

    def write(self, text: str) -> int:
        raise OSError(errno.EIO, "Input/output error")


def test_a_word_that_comes_as_the_terminal_goes_ends_no_run():
    Progress(3, console=Console(file=Gone())).note("saved step 1")

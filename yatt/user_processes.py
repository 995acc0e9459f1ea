"""Processes for code of the user's: each in a session of its own, with all it starts below a keeper (`yatt.keeper`)."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys


def spawn(main: str, end: socket.socket) -> subprocess.Popen[bytes]:
    """Start `main`, written package.module:NAME, in a process that has one end of a socket pair: its number is the only
    argument. It sees modules where this process does, an interrupt at the terminal does not reach it, and it ends with
    the thread that calls this."""
    # Not by PYTHONPATH, which would also reach the interpreters that the user's code starts.
    path = [entry or os.getcwd() for entry in sys.path]
    module, _, name = main.partition(":")
    code = f"import sys; sys.path = {path!r}; from {module} import {name}; {name}()"
    return subprocess.Popen(
        [sys.executable, "-c", code, str(end.fileno())],
        stdin=subprocess.DEVNULL,
        stdout=2,  # what the user's code prints goes to our stderr
        pass_fds=[end.fileno()],
        start_new_session=True,
    )


def ask_to_end(process: subprocess.Popen[bytes]) -> None:
    """Have the process end with all it started, where it has not been waited for."""
    # Before it is waited for: until then, a dead process's id cannot belong to anyone else.
    if process.returncode is None:
        for sign in (signal.SIGTERM, signal.SIGCONT):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, sign)


def ending(process: subprocess.Popen[bytes], seconds: float) -> str:
    """How the process ended by itself within so many seconds; "" where it did not."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        status = process.wait(seconds)
        return f"exit status {status}" if status >= 0 else f"signal {signal.Signals(-status).name}"
    return ""


def end(process: subprocess.Popen[bytes], seconds: float) -> None:
    """End the process with all it started; after so many seconds, kill what is in its group."""
    ask_to_end(process)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

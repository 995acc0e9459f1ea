"""Between a scorer and its worker processes: length-prefixed pickles over a socket pair, and the processes' lives."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import socket
import subprocess
import sys
from typing import Any, BinaryIO

HEADER_BYTES = 4


def encode(message: Any) -> bytes:
    body = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    return len(body).to_bytes(HEADER_BYTES, "little") + body


def read(stream: BinaryIO) -> bytes | None:
    """The body of the next message, or None where the other end has closed. Blocks as long as the stream does."""
    header = stream.read(HEADER_BYTES)
    if len(header) < HEADER_BYTES:
        return None
    body = stream.read(size := int.from_bytes(header, "little"))
    return body if len(body) == size else None


def spawn(first: Any) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """Start a worker and send it its first message; returns it and our end of its socket.

    The worker sees modules where this process does. It leads a process group of its own: an interrupt at the terminal
    does not reach it, and `end` reaches whatever it started. Call it from a thread that lives as long as the worker:
    Linux kills the worker with the thread.
    """
    ours, theirs = socket.socketpair()
    # Not by PYTHONPATH, which would also reach the interpreters that a reward function starts.
    path = [entry or os.getcwd() for entry in sys.path]
    code = f"import sys; sys.path = {path!r}; from yatt.reward.worker import main; main()"
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=2,  # what a reward function prints goes to our stderr
            pass_fds=[theirs.fileno()],
            start_new_session=True,
        )
    # A worker that died at once is noticed by whoever reads the socket.
    with contextlib.suppress(BrokenPipeError):
        ours.sendall(encode(first))
    return process, ours


def end(process: subprocess.Popen[bytes]) -> str:
    """Kill a worker and its process group, dead or alive, and say how it ended."""
    # The group first: until it is waited for, a dead worker's id cannot belong to anyone else.
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    status = process.wait()
    return f"exit status {status}" if status >= 0 else f"signal {signal.Signals(-status).name}"

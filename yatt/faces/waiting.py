"""A command of yatt's in a process of its own, for Python code that waits for it.

So a notebook's event loop, a script without a `__main__` guard, and whatever the user's process has imported are left
alone; and what runs is the command.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import IO, Any

from yatt import errors
from yatt.errors import ConfigError, RunEnded, YattError

STOPPED = 130
MAIN = "yatt.called:main"
"""What the process runs."""


def run(words: Sequence[str], *, answer: bool = False) -> str:
    """Run `yatt` with these words, and show what it says; with `answer`, its standard output is returned instead.

    An interrupt is handed on: the command ends as it does at a terminal, and then KeyboardInterrupt is raised here.
    Raises the YattError that the command ended with."""
    told, tells = os.pipe()
    path, (module, _, name) = [entry or os.getcwd() for entry in sys.path], MAIN.partition(":")
    code = f"import sys; sys.path = {path!r}; from {module} import {name}; {name}()"
    own = _shown_directly()
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(tells), str(os.getpid()), *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if answer or not own else None,
            stderr=None if own else subprocess.PIPE if answer else subprocess.STDOUT,
            pass_fds=[tells],
            start_new_session=True,  # an interrupt at the terminal comes from here, once
        )
    finally:
        os.close(tells)
    with open(told, "rb") as trouble:
        said, interrupted = _followed(process, answer)
        text = trouble.read()
    if interrupted:
        raise KeyboardInterrupt
    if process.returncode:
        raise _error(text, process.returncode)
    return said


def _shown_directly() -> bool:
    """Whether this process's own files 1 and 2 are what Python writes to: not so in a notebook."""
    try:
        return sys.stdout.fileno() == 1 and sys.stderr.fileno() == 2
    except (AttributeError, OSError, ValueError):
        return False


def _followed(process: subprocess.Popen[bytes], answer: bool) -> tuple[str, bool]:
    """Wait for the process; what it wrote where that is the answer, and whether it was interrupted."""
    collected: list[str] = []
    streams: list[tuple[IO[bytes], Any]] = []
    if process.stdout is not None:
        streams.append((process.stdout, collected.append if answer else sys.stdout.write))
    if process.stderr is not None:
        streams.append((process.stderr, sys.stderr.write))
    readers = [threading.Thread(target=_pump, args=stream, daemon=True) for stream in streams]
    for reader in readers:
        reader.start()
    interrupted = False
    while True:
        try:
            process.wait()
            for reader in readers:
                reader.join()
            return "".join(collected), interrupted
        except KeyboardInterrupt:
            interrupted = True
            process.send_signal(signal.SIGINT)
        except BaseException:
            process.terminate()
            raise


def _pump(stream: IO[bytes], write: Any) -> None:
    """Hand on what is written, line by line."""
    with contextlib.suppress(OSError, ValueError), io.TextIOWrapper(stream, errors="replace") as lines:
        for line in lines:
            write(line)


def _error(text: bytes, status: int) -> YattError:
    """The error that the command ended with, as far as it said so."""
    try:
        told = json.loads(text)
        kind = getattr(errors, told["kind"])
        error: YattError = (kind if issubclass(kind, YattError) else YattError)(told["text"])
        return error
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    if status == STOPPED:
        return RunEnded("the run was stopped; resume='auto' goes on with it")
    if status == ConfigError.exit_status:
        return ConfigError("the command was refused; what it said is above")
    how = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
    return YattError(f"yatt ended with {how}; what it said is above, and a run's log/ has more")

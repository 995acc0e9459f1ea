"""The process above a worker with code of the user's: whatever it started, however it was cut loose, ends with it.
Light."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import time
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
LOOK_SECONDS = 0.005


class _Asked(BaseException):
    """The worker is to end."""


def keep(release: Callable[[], None]) -> None:
    """Fork. Returns in the child, which is the worker; the parent, after `release`, waits for it to end, or for
    SIGTERM, which also comes when the thread that started it ends. Then it kills all processes below it, those in
    sessions of their own too, and ends as the worker did."""
    keeper = os.getpid()
    signal.signal(signal.SIGTERM, _ask)
    _prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    worker = os.fork()
    if worker:
        _watch(worker, release)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != keeper:
        os._exit(1)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")  # where memory runs out, better this process than an engine


def _ask(signum: int, frame: FrameType | None) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise _Asked


def _watch(worker: int, release: Callable[[], None]) -> NoReturn:
    status = 0
    try:
        release()
        ended = 0
        while ended != worker:
            ended, status = os.waitpid(-1, 0)
    except _Asked:
        status = signal.SIGKILL
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _sweep()
    if os.WIFSIGNALED(status):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with contextlib.suppress(OSError):
            signal.signal(os.WTERMSIG(status), signal.SIG_DFL)
        os.kill(os.getpid(), os.WTERMSIG(status))
    os._exit(os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else 1)


def _sweep() -> None:
    """Kill the children until there are none: those of a dead child become this process's own."""
    while True:
        for child in _children():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(child, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(LOOK_SECONDS)


def _children() -> list[int]:
    children, own = [], str(os.getpid())
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{entry}/stat", errors="replace") as file:
                if file.read().rpartition(")")[2].split()[1] == own:  # behind the name: state, parent
                    children.append(int(entry))
    return children


def _prctl(option: int, value: int) -> None:
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)

"""A reward worker: `main` in a process of its own, which judges one item after another until its socket closes.

Reads function specs and answers "" or what is wrong with their import; then answers every pickled item with a `Reply`.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import io
import os
import pickle
import signal
import sys
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Literal

from yatt.errors import ConfigError
from yatt.functions import describe
from yatt.reward.function import BadResult, Item, RewardFunction

PR_SET_PDEATHSIG = 1

Reply = tuple[Literal["ok", "failed", "timed_out", "no reward"], float | None, dict[str, float], str]
"""(status, value, parts, detail); "no reward" is a failure by a result that is no reward, whatever the item."""


def main() -> None:
    _die_with_parent()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)
    connection = Connection(int(sys.argv[1]))
    os.set_inheritable(connection.fileno(), False)  # what a reward function starts must not hold our socket open
    with contextlib.suppress(EOFError, ConnectionError):
        specs, loop = connection.recv(), asyncio.new_event_loop()
        try:
            functions = [RewardFunction(spec, loop) for spec in specs]
        except ConfigError as error:
            return connection.send(str(error))
        connection.send("")
        while True:
            connection.send(judge(functions, connection.recv_bytes()))


def judge(functions: Sequence[RewardFunction], pickled: bytes) -> Reply:
    """The weighted sum of all functions on one pickled item; failed as soon as one of them fails."""
    key, total = "item", 0.0
    parts: dict[str, float] = {}
    try:
        item = Item(*pickle.loads(pickled))
        for function in functions:
            key = function.spec.key
            found = function(item)
            value = found.pop("reward")
            total += function.spec.weight * value
            parts |= {f"{key}.{name}" if len(functions) > 1 else name: number for name, number in found.items()}
            parts[key] = value
    except BadResult as error:
        return "no reward", None, {}, f"{key} {error}"
    except BaseException as error:  # SystemExit too: a judgement that fails must not end the worker
        return "failed", None, {}, f"{key}: {describe(error)}"
    return "ok", total, parts, ""


def _die_with_parent() -> None:
    """Linux: be killed when the thread that started us ends, even in the middle of an item."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

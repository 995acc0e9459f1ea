"""A reward worker: `main` in a process of its own, which judges one item after another until its socket closes.

Reads (function specs, probe), answers "" or what is wrong with their import, and the same of their results on the
probe if there is one; then answers every pickled item, in order, with (status, value, parts, detail).
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
from typing import BinaryIO

from yatt.errors import ConfigError
from yatt.reward import wire
from yatt.reward.function import BadResult, Item, RewardFunction, describe

PR_SET_PDEATHSIG = 1

Reply = tuple[str, float | None, dict[str, float], str]


def main() -> None:
    _die_with_parent()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)
    fd = int(sys.argv[1])
    os.set_inheritable(fd, False)  # what a reward function starts must not hold our socket open
    # Never closed before the process ends: whoever reads the other end then knows that exit handlers have run.
    with open(fd, "rb", closefd=False) as requests, open(fd, "wb", closefd=False) as replies:
        first = wire.read(requests)
        if first is None:
            return
        specs, probe = pickle.loads(first)
        loop = asyncio.new_event_loop()
        functions: list[RewardFunction] = []
        complaint = ""
        try:
            functions += [RewardFunction(spec, loop) for spec in specs]
        except ConfigError as error:
            complaint = str(error)
        _send(replies, complaint)
        if probe is not None and not complaint:
            _send(replies, try_on(functions, probe))
        while (frame := wire.read(requests)) is not None:
            _send(replies, judge(functions, frame))


def try_on(functions: Sequence[RewardFunction], probe: Item) -> str:
    """What is wrong with the results on a probe, or "". Errors are not looked at."""
    for function in functions:
        try:
            function(probe)
        except BadResult as error:
            return f"{function.spec} {error}"
        except BaseException:  # a made-up response may well be refused
            continue
    return ""


def judge(functions: Sequence[RewardFunction], frame: bytes) -> Reply:
    """The weighted sum of all functions on one pickled item; failed as soon as one of them fails."""
    key, total = "item", 0.0
    parts: dict[str, float] = {}
    try:
        item = Item(*pickle.loads(frame))
        for function in functions:
            key = function.spec.key
            found = function(item)
            value = found.pop("reward")
            total += function.spec.weight * value
            parts |= {f"{key}.{name}" if len(functions) > 1 else name: number for name, number in found.items()}
            parts[key] = value
    except BadResult as error:
        return "failed", None, {}, f"{key} {error}"
    except BaseException as error:  # SystemExit too: a judgement that fails must not end the worker
        return "failed", None, {}, f"{key}: {describe(error)}"
    return "ok", total, parts, ""


def _send(stream: BinaryIO, message: object) -> None:
    stream.write(wire.encode(message))
    stream.flush()


def _die_with_parent() -> None:
    """Linux: be killed when the thread that started us ends, even in the middle of an item."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

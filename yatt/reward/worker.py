"""A reward worker: `main` in a process of its own, which judges one item after another until its socket closes.

Reads function specs and answers "" or what is wrong with their import; then answers every pickled item with a `Reply`.
Before that it says true and false where an import begins and ends. Answers are JSON: what comes from here is not
trusted to be unpickled.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import math
import os
import pickle
import signal
import socket
import sys
from collections.abc import Sequence
from typing import Any, Literal

from yatt.errors import ConfigError
from yatt.keeper import keep
from yatt.reward.channel import LONGEST_ANSWER, Channel
from yatt.reward.function import BadResult, Item, RewardFunction, as_number
from yatt.reward.importlib_clock import ImportClock
from yatt.user_functions import describe

LONGEST_DETAIL = 500

Reply = tuple[Literal["ok", "failed", "timed_out", "no reward"], float | None, dict[str, float], str]
"""(status, value, parts, detail); "no reward" is a failure by a result that is no reward, whatever the item."""


def main() -> None:
    end = socket.socket(fileno=int(sys.argv[1]))
    keep(end.close)
    end.set_inheritable(False)  # what a reward function starts must not hold our socket open
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)
    with contextlib.suppress(EOFError, OSError):
        _serve(Channel(end))
    os._exit(0)  # threads that a reward function left behind would be waited for


def _serve(channel: Channel) -> None:
    own, loop = os.getpid(), asyncio.new_event_loop()
    token, specs = channel.question()

    def answer(value: Any) -> None:
        if os.getpid() != own:  # a reward function forked, and its child came back
            os._exit(0)
        channel.send(token, json.dumps(value).encode())

    def importing(begins: bool) -> None:
        with contextlib.suppress(OSError):
            answer(begins)

    try:
        functions = [RewardFunction(spec, loop) for spec in pickle.loads(specs)]
    except ConfigError as error:
        return answer(_clean(str(error)))
    answer("")
    ImportClock(importing).start()
    while True:
        token, item = channel.question()
        reply = judge(functions, item)
        signal.setitimer(signal.ITIMER_REAL, 0)  # an alarm of this item must not ring in the next
        if len(json.dumps(reply)) > LONGEST_ANSWER:
            reply = "no reward", None, {}, f"reports {len(reply[2])} parts: too much to send"
        answer(reply)


def judge(functions: Sequence[RewardFunction], pickled: bytes) -> Reply:
    """The weighted sum of all functions on one pickled item; failed as soon as one of them fails."""
    key = "item"
    weighted: list[float] = []
    parts: dict[str, float] = {}
    try:
        item = Item(*pickle.loads(pickled))
        for function in functions:
            key = function.spec.key
            returned = function(item)
            value = returned.pop("reward")
            weighted.append(function.spec.weight * value)
            named = {f"{key}.{name}" if len(functions) > 1 else name: number for name, number in returned.items()}
            for name, number in (*named.items(), (key, value)):
                if name in parts:
                    raise BadResult(f"reports {name!r}, which is the name of another part; rename it")
                parts[name] = number
        key = "the weighted sum"
        total = as_number(math.fsum(weighted), "is")
    except BadResult as error:
        return "no reward", None, {}, _clean(f"{key} {error}")
    except BaseException as error:  # SystemExit too: a judgement that fails must not end the worker
        return "failed", None, {}, _clean(f"{key}: {describe(error)}")
    return "ok", total, parts, ""


def _clean(text: str) -> str:
    """A text that any log and file can hold, in one line that is not too long."""
    text = " ".join(text.encode("utf-8", "backslashreplace").decode().split())
    return text if len(text) <= LONGEST_DETAIL else text[: LONGEST_DETAIL - 3] + "..."

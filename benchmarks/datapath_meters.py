"""Meters of the data path: CPU of a process tree, anonymous memory, bytes that processes hand over, Ray's store."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import ray
from ray._private.internal_api import node_stats
from ray._private.serialization import SerializationContext

POLL_SECONDS = 0.01
TICK = os.sysconf("SC_CLK_TCK")


def tree_cpu(root: int, without: int) -> float:
    """CPU seconds so far of `root` and all below it, ended children included, `without` one process."""
    parents, seconds = {}, {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents[int(entry)] = int(fields[1])
            seconds[int(entry)] = sum(map(int, fields[11:15])) / TICK
    inside = {root}
    while grown := {pid for pid, parent in parents.items() if parent in inside} - inside - {without}:
        inside |= grown
    return sum(seconds[pid] for pid in inside)


def settle_memory(_: Any = None) -> None:
    """Give back what is free, so that what is left is what the process keeps at rest."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def pid_of(_: Any) -> int:
    return os.getpid()


class MemoryMeter:
    """Largest anonymous memory of some processes, sampled every 10 ms by a process beside them."""

    def __init__(self, pids: list[int]) -> None:
        command = [sys.executable, "-m", "benchmarks.rss_meter", *map(str, pids)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.pid = self._process.pid
        self.peaks()

    def peaks(self) -> list[int]:
        """Bytes of each process since the last call."""
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


_handed = 0


def count_messages(_: Any = None) -> None:
    """From now on count what this process serialises: what it puts into the store, its calls' arguments and answers."""
    serialize = SerializationContext.serialize

    def counted(self: Any, value: Any) -> Any:
        global _handed
        done = serialize(self, value)
        _handed += done.total_bytes
        return done

    SerializationContext.serialize = counted


def messages(_: Any = None) -> int:
    """Bytes counted in this process."""
    return _handed


class StoreMeter:
    """Bytes in this node's object store, polled while it is entered: the largest is `peak`, all put there `created`."""

    def __enter__(self) -> StoreMeter:
        (node,) = ray.nodes()
        self._node = (node["NodeManagerAddress"], node["NodeManagerPort"])
        self.peak, self._going = 0, True
        self._before = self._look().cumulative_created_bytes
        self._thread = threading.Thread(target=self._poll)
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._going = False
        self._thread.join()
        self.created = self._look().cumulative_created_bytes - self._before

    def _poll(self) -> None:
        while self._going:
            self.peak = max(self.peak, self._look().object_store_bytes_used)
            time.sleep(POLL_SECONDS)

    def _look(self) -> Any:
        return node_stats(*self._node, include_memory_info=False).store_stats

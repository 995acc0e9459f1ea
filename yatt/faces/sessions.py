"""`sessions.jsonl`: when each process of a run began, with which version, on what, and how long it took to start."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from yatt import __version__


def session(*, first: int, seconds: float, devices: Sequence[str]) -> dict[str, Any]:
    """A process that goes on with step `first` after `seconds` of starting, now."""
    return {
        "began": time.time() - seconds,
        "start_seconds": seconds,
        "first_step": first,
        "yatt": __version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": psutil.virtual_memory().total,
        "devices": list(devices),
    }


def memory_bytes() -> int | None:
    """Memory of this process and all below it, what several share counted once; None where the system does not say.
    It takes some milliseconds for each process."""
    own = psutil.Process()
    total, seen = 0, 0
    for process in (own, *own.children(recursive=True)):
        try:
            rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text(encoding="ascii")
        except OSError:  # it has ended, or is another user's
            continue
        total += next((1024 * int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:")), 0)
        seen += 1
    return total if seen else None

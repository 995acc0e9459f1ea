"""The largest anonymous memory of processes, sampled every 10 ms by this process beside them, which imports next to
nothing: PIDs as arguments; each line read is answered with a JSON list of bytes, the largest since the line before."""

from __future__ import annotations

import json
import select
import sys

SAMPLE_SECONDS = 0.01


def anonymous(pid: int) -> int:
    """Bytes of RssAnon: memory of its own, neither files nor shared memory."""
    with open(f"/proc/{pid}/status", encoding="ascii") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon:"))


def watch_memory(pids: list[int]) -> None:
    peaks = [0] * len(pids)
    while True:
        peaks = [max(peak, anonymous(pid)) for peak, pid in zip(peaks, pids, strict=True)]
        if select.select([sys.stdin], [], [], SAMPLE_SECONDS)[0]:
            if not sys.stdin.readline():
                return
            peaks = [max(peak, anonymous(pid)) for peak, pid in zip(peaks, pids, strict=True)]
            print(json.dumps(peaks), flush=True)
            peaks = [0] * len(pids)


if __name__ == "__main__":
    watch_memory(list(map(int, sys.argv[1:])))

"""What benchmarks share: a process of known settings, the machine it runs on, and one side timed against another."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from typing import Any

from yatt.config.facts import local_gpus
from yatt.generation.table import ENGINES

DEVICE = "cuda" if local_gpus() and "+cpu" not in importlib.metadata.version("torch") else "cpu"
# One thread per process on both sides, and what the engines must find before Python starts.
QUIET = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "PYTHONWARNINGS": "ignore"}
ENGINE = {name: value for kind in ENGINES.values() for name, value in kind.environment(DEVICE).items()}
ENVIRONMENT = ENGINE | QUIET | {"OMP_NUM_THREADS": "1"}


def machine() -> dict[str, Any]:
    """Where the numbers come from. `load` is the machine's over the last minute: more than 1 per core disturbs."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": named[0] if named else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "device": DEVICE,
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ("torch", "transformers", "megatron-core")},
    }


def alternate(
    rounds: int, clock: Callable[[], float] = time.perf_counter, **sides: Callable[[], object]
) -> dict[str, list[float]]:
    """Seconds each side takes by `clock`, by round. The sides take turns; a first round is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, side in sides.items():
            start = clock()
            side()
            if number:
                seconds[name].append(clock() - start)
    return seconds


def ratio(numerator: list[float], denominator: list[float]) -> dict[str, Any]:
    """The median of the rounds' ratios, and the middle half of them."""
    every = [n / d for n, d in zip(numerator, denominator, strict=True)]
    low, middle, high = statistics.quantiles(every, n=4, method="inclusive") if len(every) > 1 else every * 3
    return {"ratio": significant(middle), "ratio_middle_half": [significant(low), significant(high)]}


def significant(value: float) -> float:
    """Three digits."""
    return float(f"{value:.3g}")


def median(seconds: list[float], times: float = 1.0) -> float:
    """The median in another unit, three digits of it."""
    return significant(statistics.median(seconds) * times)


def main(
    name: str, measure: Callable[..., dict[str, Any]], flags: Mapping[str, type] | None = None, **positional: str
) -> None:
    """Run one benchmark as a program and print one JSON object. `positional` arguments have these defaults; `flags` of
    these types are None where they are not given; those of type bool are switches."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}")
    for argument, default in positional.items():
        parser.add_argument(argument, nargs="?", default=default, help=f"default: {default}")
    for flag, kind in (flags or {}).items():
        parser.add_argument(f"--{flag}", **{"action": "store_true"} if kind is bool else {"type": kind})
    parser.add_argument("--quick", action="store_true", help="smallest settings: does it run? Its numbers mean little")
    parser.add_argument("--json", action="store_true", help="one line")
    options = vars(parser.parse_args())
    if any(os.environ.get(key) != value for key, value in ENVIRONMENT.items()):
        os.execve(sys.executable, sys.orig_argv, os.environ | ENVIRONMENT)
    one_line = options.pop("json")
    about = {"benchmark": name, "date": date.today().isoformat(), "quick": options["quick"], "machine": machine()}
    result = about | measure(**options)
    print(json.dumps(result) if one_line else json.dumps(result, indent=2), flush=True)

"""What a GPU shows, part by part, each in a process of its own: python -m benchmarks.gpu [--part NAME ...]

It needs a checkout, Python 3.11 or 3.12, torch for CUDA, transformers, and the wheels that --wheels lists; no network,
no Ray, no engine. A table is printed row by row as it becomes known.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.gpu.child import Child
from benchmarks.gpu.tables import Tables
from benchmarks.gpu.wheels import command, missing

PARTS = {
    "right": "the trainer against transformers on the same device",
    "fast": "an update's speed against transformers, and kernels of attention against each other",
    "lean": "memory of log-probabilities, of an update against its estimate, and putting a model away",
    "weights": "weights into a flat buffer, and into another process in place",
    "forecast": "what a plan counts with against what was measured; writes a calibration",
}
LIMITS = {"right": 110.0, "fast": 180.0, "lean": 70.0, "weights": 70.0, "forecast": 50.0}
"""Seconds of each part: eight minutes in all."""
REHEARSAL = 4
"""How many times as long a rehearsal may take, on a machine with other work to do."""


def main() -> int:
    """0 when every part ran to its end and every check held."""
    options = _options()
    if options.wheels:
        print(command(options.python))
        return 0
    if absent := missing():
        print(f"missing here: {', '.join(absent)}; --wheels prints a command that fetches them", file=sys.stderr)
        return 2
    folder = Path(options.out)
    folder.mkdir(parents=True, exist_ok=True)
    bad = []
    for name in options.part or PARTS:
        result = _run(name, options, folder)
        (folder / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        if options.json:
            print(json.dumps(result), flush=True)
        bad += [f"{name}: {failure}" for failure in result["failed"]]
        bad += [f"{name}: {_said(row)}" for row in result["results"] if row.get("ok") is False]
    for line in bad:
        print(line, file=sys.stderr)
    return bool(bad)


def _run(name: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One part, whatever becomes of it: what it told before it ended, or was ended, and how it failed."""
    tables = Tables(None if options.json else sys.stdout)
    limit = options.limit or LIMITS[name] * (REHEARSAL if options.device == "cpu" else 1)
    tables.say(f"==> {name}: {PARTS[name]} (at most {limit:g} s)")
    start = time.monotonic()
    words = [name, "--device", options.device, "--out", str(folder), *["--quick"] * options.quick]
    child = Child(words, _environment(options.device), folder / f"{name}.log")
    about: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    failed: list[str] = []
    for message in _told(child, start + limit):
        if "about" in message:
            about = message["about"]
            tables.say(", ".join(f"{key} {value}" for key, value in about.items()))
        elif "failed" in message:
            failed.append(message["failed"])
            tables.say(f"failed: {message['failed']}")
        else:
            rows.append(message["row"])
            tables.row(message["row"])
    if (how := child.end()) is not None:
        failed.append(how)
        tables.say(f"failed: {how}")
    seconds = round(time.monotonic() - start, 1)
    tables.say(f"    {name} took {seconds:g} s\n")
    head = {"benchmark": "gpu", "part": name, "date": date.today().isoformat(), "quick": options.quick}
    return {**head, "device": about, "seconds": seconds, "results": rows, "failed": failed}


def _told(child: Child, deadline: float) -> Iterator[dict[str, Any]]:
    while (message := child.read(deadline)) is not None:
        yield message


def _environment(device: str) -> dict[str, str]:
    """One GPU, and none for a rehearsal: what this package imports looks for one by itself."""
    seen = "" if device == "cpu" else os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    quiet = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "PYTHONWARNINGS": "ignore", "TOKENIZERS_PARALLELISM": "false"}
    return os.environ | quiet | {"CUDA_VISIBLE_DEVICES": seen, "HF_HUB_OFFLINE": "1"}


def _said(row: dict[str, Any]) -> str:
    return "not as it must be: " + ", ".join(f"{key}={value}" for key, value in row.items() if key != "ok")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--part", action="append", choices=PARTS, help="only this one; may be given again")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a rehearsal at toy size")
    parser.add_argument("--quick", action="store_true", help="fewer shapes and rounds")
    parser.add_argument("--json", action="store_true", help="print JSON only: an object a line, one for each part")
    parser.add_argument("--limit", type=float, help="seconds of each part, in place of its own")
    parser.add_argument("--out", default="runs/gpu", help="folder of results, logs and calibration.json")
    parser.add_argument("--wheels", action="store_true", help="print how to fetch what a machine offline lacks")
    parser.add_argument("--python", default="3.12", help="of that machine (with --wheels)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())

"""One part, in its own process: python -m benchmarks.gpu.part NAME, started by benchmarks.gpu.child."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import math
import os
import platform
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.device import Device, open_device

Section = tuple[str, Callable[[], None]]
"""What can fail by itself: its name, and its work."""


@dataclass(frozen=True)
class Bench:
    """What a part works with. `toy`: sizes for a rehearsal on a CPU."""

    device: Device
    quick: bool
    out: Path
    told: int

    @property
    def toy(self) -> bool:
        return self.device.kind == "cpu"

    def tell(self, **message: Any) -> None:
        """Hand something to the process that waits for it, at once."""
        os.write(self.told, (json.dumps(message) + "\n").encode())

    def row(self, table: str, **values: Any) -> None:
        """A row that is known. `ok`, where it is there, says whether a check held."""
        self.tell(row={"table": table, **{name: _rounded(value) for name, value in values.items()}})


def run(bench: Bench, sections: Iterator[Section]) -> None:
    """All of them: one that fails is told, and the next one begins with the memory it leaves."""
    for name, work in sections:
        try:
            work()
        except Exception as error:
            traceback.print_exc()
            bench.tell(failed=f"{name}: {traceback.format_exception_only(error)[-1].strip().splitlines()[0]}")
        bench.device.free()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("--device", required=True)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--told", type=int, required=True)
    options = parser.parse_args()
    bench = Bench(open_device(options.device), options.quick, options.out, options.told)
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "megatron-core")}
    bench.tell(about={**bench.device.about(), "python": platform.python_version(), **versions})
    part = importlib.import_module(f"benchmarks.gpu.{options.name}")
    run(bench, part.sections(bench))


def _rounded(value: Any) -> Any:
    """Four digits of a float; one that is none in words, which JSON has no number for."""
    if not isinstance(value, float):
        return value
    return float(f"{value:.4g}") if math.isfinite(value) else str(value)


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    # Communicators of NCCL are left as they are: their end may wait for others.
    os._exit(0)

"""Every benchmark, or those named, one after another, each in a process of its own: python -m benchmarks [NAME ...]"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time

from benchmarks.common import ENVIRONMENT

BENCHMARKS = {
    "balance": "dealing samples to ranks and micro-batches",
    "rewards": "the reward pool against a plain call",
    "trainer": "a Megatron rank against Hugging Face and AdamW",
    "generator": "the vLLM generator against Hugging Face generate",
    "overhead": "the controllers' own share of a finished run",
}


def main() -> int:
    """0 when every benchmark ran."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of {', '.join(BENCHMARKS)}; all by default")
    parser.add_argument("--quick", action="store_true", help="smallest settings: does it run? Its numbers mean little")
    parser.add_argument("--json", action="store_true", help="print JSON only: an object a line")
    options = parser.parse_args()
    if unknown := set(options.names) - BENCHMARKS.keys():
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}")
    flags = [flag for flag, given in (("--quick", options.quick), ("--json", options.json)) if given]
    failed = []
    for name in options.names or BENCHMARKS:
        if not options.json:
            print(f"==> {name}: {BENCHMARKS[name]}", flush=True)
        start = time.monotonic()
        command = [sys.executable, "-m", f"benchmarks.{name}", *flags]
        if subprocess.run(command, env=os.environ | ENVIRONMENT, check=False).returncode:
            failed.append(name)
        if not options.json:
            print(f"    {name} took {time.monotonic() - start:.0f} s\n", flush=True)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())

"""One RLHF step's data movement on Ray, its engines and ranks taking no time: parallel controllers and their controls.

    python -m benchmarks.datapath                  every case, the sides in turn
    python -m benchmarks.datapath --prompts 256 --image-bytes 1048576 [--central lean|...] [--json]
    python -m benchmarks.datapath --image real     JPEG files that are decoded, against one process that ships patches

The real cluster, controllers, loader, router and exchange run; engine, rank, reward and tokenizer are those of
`datapath_parts`. The controls, one process in place of the controllers, are in `datapath_central`; `calls`, in
`datapath_calls`, is as many controllers that call whom they must and send nothing. Per step:

- `wall_s` (median), `cpu_tree_s`: CPU seconds of the driver and all processes below it, Ray's included.
- `payload_bytes`: what has to reach somebody: prompts and images once, a token and a logprob per response token.
- `moved_bytes`: all that processes serialised for others: objects put into the store, arguments, answers.
- `driver_anon_peak`, `controller_anon_peak` (list): largest anonymous memory over the measured steps, sampled every
  10 ms, less what the process held at rest before them; `..._absolute` is that memory itself. A central controller is
  the driver.
- `object_store_peak`: most bytes in the store at once; `object_store_created`: bytes put there.

- `decoded`: images of which engines and ranks made patches in a step, those that controllers checked, and those that a
  central controller decoded. `bytes_less` and `cpu_less` are those of `floats` over the row's.

`object_store_...`, `decoded` and `moved_bytes` are of a step of its own, after the timed ones. Where all cases are
run, rows of parallel controllers also say how they compare: `naive_cpu`, `arrays_cpu`, `lean_cpu`, `packed_cpu` are
CPU seconds over the row's, `growth` the largest controller's growth over lean's, `image_copies` the bytes that images
add over their size. Parallel, lean, packed and calls take ROUNDS turns; shown is the turn of the median `cpu_tree_s`,
`cpu_tree_s_turns` has all.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import main, significant
from benchmarks.datapath_calls import Calls
from benchmarks.datapath_central import Arrays, Lean, Naive, Packed
from benchmarks.datapath_meters import (
    MemoryMeter,
    StoreMeter,
    count_messages,
    messages,
    pid_of,
    settle_memory,
    tree_cpu,
)
from benchmarks.datapath_parts import BACKENDS, PROMPT, Size, lay_out, settings
from benchmarks.datapath_real import REAL, Floats, count_checks, expected_tokens, lay_out_images, made
from yatt.cluster.crew import ClusterCrew
from yatt.cluster.session import ray_session
from yatt.config.image_tokens import image_tokens
from yatt.config.schema import Config
from yatt.errors import ConfigError

WARM_UP, STEPS, COUNTED, ROUNDS = 2, 5, 1, 3
KB, MB = 1 << 10, 1 << 20
TEXT = [Size(prompts=count) for count in (64, 128, 256)]
IMAGES = [Size(prompts=count, image_bytes=size) for count in (64, 128, 256) for size in (256 * KB, MB)]
MORE_CONTROLLERS = [Size(prompts=256, controllers=c, image_bytes=s) for s in (0, MB) for c in (1, 2, 8)]


class Parallel(ClusterCrew):
    """The real crew; meters are read in its actors' processes."""

    def __init__(self, config: Config) -> None:
        backends = REAL if image_tokens(config.model.path) else BACKENDS
        super().__init__(config, Path(config.run.dir), lambda name, state: None, backends)

    async def start(self) -> None:  # type: ignore[override]
        await super().start(model=self._config.model.path, train=True, generate=True)

    async def everywhere(self, function: Any) -> list[Any]:
        return [await actor.__ray_call__.remote(function) for actor in self._actors]

    async def controllers(self, function: Any) -> list[Any]:
        return await self._on_controllers("__ray_call__", function)


SIDES: dict[str, Any] = {
    "none": Parallel,
    "naive": Naive,
    "arrays": Arrays,
    "lean": Lean,
    "packed": Packed,
    "calls": Calls,
    "floats": Floats,
}


async def measure_side(config: Config, side: Any, steps: int) -> dict[str, Any]:
    try:
        await side.start()
        await side.everywhere(count_checks)
        for step in range(1, WARM_UP + 1):
            await side.step(step)
        controllers = await side.controllers(pid_of)
        await side.controllers(settle_memory)
        settle_memory()
        memory = MemoryMeter([os.getpid(), *controllers])
        rest, seconds, cpu = memory.peaks(), [], tree_cpu(os.getpid(), without=memory.pid)
        for step in range(WARM_UP + 1, WARM_UP + steps + 1):
            start = time.perf_counter()
            await side.step(step)
            seconds.append(time.perf_counter() - start)
        cpu = tree_cpu(os.getpid(), without=memory.pid) - cpu
        peaks = memory.peaks()
        memory.close()
        count_messages()
        await side.everywhere(count_messages)
        decoded = sum(await side.everywhere(made), made().copy())
        before = messages() + sum(await side.everywhere(messages))
        with StoreMeter() as store:
            for step in range(WARM_UP + steps + 1, WARM_UP + steps + COUNTED + 1):
                await side.step(step)
        moved = messages() + sum(await side.everywhere(messages)) - before
        decoded = sum(await side.everywhere(made), made().copy()) - decoded
    finally:
        await side.close()
    growth = [peak - low for peak, low in zip(peaks, rest, strict=True)]
    return {
        "wall_s": significant(statistics.median(seconds)),
        "cpu_tree_s": significant(cpu / steps),
        "moved_bytes": moved // COUNTED,
        "driver_anon_peak": growth[0],
        "controller_anon_peak": growth[1:],
        "object_store_peak": store.peak,
        "object_store_created": store.created // COUNTED,
        "driver_anon_absolute": peaks[0],
        "controller_anon_absolute": peaks[1:],
        "driver_payload_bytes": getattr(side, "payload", None),
        "decoded": {who: count // COUNTED for who, count in decoded.items()},
    }


def one(size: Size, central: str, steps: int) -> dict[str, Any]:
    """One side of one case, on a Ray of its own."""
    if central not in SIDES:
        raise ConfigError(f"--central {central}: use one of {', '.join(SIDES)}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "log").mkdir()
        lay_out(folder, size)
        image_bytes = lay_out_images(folder, size) if size.image == "real" else size.prompts * size.image_bytes
        config = settings(folder, size)
        with ray_session(config.cluster):
            measured = asyncio.run(measure_side(config, SIDES[central](config), steps))
    prompt = expected_tokens() if size.image == "real" else PROMPT
    text = size.prompts * (4 * prompt + size.responses * size.tokens * 8)
    payload = {"payload_bytes": text + image_bytes}
    return size.as_dict() | {"central": central, "steps": steps} | payload | measured


def apart(size: Size, central: str, steps: int) -> dict[str, Any]:
    """The same in a process of its own."""
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in size.as_dict().items()]
    command = [sys.executable, "-m", "benchmarks.datapath", *flags, f"--central={central}", f"--steps={steps}"]
    done = subprocess.run([*command, "--json"], stdout=subprocess.PIPE, text=True, check=True)
    row = json.loads(done.stdout.splitlines()[-1])
    return {key: value for key, value in row.items() if key not in ("benchmark", "date", "quick", "machine")}


def in_turns(size: Size, sides: Sequence[str], steps: int, rounds: int) -> list[dict[str, Any]]:
    """Of each side its turn of the median CPU seconds; the sides take turns."""
    turns = [[apart(size, central, steps) for central in sides] for _ in range(rounds)]
    chosen = []
    for rows in zip(*turns, strict=True):
        row = sorted(rows, key=lambda r: r["cpu_tree_s"])[rounds // 2]
        chosen.append(row | {"cpu_tree_s_turns": [r["cpu_tree_s"] for r in rows]})
    return chosen


def every(sizes: list[Size], alone: list[Size], steps: int, rounds: int) -> list[dict[str, Any]]:
    """All sides of `sizes` in turn, and parallel controllers only of `alone`."""
    rows = []
    for number, size in enumerate(sizes, 1):
        print(f"case {number} of {len(sizes)}: {size}", file=sys.stderr, flush=True)
        sides = ("none", "lean", *(("packed",) if size.image_bytes else ()), "calls")
        ours, *others = in_turns(size, sides, steps, rounds)
        naive = apart(size, "naive", steps)
        rows += [ours, naive, *others]
        if size.image_bytes >= MB:
            rows.append(apart(size, "arrays", steps))
        for side in rows[rows.index(ours) + 1 :]:
            ours[f"{side['central']}_cpu"] = significant(side["cpu_tree_s"] / ours["cpu_tree_s"])
        ours["growth"] = significant(max(ours["controller_anon_peak"]) / others[0]["controller_anon_peak"][0])
    rows += [apart(size, "none", steps) for size in alone]
    for row in rows:
        same = [r for r in rows if r["central"] == row["central"] and r["prompts"] == row["prompts"]]
        text = [r["moved_bytes"] for r in same if not r["image_bytes"] and r["controllers"] == row["controllers"]]
        if row["image_bytes"] and text:
            row["image_copies"] = significant((row["moved_bytes"] - text[0]) / row["prompts"] / row["image_bytes"])
    return rows


def decoding(prompts: int, steps: int, rounds: int) -> dict[str, Any]:
    """Parallel controllers, and one process that ships patches, with images that are decoded."""
    ours, floats = in_turns(Size(prompts=prompts, image="real"), ("none", "floats"), steps, rounds)
    ours["bytes_less"] = significant(floats["moved_bytes"] / ours["moved_bytes"])
    ours["cpu_less"] = significant(floats["cpu_tree_s"] / ours["cpu_tree_s"])
    return {"results": [ours, floats]}


def measure(quick: bool, prompts: int | None, central: str | None, steps: int | None, **given: Any) -> dict[str, Any]:
    """One side of one case where prompts are named, every case otherwise."""
    if given.get("image") == "real" and not central:
        return decoding(prompts or (2 if quick else 128), steps or (1 if quick else 3), 1 if quick else ROUNDS)
    if prompts:
        size = Size(prompts=prompts, **{name: value for name, value in given.items() if value is not None})
        return one(size, central or "none", steps or STEPS)
    if quick:
        return {"results": every([Size(prompts=4, tokens=8, image_bytes=4 * KB, controllers=2)], [], steps or 1, 1)}
    return {"results": every([*TEXT, *IMAGES], MORE_CONTROLLERS, steps or STEPS, ROUNDS)}


if __name__ == "__main__":
    numbers = ("prompts", "responses", "tokens", "image-bytes", "controllers", "workers", "steps")
    main("datapath", measure, flags={"central": str, "image": str} | dict.fromkeys(numbers, int))

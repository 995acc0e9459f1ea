"""What placement could gain at most: schedules of splits, found by search for steps that are already known.

    python -m benchmarks.placement_hindsight [--models 7B+7B] [--devices 64] [--tries N] [--json]

The stationary cases of `benchmarks.placement` on 8 and 64 devices with a median of 1,000 and a 99th percentile of TAIL
times it, with the same costs and lengths. A schedule says how many blocks the policy has from which second of a rollout
on; the judge has the others. The search tries steady splits and ones that change once, then changes the best at random,
TRIES in all; each is simulated with the real controllers, routers and moves. `every_step` is the best single schedule
for all steps, `each_step` the mean of the best found for each one: who places a step as well must know its lengths
beforehand. More tries may find better ones: the true best is at most this. `colocated`, `partial` (the best fixed
split) and `dynamic` are as in `benchmarks.placement`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from random import Random
from statistics import fmean
from typing import Any
from unittest.mock import patch

from benchmarks.common import main, significant
from benchmarks.placement import MEDIANS, MODELS, TAIL, Case, cases, search, seconds
from yatt.placement import policy
from yatt.placement.forecast import FAIR, Loads, Missed
from yatt.placement.plan import POLICY, Split
from yatt.placement.policy import Choice, Mode
from yatt.simulation.loop import VirtualClock

TRIES, BROOD, PARENTS, MOST_CHANGES = 100, 30, 8, 5
DEVICES = (8, 64)

Schedule = tuple[tuple[float, int], ...]
"""From which second on the policy has how many blocks; the first from 0."""


def scheduled(schedule: Schedule) -> Mode:
    """A placement mode that keeps to a schedule. A judge without blocks gets all of them once the policy is done."""
    begun = 0.0

    def choice(split: Split, count: int) -> Choice:
        blocks = sum(split.values())
        return Choice(split={role: count if role == POLICY else blocks - count for role in split}, seconds=0.0, why="")

    def start(
        blocks: int, loads: Loads | None, before: Split | None, switching: float, missed: Missed = FAIR
    ) -> Choice:
        nonlocal begun
        begun = VirtualClock().now()
        return choice({POLICY: blocks, "judge": 0}, schedule[0][1])

    def look(split: Split, loads: Loads, switching: float) -> Choice | None:
        now = VirtualClock().now() - begun
        wanted = [count for second, count in schedule if second <= now][-1]
        if wanted == sum(split.values()) and loads[POLICY].requests + loads[POLICY].coming < 1:
            wanted = 0
        return choice(split, wanted) if wanted != split[POLICY] else None

    return Mode(start=start, look=look)


def run(case: Case, schedule: Schedule) -> list[float]:
    """Seconds of each step but the first."""
    with patch.dict(policy.MODES, {"dynamic": lambda given, parameters: scheduled(schedule)}):  # type: ignore[arg-type]
        return seconds(case.run("dynamic"))


def first_ones(blocks: int, lasts: float) -> list[Schedule]:
    """Steady splits, and all to the policy until some moment of a rollout that `lasts` so long."""
    counts = sorted({max(1, blocks * eighth // 8) for eighth in range(1, 8)})
    late = [((0.0, blocks), (lasts * part, count)) for part in (0.25, 0.5, 0.75) for count in counts[::2]]
    return [((0.0, count),) for count in counts] + late


def changed(schedule: Schedule, blocks: int, lasts: float, random: Random) -> Schedule:
    """The same with another moment, another count, a change more or a change less."""
    points, at = list(schedule), random.randrange(len(schedule))
    second, count = points[at]
    what = random.random()
    if what < 0.4 and at:
        points[at] = (abs(second + random.gauss(0, 0.08 * lasts)), count)
    elif what < 0.8:
        step = max(1, round(abs(random.gauss(0, blocks / 8))))
        points[at] = (second, min(blocks, max(1, count + random.choice((-step, step)))))
    elif what < 0.9 and len(points) <= MOST_CHANGES:
        points.append((random.uniform(0.1, 1) * lasts, random.randint(1, blocks - 1)))
    elif at:
        points.pop(at)
    return tuple(sorted(points))


def best_schedules(
    blocks: int, lasts: float, tries: int, measure: Callable[[list[Schedule]], list[list[float]]]
) -> tuple[tuple[float, Schedule], list[tuple[float, Schedule]]]:
    """Mean seconds and schedule of the best for all steps, and of the best for each; `measure` gives every schedule's
    seconds by step. Seeded: the same arguments give the same schedules to try."""
    random, found = Random(0), dict[Schedule, list[float]]()
    brood = first_ones(blocks, lasts)
    while brood:
        brood = brood[: tries - len(found)]
        found |= zip(brood, measure(brood), strict=True)
        steps = range(len(next(iter(found.values()))))
        whole = sorted(found, key=lambda schedule: fmean(found[schedule]))
        each = [min(found, key=lambda schedule, step=step: found[schedule][step]) for step in steps]
        parents, brood, left = [*whole[:PARENTS], *each * 2], [], min(BROOD, tries - len(found))
        while len(brood) < left:
            schedule = changed(random.choice(parents), blocks, lasts, random)
            if schedule not in found and schedule not in brood:
                brood.append(schedule)
    best = whole[0]
    return (fmean(found[best]), best), [(found[s][step], s) for step, s in enumerate(each)]


def result(case: Case, tries: int, pool: ProcessPoolExecutor) -> dict[str, Any]:
    """One row of the table."""
    blocks = len(case.layout.blocks)
    colocated, dynamic = (fmean(seconds(case.run(mode))) for mode in ("colocated", "dynamic"))
    partial = min(map(fmean, search(case).values()))

    def simulated(schedules: list[Schedule]) -> list[list[float]]:
        found = list(pool.map(run, [case] * len(schedules), schedules))
        print(f"{case.models} on {case.devices}: {len(schedules)} schedules more", file=sys.stderr, flush=True)
        return found

    (whole, schedule), each = best_schedules(blocks, colocated, tries, simulated)
    known = fmean(step for step, _ in each)
    return {
        "models": case.models,
        "devices": case.devices,
        "lengths": f"p99 {case.tail:g}x",
        **{"colocated": significant(colocated), "partial": significant(partial), "dynamic": significant(dynamic)},
        "every_step": significant(whole),
        "schedule": [f"{count} of {blocks} from {second:.3g} s" for second, count in schedule],
        "each_step": significant(known),
        "dynamic_to_every_step": significant(dynamic / whole),
        "dynamic_to_each_step": significant(dynamic / known),
        "each_step_to_colocated": significant(known / colocated),
    }


def measure(quick: bool, models: str | None, devices: int | None, tries: int | None) -> dict[str, Any]:
    chosen = [
        case
        for case in cases((models,) if models else MODELS, (devices,) if devices else DEVICES, MEDIANS[:1])
        if not case.drifting and case.tail == TAIL
    ]
    if quick:
        chosen = [Case(models="7B+7B", devices=8, median=200, drifting=False, tail=4.0, steps=2, prompts=1)]
    rows = []
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for case in chosen:
            rows.append(result(case, 12 if quick else tries or TRIES, pool))
            print(f"case {len(rows)} of {len(chosen)}: {rows[-1]}", file=sys.stderr, flush=True)
    return {"results": rows}


if __name__ == "__main__":
    main("placement_hindsight", measure, flags={"models": str, "devices": int, "tries": int})

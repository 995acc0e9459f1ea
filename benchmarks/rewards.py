"""What a reward function costs in a worker process, with its time limit, beside a plain call of the same function."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import numpy as np

from benchmarks.common import alternate, main, median, ratio, significant
from examples.quickstart.reward import addition
from yatt.config.schema import RewardConfig
from yatt.reward.pool import FunctionScorer
from yatt.types import Prompt, Trajectory


def trajectories(count: int) -> list[Trajectory]:
    """Worked answers like the quickstart's, all right. A reward sees only their text."""
    column, made = np.zeros(43, dtype=np.float32), []
    for a in range(count):
        prompt = Prompt(uid=a, row=a, text=f"{a}+100=", tokens=column[:8].astype(np.int32), answer=str(a + 100))
        made.append(
            Trajectory(
                prompt=prompt,
                sibling=0,
                tokens=column.astype(np.int32),
                loss_mask=column < 0,
                rollout_logprobs=column,
                spans=(),
                finish="stop",
                text=f"<think>3+7+0=10,8+6+1=15,5+7+1=13</think><answer>{a + 100}</answer>",
            )
        )
    return made


def in_process(batch: list[Trajectory]) -> list[dict[str, float]]:
    return [addition(t.prompt.text, t.text, t.prompt.answer, t.prompt.metadata) for t in batch]


def measure(quick: bool) -> dict[str, Any]:
    sizes, rounds = ((8,), 3) if quick else ((8, 64, 512), 50)
    results = []
    with asyncio.Runner() as loop:
        scorer = FunctionScorer(RewardConfig(function="examples/quickstart/reward.py:addition"))
        start = time.perf_counter()
        loop.run(scorer.start())
        started = time.perf_counter() - start
        for size in sizes:
            batch = trajectories(size)
            if [s.value for s in loop.run(scorer.score(batch))] != [r["reward"] for r in in_process(batch)]:
                raise RuntimeError("the pool and the plain call disagree")
            seconds = alternate(
                rounds, pool=lambda b=batch: loop.run(scorer.score(b)), plain=lambda b=batch: in_process(b)
            )
            added = [p - q for p, q in zip(seconds["pool"], seconds["plain"], strict=True)]
            results.append(
                {
                    "items": size,
                    "pool_us_per_item": median(seconds["pool"], 1e6 / size),
                    "in_process_us_per_item": median(seconds["plain"], 1e6 / size),
                    "added_us_per_item": median(added, 1e6 / size),
                    **ratio(seconds["pool"], seconds["plain"]),
                }
            )
        loop.run(scorer.close())
    about = {"ratio_of": "time per item, pool of one worker / plain call", "start_seconds": significant(started)}
    return about | {"rounds": rounds, "results": results}


if __name__ == "__main__":
    main("rewards", measure)

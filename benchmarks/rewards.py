"""What a reward function costs in a worker process, with its time limit, beside a plain call of the same function."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import Any

import numpy as np

from benchmarks.common import alternate, main, median, ratio, significant
from examples.quickstart.reward import addition
from yatt.config.schema import RewardConfig
from yatt.reward.pool import FunctionScorer
from yatt.types import Completion, Prompt, SampleKey, Trajectory


def trajectory(a: int) -> Trajectory:
    """A worked answer like the quickstart's, and right. A reward sees only text."""
    tokens, none = np.zeros(8, dtype=np.int32), np.zeros(8, dtype=np.float32)
    prompt = Prompt(uid=a, text=f"{a}+100=", tokens=tokens, answer=str(a + 100))
    drawn = Completion(key=SampleKey(a, 0), tokens=tokens, rollout_logprobs=none, spans=(), finish="stop")
    return Trajectory.single_turn(prompt, drawn, f"<think>3+7+0=10,8+6+1=15,5+7+1=13</think><answer>{a + 100}</answer>")


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
            batch = [trajectory(a) for a in range(size)]
            if [s.value for s in loop.run(scorer.score(batch))] != [r["reward"] for r in in_process(batch)]:
                raise RuntimeError("the pool and the plain call disagree")
            pool, plain = (lambda b=batch: loop.run(scorer.score(b))), partial(in_process, batch)
            seconds = alternate(rounds, pool=pool, plain=plain)
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

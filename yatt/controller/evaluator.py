"""Accuracy on held-out prompts, each controller on its share of them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from math import comb

from yatt.config.schema import EvaluateConfig, RolloutConfig
from yatt.controller.rollouter import Responder
from yatt.controller.stage import Stage
from yatt.protocols import Peers
from yatt.types import EvaluationReport, Prompt, SamplingParams, Trajectory

OnEvaluated = Callable[[int, Sequence[Trajectory]], None]


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Chance that k of n responses drawn without replacement hold a correct one: 1 - C(n-c, k) / C(n, k)
    (Chen et al. 2021, arXiv 2107.03374, eq. 1)."""
    return 1.0 - comb(n - correct, k) / comb(n, k)


class Evaluator:
    """Answers every prompt once greedily and `samples` times by sampling, and scores with the run's reward."""

    def __init__(
        self,
        *,
        prompts: Sequence[Prompt],
        responder: Responder,
        rollout: RolloutConfig,
        config: EvaluateConfig,
        peers: Peers,
        stage: Stage,
        on_evaluated: OnEvaluated,
    ) -> None:
        self._prompts = prompts
        self._responder = responder
        self._config = config
        self._peers = peers
        self._stage = stage
        self._on_evaluated = on_evaluated
        limits = {"max_tokens": rollout.max_tokens, "stop": tuple(rollout.stop)}
        sampled = SamplingParams(**limits, temperature=config.temperature, top_p=rollout.top_p, top_k=rollout.top_k)
        self._params = [SamplingParams(**limits, temperature=0.0), *[sampled] * config.samples]

    async def evaluate(self, step: int) -> EvaluationReport:
        """The same report on every controller. Collective. Sibling 0 is the greedy response."""
        await self._stage.enter("rollout", len(self._prompts) * self._peers.count * len(self._params))
        answered = await asyncio.gather(*(self._responder.respond(p, self._params) for p in self._prompts))
        sums = Counter[str]()
        for trajectories in answered:
            sums.update(self._sums(trajectories))
        self._on_evaluated(step, [t for trajectories in answered for t in trajectories])
        total = Counter[str]()
        for other in await self._peers.all_gather(f"evaluate/{step}", dict(sums)):
            total.update(other)
        return self._report(total)

    def _sums(self, trajectories: Sequence[Trajectory]) -> Counter[str]:
        """What one prompt adds: counts, correct ones, parts, pass@k. Failed scores count as failures only."""
        sums = Counter[str](prompts=1, responses=len(trajectories), tokens=sum(t.response_tokens for t in trajectories))
        correct = 0
        for t in trajectories:
            mode = "sampled" if t.sibling else "greedy"
            if t.score is None or t.score.value is None:
                sums["failures"] += 1
                continue
            right = t.score.value >= self._config.correct_at
            correct += right and mode == "sampled"
            sums[f"{mode}.scored"] += 1
            sums[f"{mode}.correct"] += right
            for name, value in t.score.parts.items():
                sums[f"{mode}.part.{name}"] += value
        n = sum(t.sibling > 0 and t.score is not None and t.score.value is not None for t in trajectories)
        for k in self._ks(n):
            sums[f"pass.{k}.prompts"] += 1
            sums[f"pass.{k}.sum"] += pass_at_k(n, correct, k)
        return sums

    def _ks(self, n: int) -> list[int]:
        """1, 2, 4 ... up to the number of samples, and that number."""
        return sorted({k for k in (*(2**i for i in range(n.bit_length())), self._config.samples) if 1 <= k <= n})

    def _report(self, total: Counter[str]) -> EvaluationReport:
        def parts(mode: str) -> dict[str, float]:
            prefix = f"{mode}.part."
            return {
                k.removeprefix(prefix): v / total[f"{mode}.scored"] for k, v in total.items() if k.startswith(prefix)
            }

        def accuracy(mode: str) -> float | None:
            return total[f"{mode}.correct"] / total[f"{mode}.scored"] if total[f"{mode}.scored"] else None

        return EvaluationReport(
            prompts=int(total["prompts"]),
            accuracy_greedy=accuracy("greedy"),
            accuracy_sampled=accuracy("sampled"),
            pass_at_k={
                k: total[f"pass.{k}.sum"] / n
                for k in self._ks(self._config.samples)
                if (n := total[f"pass.{k}.prompts"])
            },
            parts_greedy=parts("greedy"),
            parts_sampled=parts("sampled"),
            failures=int(total["failures"]),
            response_tokens_mean=total["tokens"] / total["responses"] if total["responses"] else 0.0,
        )

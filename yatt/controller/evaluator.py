"""Accuracy on held-out prompts, each controller on its share of them.

What controllers gather are sums: of counts, of shares per prompt and of their squares. Nothing grows with the data.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Sequence
from math import comb

from yatt.algorithm.filter import TOLERANCE
from yatt.config.schema import EvaluateConfig, RolloutConfig
from yatt.config.sources import check_any, check_few, source_of
from yatt.controller.phases import Phases
from yatt.controller.responder import Responder, greedy, sampled
from yatt.intervals import normal, wilson
from yatt.protocols import Peers
from yatt.reports import EvaluationReport, Interval, SourceReport
from yatt.types import Prompt, Trajectory

OnEvaluated = Callable[[int, Sequence[Trajectory]], None]
Key = tuple[str, str, str]
"""Of a sum: the source ("" is all), the measure, and what is summed; a part's: the measure, its name, one of PART."""
Sums = defaultdict[Key, float]
PART = ("part", "part count")
GREEDY, SAMPLED = "accuracy_greedy", "accuracy_sampled"


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Chance that k of n responses drawn without replacement hold a correct one: 1 - C(n-c, k) / C(n, k)
    (Chen et al. 2021, arXiv 2107.03374, eq. 1)."""
    return 1.0 - comb(n - correct, k) / comb(n, k)


class Evaluator:
    """Answers every prompt once greedily and `samples` times by sampling, and scores with the run's reward.

    Raises ConfigError where `evaluate.by` has more than MOST_SOURCES values, or no row has it."""

    def __init__(
        self,
        *,
        prompts: Sequence[Prompt],
        responder: Responder,
        rollout: RolloutConfig,
        config: EvaluateConfig,
        peers: Peers,
        phases: Phases,
        on_evaluated: OnEvaluated,
    ) -> None:
        self._prompts = prompts
        self._responder = responder
        self._config = config
        self._peers = peers
        self._phases = phases
        self._on_evaluated = on_evaluated
        self._answered = 0
        self._params = [greedy(rollout), *[sampled(rollout, config.temperature)] * config.samples]
        if config.by is not None:
            check_few(config.by, {self._source(prompt) for prompt in prompts})

    async def evaluate(self, step: int) -> EvaluationReport:
        """The same report on every controller. Collective. Sibling 0 is the greedy response."""
        await self._phases.enter("rollout", len(self._prompts) * self._peers.count * len(self._params))
        self._answered = 0
        answered = await asyncio.gather(*map(self._respond, self._prompts))
        sums: Sums = defaultdict(float)
        for prompt, trajectories in zip(self._prompts, answered, strict=True):
            self._add(sums, self._source(prompt), trajectories)
        self._on_evaluated(step, [t for trajectories in answered for t in trajectories])
        total: Sums = defaultdict(float)
        for part in await self._peers.all_gather(f"evaluate/{step}", dict(sums)):
            for key, value in part.items():
                total[key] += value
        return self._report(total)

    async def _respond(self, prompt: Prompt) -> Sequence[Trajectory]:
        trajectories = await self._responder.respond(prompt, self._params)
        self._answered += 1
        return trajectories

    @property
    def progress(self) -> tuple[int, int]:
        """This controller's prompts that are answered, and all it has."""
        return self._answered, len(self._prompts)

    def _source(self, prompt: Prompt) -> str:
        """Where the prompt comes from; "" where nobody asks."""
        return "" if self._config.by is None else source_of(prompt.metadata, self._config.by)

    def _add(self, sums: Sums, source: str, trajectories: Sequence[Trajectory]) -> None:
        """Add what one prompt was answered. Failed scores count as failures only."""
        for name in {"", source}:
            sums[name, "prompts", "count"] += 1
        right: dict[str, list[bool]] = {GREEDY: [], SAMPLED: []}
        for t in trajectories:
            _put(sums, "", "tokens", t.response_tokens)
            if t.score is None or t.score.value is None:
                sums["", "failures", "count"] += 1
                continue
            mode = SAMPLED if t.sibling else GREEDY
            right[mode].append(t.score.value >= self._config.correct_at - TOLERANCE)
            for part, value in t.score.parts.items():
                sums[mode, part, "part"] += value
                sums[mode, part, "part count"] += 1
        for mode, answers in right.items():
            for name in {"", source} if answers else ():
                _put(sums, name, mode, sum(answers) / len(answers))
        correct, n = sum(right[SAMPLED]), len(right[SAMPLED])
        for k in self._ks(n):
            _put(sums, "", f"pass@{k}", pass_at_k(n, correct, k))

    def _ks(self, n: int) -> list[int]:
        """1, 2, 4 ... up to the number of samples, and that number, of which none above n."""
        powers = [2**i for i in range(n.bit_length())]
        return sorted({k for k in (*powers, self._config.samples) if 1 <= k <= n})

    def _report(self, total: Sums) -> EvaluationReport:
        def parts(mode: str) -> dict[str, float]:
            sums = {part: value for (of, part, what), value in total.items() if (of, what) == (mode, "part")}
            return {part: value / total[mode, part, "part count"] for part, value in sums.items()}

        means = {k: _mean(total, "", f"pass@{k}") for k in self._ks(self._config.samples)}
        pass_at = {k: mean for k, mean in means.items() if mean is not None}
        sources = sorted({source for source, _, what in total if source and what not in PART})
        if self._config.by is not None:
            check_few(self._config.by, sources)
            check_any(self._config.by, sources)
        return EvaluationReport(
            prompts=int(total.get(("", "prompts", "count"), 0.0)),
            accuracy_greedy=_mean(total, "", GREEDY),
            accuracy_sampled=_mean(total, "", SAMPLED),
            pass_at_k=pass_at,
            parts_greedy=parts(GREEDY),
            parts_sampled=parts(SAMPLED),
            failures=int(total.get(("", "failures", "count"), 0.0)),
            response_tokens_mean=_mean(total, "", "tokens") or 0.0,
            intervals=_intervals(total, "", [GREEDY, SAMPLED, *(f"pass@{k}" for k in pass_at)]),
            sources={
                source: SourceReport(
                    prompts=int(total.get((source, "prompts", "count"), 0.0)),
                    accuracy_greedy=_mean(total, source, GREEDY),
                    accuracy_sampled=_mean(total, source, SAMPLED),
                    intervals=_intervals(total, source, [GREEDY, SAMPLED]),
                )
                for source in sources
            },
        )


def _put(sums: Sums, source: str, measure: str, value: float) -> None:
    sums[source, measure, "count"] += 1
    sums[source, measure, "sum"] += value
    sums[source, measure, "squares"] += value * value


def _mean(sums: Sums, source: str, measure: str) -> float | None:
    count = sums.get((source, measure, "count"), 0.0)
    return sums[source, measure, "sum"] / count if count else None


def _intervals(sums: Sums, source: str, measures: Sequence[str]) -> dict[str, Interval]:
    """By measure, where there is one. A greedy response is one trial, the sampled ones of a prompt are a share."""
    intervals: dict[str, Interval] = {}
    for measure in measures:
        count = int(sums.get((source, measure, "count"), 0.0))
        if not count:
            continue
        total, squares = sums[source, measure, "sum"], sums[source, measure, "squares"]
        interval = wilson(total, count) if measure == GREEDY else normal(total, squares, count)
        if interval is not None:
            intervals[measure] = interval
    return intervals

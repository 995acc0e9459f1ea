"""All of a run's rewards as one scorer: functions, and judges beside them."""

from __future__ import annotations

import asyncio
import logging
import math
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from yatt.config.judges import FIELD
from yatt.config.schema import JudgeConfig, RewardConfig
from yatt.errors import ConfigError
from yatt.reward.engine import Ask, ClassifierScorer, EngineAsker, Engines
from yatt.reward.function import BadResult, Item, as_number
from yatt.reward.judge import JudgeScorer, render
from yatt.reward.parsers import load_parser
from yatt.reward.pool import FunctionScorer, check_reward
from yatt.text import printable
from yatt.types import Completion, Prompt, Request, Score, Status, Trajectory

if TYPE_CHECKING:
    from yatt.reward.remote import RemoteAsker

Part = FunctionScorer | JudgeScorer | ClassifierScorer
FAILURES_SHOWN = 3
_log = logging.getLogger(__name__)


def open_scorer(
    config: RewardConfig, engines: Mapping[str, Ask] | None = None, *, index: int = 0, count: int = 1
) -> MixedScorer:
    """The scorer of a run, not yet started; it scores 0 where there is neither function nor judge. `engines` are the
    ways to ask each served judge's engines from here, controller `index` of `count`. Raises ConfigError for settings
    that no scorer can be made of."""
    weighted: list[tuple[float, Part]] = [(1.0, FunctionScorer(config))] if _has_functions(config) else []
    for name, judge in config.models.items():
        if judge.url is not None:
            part: Part = JudgeScorer(name, judge, _asker(name, judge))
        else:
            served = Engines(name, judge, (engines or {})[name], index=index, count=count)
            classifies = judge.kind == "classifier"
            part = ClassifierScorer(served) if classifies else JudgeScorer(name, judge, EngineAsker(served))
        weighted.append((judge.weight, part))
    return MixedScorer(weighted)


def check_rewards(config: RewardConfig, probe: Item) -> None:
    """Try each function once, and each judge: an endpoint with a call of one token, which waits a few seconds for it; a
    served one with everything but its engines. Raises ConfigError naming what is wrong."""
    if _has_functions(config):
        check_reward(config, probe)
    for name, judge in config.models.items():
        at = f"reward.models.{name}"
        if judge.kind == "generative":
            load_parser(judge.parser or "", f"{at}.parser")
        if probe.answer is None and "answer" in FIELD.findall(judge.template or ""):
            raise ConfigError(f"{at}.template names {{answer}}, but the first row has none; set data.answer_key")
        asyncio.run(_asker(name, judge).probe() if judge.url is not None else _read_once(name, judge, probe))


class MixedScorer:
    """Implements `yatt.protocols.Scorer` with several scorers, each with its weight, that work at the same time. The
    first failures are logged: a failed score may be seen nowhere else."""

    def __init__(self, weighted: Sequence[tuple[float, Part]]) -> None:
        self._weights = [weight for weight, _ in weighted]
        self._scorers = [scorer for _, scorer in weighted]
        self._failures = 0

    async def start(self) -> None:
        """Waits for all. Raises what the first of them raises; then it is to be closed."""
        await asyncio.gather(*(scorer.start() for scorer in self._scorers))

    async def score(self, trajectories: Sequence[Trajectory]) -> list[Score]:
        """Waits for the slowest of them."""
        columns = await asyncio.gather(*(scorer.score(trajectories) for scorer in self._scorers))
        mixed = [mix(self._weights, [scores[i] for scores in columns]) for i in range(len(trajectories))]
        for score in mixed:
            if score.status != "ok" and self._failures < FAILURES_SHOWN:
                self._failures += 1
                _log.warning(f"a reward {score.status.replace('_', ' ')}: {score.detail}")
        return mixed

    async def close(self) -> None:
        await asyncio.gather(*(scorer.close() for scorer in self._scorers))


def mix(weights: Sequence[float], scores: Sequence[Score]) -> Score:
    """The weighted sum of the values, with all parts. One that is not ok has the sum with it: failed before timed out,
    and the details say which. So has a part that two of them report, and a sum beyond a float32."""
    parts = {printable(name): value for score in scores for name, value in score.parts.items()}
    values = [weight * s.value for weight, s in zip(weights, scores, strict=True) if s.value is not None]
    if len(values) == len(scores):
        twice = [name for name, count in Counter(name for score in scores for name in score.parts).items() if count > 1]
        if twice:
            return Score(status="failed", detail=f"two rewards report a part {twice[0]!r}; rename one")
        try:
            return Score(status="ok", value=as_number(math.fsum(values), "the weighted sum is"), parts=parts)
        except (BadResult, OverflowError) as error:
            return Score(status="failed", parts=parts, detail=str(error))
    bad = [score for score in scores if score.status != "ok"]
    status: Status = "failed" if any(score.status == "failed" for score in bad) else "timed_out"
    return Score(status=status, parts=parts, detail=printable("; ".join(score.detail for score in bad)))


def _has_functions(config: RewardConfig) -> bool:
    return config.function is not None or bool(config.functions)


async def _read_once(name: str, judge: JudgeConfig, probe: Item) -> None:
    """Let a served judge's tokenizer and template read the first row and an empty response."""
    prompt = Prompt(uid=0, text=probe.prompt, tokens=np.zeros(0, np.int32), answer=probe.answer)
    engines = Engines(name, judge, _nobody)
    part = ClassifierScorer(engines) if judge.kind == "classifier" else EngineAsker(engines)
    await part.start()
    try:
        if isinstance(part, ClassifierScorer):
            part.encode(prompt, "")
        else:
            part.encode(render(judge.template or "", prompt, ""))
    except ValueError as error:
        raise ConfigError(f"reward.models.{name} cannot read the first row: {error}") from None


def _nobody(requests: Sequence[Request]) -> AsyncIterator[list[Completion]]:
    raise AssertionError("no engine is asked before a run")


def _asker(name: str, judge: JudgeConfig) -> RemoteAsker:
    from yatt.reward.remote import RemoteAsker  # noqa: PLC0415 (its client takes a second to import)

    return RemoteAsker(name, judge)

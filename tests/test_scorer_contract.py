"""Every kind of reward keeps the contract of a scorer, as do the double and simulated scores."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Sequence
from inspect import iscoroutinefunction
from typing import Any

import numpy as np
import pytest

from tests.doubles import ScriptedScorer
from tests.scorer_contract import Case, ScorerContract, children, trajectory
from tests.simulation.worlds import COSTS
from tests.test_judge_engine import config as served
from tests.test_judge_engine import folders
from tests.test_remote_judge import endpoint, judge_config, refuses, says
from tests.tiny_models import tiny_tokenizer
from yatt.config.schema import RewardConfig
from yatt.protocols import Scorer
from yatt.reward.engine import ClassifierScorer, EngineAsker, Engines
from yatt.reward.judge import JudgeScorer
from yatt.reward.mixed import open_scorer
from yatt.reward.pool import FunctionScorer
from yatt.reward.remote import RemoteAsker
from yatt.simulation.loop import run
from yatt.simulation.scorer import SimulatedScorer
from yatt.types import Completion, Request

__all__ = ["endpoint", "folders"]

BAD = trajectory("no")
"""What no scorer here has a reward for: the others are of ones, and their reward is how many."""


async def engines(requests: Sequence[Request]) -> AsyncIterator[list[Completion]]:
    """Of a judge: it writes how many ones it reads, or `hm`. Of a classifier: that is its logit."""
    tokenizer = tiny_tokenizer()
    for request in reversed(requests):  # completions come in any order
        text = tokenizer.decode(request.tokens)
        ones = text.count("1")
        written = tokenizer(str(ones) if ones else "hm", add_special_tokens=False)["input_ids"]
        yield [
            Completion(
                key=request.key,
                tokens=np.array(written, dtype=np.int32),
                rollout_logprobs=np.zeros(len(written), dtype=np.float32),
                spans=(),
                finish="stop",
                logit=float(ones) if ones else math.nan,
            )
        ]


@pytest.fixture
def rules(tmp_path):
    """A reward function: the number of ones, and an error without any."""
    path = tmp_path / "rules.py"
    path.write_text("def ones(response):\n    return response.count('1') / bool(response.count('1'))\n")
    return RewardConfig(function=f"{path}:ones", workers=2)


async def opened(make: Callable[[], Any]) -> AsyncIterator[Case]:
    """Of a scorer that is started and closed."""
    before, scorer = children(), make()
    await scorer.start()
    yield Case(scorer, make, lambda: BAD, before=before)
    await scorer.close()


class TestFunctions(ScorerContract):
    @pytest.fixture
    async def case(self, rules):
        async for case in opened(lambda: FunctionScorer(rules)):
            yield case


class TestServed(ScorerContract):
    @pytest.fixture(params=["judge", "classifier"])
    async def case(self, folders, request):
        kind = request.param
        settings = served(folders, kind, **({"parser": "number", "retries": 1} if kind == "judge" else {}))

        def make() -> Scorer:
            asked = Engines("j", settings, engines)
            return ClassifierScorer(asked) if kind == "classifier" else JudgeScorer("j", settings, EngineAsker(asked))

        async for case in opened(make):
            yield case


class TestRemote(ScorerContract):
    @pytest.fixture
    async def case(self, endpoint):
        def behave(body: dict[str, Any], number: int) -> Any:
            ones = body["messages"][0]["content"].count("1")
            return says(str(ones)) if ones else refuses(400, "no")

        endpoint.behave = behave
        settings = judge_config(endpoint, parser="number")
        async for case in opened(lambda: JudgeScorer("j", settings, RemoteAsker("j", settings))):
            yield case


class TestMixed(ScorerContract):
    @pytest.fixture
    async def case(self, folders, rules):
        models = {
            "judge": served(folders, "judge", parser="number"),
            "classifier": served(folders, "classifier", weight=0.5),
        }
        reward = rules.model_copy(update={"models": models})
        async for case in opened(lambda: open_scorer(reward, dict.fromkeys(models, engines))):
            yield case


class TestDouble(ScorerContract):
    @pytest.fixture
    def case(self):
        def make() -> ScriptedScorer:
            return ScriptedScorer(lambda t: float(len(t.text)) if "1" in t.text else None)

        return Case(make(), make, lambda: BAD)


def simulated() -> Case:
    def make() -> SimulatedScorer:
        return SimulatedScorer(COSTS, timeout=9.0, seed=0, on_scored=lambda key, score: None, parts=("rule",))

    scorer = make()

    def fail() -> Any:
        scorer.hang()
        return BAD

    return Case(scorer, make, fail, at=0)


CASES = [name for name in dir(ScorerContract) if iscoroutinefunction(getattr(ScorerContract, name))]


@pytest.mark.parametrize("case", CASES)
def test_simulated_scores_keep_the_contract(case):
    async def main() -> None:
        await getattr(ScorerContract(), case)(simulated())

    run(main())

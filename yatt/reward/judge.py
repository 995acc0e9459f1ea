"""A generative judge: a template, k judgements, a parser, and what becomes of judgements that fail."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Literal, Protocol

from yatt.config.judges import FIELD
from yatt.config.schema import JudgeConfig
from yatt.data.images import TAG
from yatt.data.turns import MARK
from yatt.reward.function import BadResult, as_number, shown
from yatt.reward.parsers import load_parser
from yatt.types import Media, Prompt, Score, Status, Trajectory
from yatt.user_functions import describe

UNPARSED_BEFORE_WARNING = 32
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Failure:
    """A judgement that was not given, and why. `unparsed` is one of a judge that did answer: asked again with another
    seed, it may give one."""

    status: Literal["failed", "timed_out"]
    detail: str
    unparsed: bool = False


class Asker(Protocol):
    """Answers a judge's questions: engines, or an endpoint. `sees` says, once it is started, whether the judge is shown
    images."""

    sees: bool

    async def start(self) -> None:
        """Returns once questions can be asked."""
        ...

    async def ask(
        self, texts: Sequence[str], seeds: Sequence[int], images: Sequence[Media] = ()
    ) -> list[str | Failure]:
        """The judge's answer to each text, sampled with its seed, in order. Never raises for one that fails. A judge
        that sees is shown the images at the text's `MARK`s."""
        ...

    async def close(self) -> None: ...


def render(template: str, prompt: Prompt, response: str, *, shown: bool = False) -> str:
    """The template with its fields filled in, in one pass: what stands in braces in a response stays as it is. With
    `shown`, a `MARK` stands for each image of the prompt: in its place in the question, or before all where that is not
    known, or the template does not name the question. Raises ValueError where it asks for an answer and the row has
    none."""
    values = {"question": prompt.question or prompt.text, "response": response, "answer": prompt.answer}
    named = FIELD.findall(template)
    if prompt.answer is None and "answer" in named:
        raise ValueError("the template names {answer}, and the row has none; see data.answer_key")
    values = {name: value and value.replace(MARK, "\ufffd") for name, value in values.items()}
    before = ""
    if shown:
        question, count = values["question"] or "", len(prompt.media)
        if named.count("question") == 1 and question.count(TAG) == count:
            values["question"] = question.replace(TAG, MARK)
        else:
            before = MARK * count
    return before + FIELD.sub(lambda field: values.get(field[1]) or "", template)


def judge_seed(name: str, trajectory: Trajectory, judgement: int, attempt: int) -> int:
    """The seed of one judgement: a function of what is judged and how often it was asked, nothing else."""
    words = f"{name}/{trajectory.prompt.uid}/{trajectory.sibling}/{judgement}/{attempt}"
    return int.from_bytes(blake2b(words.encode(), digest_size=4).digest(), "big") >> 1


def combine(name: str, judgements: Sequence[float | Failure], unparsed: int) -> Score:
    """The mean of the judgements that were given. Without any the score is failed, or timed out where all of them did;
    its detail is the last failure's. `unparsed` counts all answers that no verdict was found in."""
    given = [judgement for judgement in judgements if not isinstance(judgement, Failure)]
    if given:
        value = math.fsum(given) / len(given)
        parts = {name: value, f"{name}.judgements": float(len(given)), f"{name}.unparsed": float(unparsed)}
        return Score(status="ok", value=value, parts=parts)
    failures = [judgement for judgement in judgements if isinstance(judgement, Failure)]
    status: Status = "timed_out" if all(failure.status == "timed_out" for failure in failures) else "failed"
    return Score(status=status, detail=f"{name}: {failures[-1].detail}")


class JudgeScorer:
    """Implements `yatt.protocols.Scorer`. Each trajectory is judged on its own, `judgements` times; an answer without a
    verdict is asked for again, at most `retries` times."""

    def __init__(self, name: str, config: JudgeConfig, asker: Asker) -> None:
        """Raises ConfigError where the parser cannot be loaded."""
        self._name = name
        self._config = config
        self._asker = asker
        self._setting = f"reward.models.{name}.parser"
        self._parse = load_parser(config.parser or "", self._setting)
        self._parsed = 0
        self._unparsed: list[str] = []  # the first answers without a verdict

    async def start(self) -> None:
        """Waits for the asker."""
        await self._asker.start()

    async def score(self, trajectories: Sequence[Trajectory]) -> list[Score]:
        """Waits for the asker, at most 1 + `retries` times for each trajectory."""
        return await asyncio.gather(*map(self._judge, trajectories))

    async def close(self) -> None:
        await self._asker.close()

    async def _judge(self, trajectory: Trajectory) -> Score:
        try:
            images = trajectory.prompt.media if self._asker.sees else ()
            text = render(self._config.template or "", trajectory.prompt, trajectory.text, shown=bool(images))
        except ValueError as error:
            return Score(status="failed", detail=f"{self._name}: {error}")
        judgements: dict[int, float | Failure] = {}
        wanted, unparsed = list(range(self._config.judgements)), 0
        for attempt in range(self._config.retries + 1):
            seeds = [judge_seed(self._name, trajectory, judgement, attempt) for judgement in wanted]
            answers = await self._asker.ask([text] * len(seeds), seeds, images)
            judgements |= zip(wanted, map(self._read, answers), strict=True)
            wanted = [j for j in wanted if isinstance(given := judgements[j], Failure) and given.unparsed]
            unparsed += len(wanted)
            if not wanted:
                break
        return combine(self._name, list(judgements.values()), unparsed)

    def _read(self, answer: str | Failure) -> float | Failure:
        if isinstance(answer, Failure):
            return answer
        why = "no verdict"
        try:
            if (value := self._parse(answer)) is not None:
                number = as_number(value, "the parser returned")
                self._parsed += 1
                return number
        except BadResult:
            why = f"{shown(value)} is no verdict,"
        except (Exception, SystemExit) as error:  # a user's parser raises whatever it likes
            why = describe(error)
        self._note(answer)
        return Failure("failed", f"{why} in {_end(answer)}", unparsed=True)

    def _note(self, answer: str) -> None:
        """Say it once where no answer at all has a verdict: then it is the parser, or the template, that is wrong."""
        if len(self._unparsed) < UNPARSED_BEFORE_WARNING:
            self._unparsed.append(answer)
            if len(self._unparsed) == UNPARSED_BEFORE_WARNING and not self._parsed:
                shown = "".join(f"\n    {_end(one)}" for one in self._unparsed[:3])
                reference, count = self._config.parser, UNPARSED_BEFORE_WARNING
                _log.warning(f"{self._setting}={reference} finds no verdict in the first {count} answers:{shown}")


def _end(text: str, length: int = 200) -> str:
    """A text as one line; of a long one, its end, where a verdict would be."""
    return repr(text) if len(text) <= length else "..." + repr(text[-length:])

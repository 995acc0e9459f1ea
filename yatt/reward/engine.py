"""Judges that this run serves itself: those that write a verdict, and classifiers. Their engines are asked in tokens,
through a router."""

from __future__ import annotations

import itertools
import math
from collections.abc import AsyncIterator, Callable, Sequence

import numpy as np
from transformers import PreTrainedTokenizerFast

from yatt.config.image_tokens import image_tokens
from yatt.config.judges import judge_context, judge_facts
from yatt.config.schema import DataConfig, JudgeConfig
from yatt.data.images import ImagePlaces
from yatt.data.prompts import load_tokenizer, tokenize
from yatt.data.turns import MARK, Messages, ResponseText, render
from yatt.errors import BadRow, ConfigError
from yatt.reward.judge import Failure
from yatt.reward.judge import render as fill
from yatt.types import Completion, Media, Prompt, Request, SampleKey, SamplingParams, Score, Trajectory
from yatt.vision.images import ImageReader

Asked = tuple[np.ndarray, tuple[Media, ...]]
"""What an engine is to read: token ids [P], and the images among them."""
Ask = Callable[[Sequence[Request]], AsyncIterator[list[Completion]]]
"""As `Router.generate`."""


class Engines:
    """One judge's engines and its tokenizer, in controller `index` of `count`.

    What the engines raise is raised, and ends the step as it does where the policy's engines fail: they read anything
    that fits, so an error is never one response's, and every later one would fail like it.
    """

    def __init__(self, name: str, config: JudgeConfig, ask: Ask, *, index: int = 0, count: int = 1) -> None:
        self.name = name
        self.config = config
        self.tokenizer: PreTrainedTokenizerFast
        self.text: ResponseText
        self._ask = ask
        self._uids = itertools.count(index, count)
        self._context = 0
        self.padding: int | None = None
        self.places: ImagePlaces | None = None
        """Of a judge that sees."""

    def open(self) -> None:
        """Load the tokenizer. Raises ConfigError where the folder has none, or no judge of its kind."""
        at = f"reward.models.{self.name}.path"
        self._context = judge_context(self.name, self.config)
        self.tokenizer = load_tokenizer(str(self.config.path), at)
        self.text = ResponseText(self.tokenizer)
        facts = judge_facts(self.name, self.config, weights=False)
        self.padding = facts.padding
        if facts.vision is not None and (tokens := image_tokens(str(self.config.path), at)) is not None:
            reader = ImageReader(str(self.config.path), setting=at)
            self.places = ImagePlaces(DataConfig(), tokens, reader, self.tokenizer)

    def chat(self, messages: Messages, *, answer: bool) -> np.ndarray:
        """Token ids [P] of a talk in the judge's own template, with `answer` up to where the judge goes on. Raises
        ValueError where the template refuses it."""
        try:
            text = render(self.tokenizer, messages, opened=answer)
        except BadRow as error:
            raise ValueError(str(error)) from None
        return self.plain(text, special=False)

    def plain(self, text: str, *, special: bool = True, closed: bool = False) -> np.ndarray:
        """Token ids [P] of a text, as `tokenize` gives them. Raises ValueError where it cannot, or nothing more would
        fit behind them."""
        try:
            tokens = tokenize(self.tokenizer, text, special=special, closed=closed)
        except BadRow as error:
            raise ValueError(str(error)) from None
        self._check_length(tokens)
        return tokens

    def showing(self, tokens: np.ndarray, images: Sequence[Media]) -> Asked:
        """Tokens with one in the place of each image, and the images, as a judge that sees reads them. Raises
        ValueError where these are not all places, or nothing more would fit behind them."""
        if self.places is None:
            return tokens, ()
        try:
            self.places.check_places(tokens, len(images))
            placed, (tokens,) = self.places.place(self.places.measured(images), tokens)
        except BadRow as error:
            raise ValueError(str(error)) from None
        self._check_length(tokens)
        return tokens, placed

    def _check_length(self, tokens: np.ndarray) -> None:
        if len(tokens) >= self._context:
            raise ValueError(f"{len(tokens)} tokens to read leave no room in its context of {self._context}")

    async def answer(self, prompts: Sequence[Asked], params: SamplingParams, seeds: Sequence[int]) -> list[Completion]:
        """The completion of each prompt, in order; they travel together. Waits for the engines, as long as their router
        does."""
        uid = next(self._uids)
        requests = [
            Request(key=SampleKey(uid, number), tokens=tokens, params=params, seed=seed, media=media)
            for number, ((tokens, media), seed) in enumerate(zip(prompts, seeds, strict=True))
        ]
        ended = {c.key: c async for batch in self._ask(requests) for c in batch} if requests else {}
        return [ended[request.key] for request in requests]


def something(tokens: np.ndarray) -> np.ndarray:
    """The same tokens. Raises ValueError where there are none: an engine cannot go on from nothing."""
    if not len(tokens):
        raise ValueError("there is nothing to read: the template and the response are empty")
    return tokens


class EngineAsker:
    """Implements `yatt.reward.judge.Asker`. A text is one message of the user's in the judge's own chat template, or
    stands as it is where the folder has none.

    What comes back is all that the judge wrote, special tokens too, since a verdict may be one of them; only the end
    token is left out.
    """

    sees = False

    def __init__(self, engines: Engines) -> None:
        self._engines = engines
        config = engines.config
        self._params = SamplingParams(max_tokens=config.max_tokens, temperature=config.temperature)

    async def start(self) -> None:
        """Asks nothing yet. Raises ConfigError where the folder does not serve."""
        self._engines.open()
        self.sees = self._engines.places is not None

    async def ask(
        self, texts: Sequence[str], seeds: Sequence[int], images: Sequence[Media] = ()
    ) -> list[str | Failure]:
        """Waits for the engines. Texts that are the same share their prompt's cache."""
        prompts: dict[str, Asked] = {}
        failures: dict[str, Failure] = {}
        for text in dict.fromkeys(texts):
            try:
                prompts[text] = self.encode(text, images)
            except ValueError as error:
                failures[text] = Failure("failed", str(error))
        fit = [(prompts[text], seed) for text, seed in zip(texts, seeds, strict=True) if text in prompts]
        ended = iter(await self._engines.answer([asked for asked, _ in fit], self._params, [seed for _, seed in fit]))
        return [failures[text] if text in failures else self._read(next(ended)) for text in texts]

    def encode(self, text: str, images: Sequence[Media] = ()) -> Asked:
        """The judge's prompt. Raises ValueError where it cannot be made."""
        places = self._engines.places
        if places is not None:
            text = MARK.join(map(places.unseen, text.split(MARK)))
        if self._engines.tokenizer.chat_template is not None:
            tokens = self._engines.chat([{"role": "user", "content": text}], answer=True)
        else:
            tokens = self._engines.plain(text if places is None else places.written(text))
        return self._engines.showing(something(tokens), images)

    async def close(self) -> None:
        """The engines are the runtime's."""

    def _read(self, completion: Completion) -> str | Failure:
        text = self._engines.text(completion.tokens)
        if completion.finish == "length":
            detail = f"cut off after {len(completion.tokens)} tokens, before a verdict, in {text[-200:]!r}"
            return Failure("failed", detail, unparsed=True)
        return Failure("failed", "ended by its engine, before a verdict") if completion.finish == "aborted" else text


class ClassifierScorer:
    """Implements `yatt.protocols.Scorer` with a reward model of one label, such as one trained on preferences after
    Bradley and Terry: the score is its logit.

    It reads the question and the response as a talk in its own chat template, or its template where the settings give
    one, as it stands.
    """

    def __init__(self, engines: Engines) -> None:
        self._engines = engines
        self._name = engines.name

    async def start(self) -> None:
        """Asks nothing yet. Raises ConfigError where the folder does not serve, or there is no template."""
        self._engines.open()
        if self._engines.config.template is None and self._engines.tokenizer.chat_template is None:
            at = f"reward.models.{self._name}"
            raise ConfigError(
                f"{at}.template is not set, and {at}.path={self._engines.config.path} has no chat template"
            )

    async def score(self, trajectories: Sequence[Trajectory]) -> list[Score]:
        """Waits for the engines."""
        tokens: dict[int, np.ndarray] = {}
        scores: dict[int, Score] = {}
        for number, trajectory in enumerate(trajectories):
            try:
                tokens[number] = something(self.encode(trajectory.prompt, trajectory.text))
            except ValueError as error:
                scores[number] = self._failed(str(error))
        ended = await self._engines.answer(
            [(each, ()) for each in tokens.values()], SamplingParams(max_tokens=1), [0] * len(tokens)
        )
        scores |= zip(tokens, map(self._read, ended), strict=True)
        return [scores[number] for number in range(len(trajectories))]

    def encode(self, prompt: Prompt, response: str) -> np.ndarray:
        """The model's input: token ids [P], without padding tokens at the end, for the engine reads the score at the
        last token and transformers at the last that is no padding. Raises ValueError where it cannot."""
        if (template := self._engines.config.template) is not None:
            tokens = self._engines.plain(fill(template, prompt, response), closed=True)
        else:
            talk = [("user", prompt.question or prompt.text), ("assistant", response)]
            tokens = self._engines.chat([{"role": role, "content": text} for role, text in talk], answer=False)
        real = np.flatnonzero(tokens != self._engines.padding)
        return tokens[: real[-1] + 1 if len(real) else 1]

    async def close(self) -> None:
        """The engines are the runtime's."""

    def _read(self, completion: Completion) -> Score:
        if completion.finish == "aborted":
            return self._failed("ended by its engine, before a score")
        value = completion.logit
        if value is None or not math.isfinite(value):
            return self._failed(f"its logit is {value}")
        return Score(status="ok", value=value, parts={self._name: value})

    def _failed(self, why: str) -> Score:
        return Score(status="failed", detail=f"{self._name}: {why}")

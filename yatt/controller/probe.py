"""Asks an engine what it makes of a few fixed tokens: after every set of new weights, against what the trainer makes of
them; and one that was started anew, against one that has been there all the time."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass

import numpy as np

from yatt.controller.fleet import PlacedGenerator
from yatt.errors import BackendError, ProcessDied
from yatt.types import Request, SampleKey, SamplingParams

TOKENS = np.arange(1, 9, dtype=np.int32)
"""Token ids that every vocabulary has. Prompts are the first 1, 2 ... 8 of them."""
PATIENCE = 30.0
"""Seconds that the other engine, which may be full of long responses, has to answer."""
FIRST_UID = -(1 << 20)
"""Keys of the probe's requests: no prompt of a run has a uid below 0."""
NOISE = {"float32": 3e-6, "bfloat16": 0.03}
"""Between an engine and the trainer, what rounding leaves at least, as far as is assumed."""
TENFOLD, CLEARLY, HALF = 10.0, 3.0, 0.5
"""A gap this many times that of the first weights is none of rounding. What the trainer moved by is told from rounding
where it is this many times as large; of that, an engine with the same weights moves by more than half."""


async def probe(new: PlacedGenerator, other: PlacedGenerator, bound: float) -> None:
    """Compare the log-probability of the likeliest next token after each of the prompts; both engines sample. Where
    the likeliest two are close, engines may name different ones, but the log-probability is the same all the same.
    Raises BackendError where the two differ by more than `bound` in the mean. Nothing is compared where `other` dies or
    has no time."""
    expected = asyncio.create_task(answers(other, TOKENS, other=True))
    try:
        seen = await answers(new, TOKENS)
        try:
            async with asyncio.timeout(PATIENCE):
                known = await asyncio.shield(expected)
        except (TimeoutError, ProcessDied):
            return
        gap = float(np.abs(seen - known).mean())
        if not gap <= bound:
            raise BackendError(
                f"the generator on slots {new.slots}, started anew, and the one on slots {other.slots} are {gap:.2g} "
                f"apart in log-probabilities of fixed tokens, where rounding stays under {bound:g}: other weights"
            )
    finally:
        expected.cancel()
        await asyncio.gather(expected, return_exceptions=True)


async def answers(generator: PlacedGenerator, tokens: np.ndarray, *, other: bool = False) -> np.ndarray:
    """[tokens] After each of them, the log-probability of the likeliest next one."""
    params = SamplingParams(max_tokens=1, temperature=0.0)
    requests = [
        Request(key=SampleKey(FIRST_UID + n, other), tokens=tokens[: n + 1], params=params, seed=0)
        for n in range(len(tokens))
    ]
    seen = np.full(len(tokens), np.nan)
    async for completions in generator.generate(requests):
        for completion in completions:
            seen[completion.key.uid - FIRST_UID] = completion.rollout_logprobs[0]
    return seen


@dataclass(frozen=True, slots=True)
class _Known:
    """What trainer and engine made of the tokens under a version that did arrive."""

    version: int
    trainer: np.ndarray
    engine: np.ndarray


class Arrival:
    """Whether the weights of each version are in each engine.

    A gap to the trainer beyond rounding says that they are not. Where a step moves the trainer by less than that bound,
    an engine that does not move shows only over several: what both moved by is compared, since the last version of
    which that could be said. What the two programs do differently under any weights is the same before and after, and
    cancels."""

    def __init__(self, dtype: str, bound: float) -> None:
        """`bound` is a mean gap that rounding does not reach under the first weights."""
        self._noise, self._bound = NOISE[dtype], bound
        self._first: float | None = None  # the gap of the first weights
        self._known: dict[int, _Known] = {}

    def fault(self, number: int, version: int, trainer: np.ndarray, engine: np.ndarray) -> str | None:
        """Why engine `number` does not have the weights of this version, as far as can be seen; None where it may."""
        gap, known = float(np.abs(engine - trainer).mean()), self._known.get(number)
        first = self._bound if self._first is None else TENFOLD * max(self._first, self._noise)
        if not gap <= first:
            return (
                f"{_apart(gap, len(trainer))}, where rounding stays under {first:.2g}{_older(known, engine, version)}"
            )
        if self._first is None:
            self._first = gap
        if known is None:
            self._known[number] = _Known(version, trainer, engine)
            return None
        moved, seen = trainer - known.trainer, engine - known.engine
        size = float(np.abs(moved).mean())
        if size <= CLEARLY * max(self._first, self._noise):
            return None
        if float(seen @ moved) < HALF * float(moved @ moved):
            return (
                f"{_apart(gap, len(trainer))}: since version {known.version} the trainer's moved by {size:.2g}, the "
                f"engine's by {float(np.abs(seen).mean()):.2g}"
            )
        self._known[number] = _Known(version, trainer, engine)
        return None


def _apart(gap: float, tokens: int) -> str:
    how = f"are {gap:.2g} from the trainer's" if math.isfinite(gap) else "are not all finite numbers"
    return f"its log-probabilities of {tokens} fixed tokens {how}"


def _older(known: _Known | None, engine: np.ndarray, version: int) -> str:
    """How far the engine is from what it was, where it was seen under another version."""
    if known is None or known.version == version:
        return ""
    return f", and {float(np.abs(engine - known.engine).mean()):.2g} from its own under version {known.version}"


def wrong_weights(generator: PlacedGenerator, version: int, fault: str) -> str:
    """One line on an engine that does not have this version's weights."""
    return f"weights of version {version} are not those in the generator on slots {generator.slots}: {fault}"

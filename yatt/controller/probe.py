"""Asks an engine that was started anew what it makes of a few fixed tokens, and holds it against one that has been
there all the time."""

from __future__ import annotations

import asyncio

import numpy as np

from yatt.controller.fleet import PlacedGenerator
from yatt.errors import BackendError, ProcessDied
from yatt.types import Request, SampleKey, SamplingParams

TOKENS = 8
"""Prompts are the first 1, 2 ... 8 of the token ids 1 to 8, which every vocabulary has."""
PATIENCE = 30.0
"""Seconds that the other engine, which may be full of long responses, has to answer."""
FIRST_UID = -TOKENS
"""Keys of the probe's requests: no prompt of a run has a uid below 0."""


async def probe(new: PlacedGenerator, other: PlacedGenerator, bound: float) -> None:
    """Compare the log-probability of the likeliest next token after each of the prompts; both engines sample. Where
    the likeliest two are close, engines may name different ones, but the log-probability is the same all the same.
    Raises BackendError where the two differ by more than `bound` in the mean. Nothing is compared where `other` dies or
    has no time."""
    expected = asyncio.create_task(_answers(other, other=True))
    try:
        seen = await _answers(new)
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


async def _answers(generator: PlacedGenerator, *, other: bool = False) -> np.ndarray:
    """[TOKENS] Log-probabilities of the likeliest token after each prompt."""
    params = SamplingParams(max_tokens=1, temperature=0.0)
    prompt = np.arange(1, TOKENS + 1, dtype=np.int32)
    requests = [
        Request(key=SampleKey(FIRST_UID + n, other), tokens=prompt[: n + 1], params=params, seed=0)
        for n in range(TOKENS)
    ]
    seen = np.full(TOKENS, np.nan)
    async for completions in generator.generate(requests):
        for completion in completions:
            seen[completion.key.uid - FIRST_UID] = completion.rollout_logprobs[0]
    return seen

"""What every `Generator` of a model that sees must do with images: run for each engine, the double, and simulated."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from hashlib import blake2b
from typing import NamedTuple

import numpy as np

from tests.generator_contract import answers, requests, same, until_running
from tests.vision.models import IMAGE, MERGE, PATCH, VISION_END, VISION_START, png
from yatt.types import Completion, Media, Request, SampleKey, SamplingParams

_uids = itertools.count(50_000)  # away from those of the contract of text


class Picture(NamedTuple):
    """A file of noise; its sides are whole tokens, and it is not resized."""

    file: np.ndarray
    width: int
    height: int

    def at(self, start: int) -> Media:
        rows, columns = self.height // PATCH, self.width // PATCH
        return Media(
            handle=self.file,
            nbytes=self.file.nbytes,
            digest=blake2b(self.file.tobytes(), digest_size=16).hexdigest(),
            patches=(1, rows, columns),
            start=start,
            tokens=rows * columns // MERGE**2,
        )


def picture(seed: int, width: int = 24, height: int = 16) -> Picture:
    return Picture(png(seed, width, height), width, height)


def looks(
    n: int, pictures: Sequence[Picture], *, max_tokens: int = 16, seed: int = 0, after: Sequence[int] = (), **params
) -> list[Request]:
    """`n` siblings of a prompt that shows these pictures among text, and ends with the tokens `after`."""
    tokens, media = [5, 6, 7], []
    for one in pictures:
        tokens.append(VISION_START)
        media.append(one.at(len(tokens)))
        tokens += [IMAGE] * media[-1].tokens + [VISION_END, 20, 21]
    uid, ids = next(_uids), np.array([*tokens, *after], dtype=np.int32)
    sampling = SamplingParams(max_tokens=max_tokens, **params)
    return [
        Request(key=SampleKey(uid, i), tokens=ids, params=sampling, seed=seed + i, media=tuple(media)) for i in range(n)
    ]


def alike(a: list[Completion], b: list[Completion]) -> bool:
    """Whether these are the same responses, of the same probabilities but for round-off."""
    return same(a, b) and all(
        np.abs(one.rollout_logprobs - other.rollout_logprobs).max() < 1e-4 for one, other in zip(a, b, strict=True)
    )


class SeeingProtocolContract:
    async def test_requests_with_images_are_answered_once(self, generator):
        wanted = looks(3, [picture(1), picture(2)], max_tokens=5) + requests(2, max_tokens=5)
        assert [len(c.tokens) for c in await answers(generator, wanted)] == [5] * 5

    async def test_requests_with_images_can_be_aborted(self, generator):
        """Also before their images are read."""
        wanted = looks(2, [picture(number) for number in range(20, 26)], max_tokens=60)
        task = asyncio.create_task(answers(generator, wanted))
        await until_running(generator, 2)
        await generator.abort([wanted[0].key])
        aborted, other = await task
        assert (aborted.finish, other.finish, len(other.tokens)) == ("aborted", "length", 60)
        assert len(aborted.tokens) < 60


class SeeingContract(SeeingProtocolContract):
    """Of a generator that draws tokens."""

    async def test_another_image_is_another_prompt(self, generator):
        first = await answers(generator, looks(3, [picture(1)]))
        assert not alike(first, await answers(generator, looks(3, [picture(2)])))
        assert alike(first, await answers(generator, looks(3, [picture(1)])))

    async def test_the_order_of_images_counts(self, generator):
        first = await answers(generator, looks(3, [picture(1), picture(2)]))
        assert not alike(first, await answers(generator, looks(3, [picture(2), picture(1)])))

    async def test_prompts_that_differ_in_an_image_are_both_read(self, generator):
        """They come in one call, one behind the other, and their tokens are the same."""
        before = (await generator.pulse()).cached
        one, other = looks(1, [picture(1)], max_tokens=1), looks(1, [picture(2)], max_tokens=1)
        await answers(generator, one + other)
        assert (await generator.pulse()).cached == before + 2 * len(one[0].tokens)

"""The double keeps the contract of a generator."""

from __future__ import annotations

import asyncio
import time

import numpy as np
import pytest

from tests.generator_contract import CONTEXT, NEVER, GeneratorContract, answers, check_close, publish, requests
from tests.generator_double import DoubleGenerator
from yatt.types import WeightManifest

__all__ = ["publish"]


class WallClock:
    def now(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


def double() -> DoubleGenerator:
    return DoubleGenerator(
        clock=WallClock(), vocabulary=96, seconds_per_token=0.0005, context_length=CONTEXT, stop_token_ids=(NEVER,)
    )


class TestDouble(GeneratorContract):
    @pytest.fixture
    def generator(self):
        return double()


async def test_close():
    await check_close(double())


async def test_an_empty_path_is_weights_without_bytes():
    generator = double()
    await generator.pause()
    assert await generator.load(WeightManifest(version=3, kind="flat", path="", checksum="")) == 3


async def test_its_logprobs_are_those_of_a_uniform_distribution():
    (ended,) = await answers(double(), requests(1))
    np.testing.assert_allclose(np.exp(ended.rollout_logprobs), 1 / 96, rtol=1e-6)

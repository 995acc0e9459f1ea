"""The simulated generator keeps the contract, but for what its tokens are: here on the wall clock."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

import numpy as np
import pytest

from tests.generator_contract import ProtocolContract, check_close, publish
from yatt.simulation.costs import EngineCosts
from yatt.simulation.engine import PROMPT, SimulatedGenerator
from yatt.types import Completion, Request

__all__ = ["publish"]

COSTS = EngineCosts(step=5e-4, per_request=0.0, per_kv_token=0.0, load=1e-3, sleep=1e-3, wake=1e-3)
ENDLESS = 10**6  # tokens of every response: each ends where its request says


class Simulated(SimulatedGenerator):
    """As the contract asks it: what is read is the prompt."""

    async def generate(self, requests: Sequence[Request]) -> AsyncIterator[list[Completion]]:
        read = [replace(r, tokens=np.full(len(r.tokens), PROMPT, dtype=np.int32)) for r in requests]
        async for completions in super().generate(read):
            yield completions


def simulated() -> Simulated:
    return Simulated(
        COSTS, name="generator 0", slots=(0,), node="n", length=lambda key: ENDLESS, log=lambda *event: None
    )


class TestSimulated(ProtocolContract):
    @pytest.fixture
    async def generator(self):
        generator = simulated()
        await generator.resume()
        return generator


async def test_close():
    await check_close(simulated())

"""The simulated generator keeps the contract, but for what its tokens are, in virtual time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from inspect import signature

import numpy as np
import pytest

from tests.generator_contract import ProtocolContract, check_close, publish
from yatt.simulation.costs import EngineCosts
from yatt.simulation.engine import PROMPT, SimulatedGenerator
from yatt.simulation.loop import run
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


CASES = [name for name in dir(ProtocolContract) if name.startswith("test_")]


@pytest.mark.parametrize("case", CASES)
def test_it_keeps_the_contract(case, publish):
    test = getattr(ProtocolContract(), case)

    async def main() -> None:
        generator = simulated()
        await generator.resume()
        await test(generator, *([publish] if "publish" in signature(test).parameters else []))

    run(main())


def test_close():
    async def main() -> None:
        generator = simulated()
        await generator.resume()
        await check_close(generator)

    run(main())

"""The probe: whether each engine has the weights that the trainer made."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import numpy as np
import pytest

from tests.doubles import RecordingTrainer, ScriptedGenerator
from yatt.controller.fleet import Fleet
from yatt.controller.peers import Hub, HubPeers
from yatt.controller.probe import FIRST_UID, Arrival
from yatt.controller.weight_sync import WeightSync
from yatt.errors import BackendError
from yatt.reports import Probed
from yatt.types import Completion, Request, Span

TOKENS = 16


def rounding(size: float, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, size, TOKENS)


def walk(step: float, versions: int) -> list[np.ndarray]:
    """What the trainer makes of the tokens, version by version: each moves on by about `step` in one direction."""
    way = np.random.default_rng(7).normal(0, step, TOKENS)
    return [-3 + version * way for version in range(versions)]


@pytest.mark.parametrize(("dtype", "size", "bound"), [("float32", 2e-6, 1e-3), ("bfloat16", 0.03, 0.25)])
@pytest.mark.parametrize("step", [0.0, 1e-7, 1e-5, 1e-3, 0.1, 1.0])
def test_rounding_alone_is_no_fault(dtype: str, size: float, bound: float, step: float) -> None:
    arrival = Arrival(dtype, bound)
    for version, trainer in enumerate(walk(step, 60)):
        assert arrival.fault(0, version, trainer, trainer + rounding(size, version)) is None


@pytest.mark.parametrize(
    ("dtype", "size", "bound", "step"),
    [
        ("float32", 2e-6, 1e-3, 1e-6),
        ("float32", 2e-6, 1e-3, 1e-2),
        ("bfloat16", 0.03, 0.25, 0.004),
        ("bfloat16", 0.03, 0.25, 0.3),
    ],
)
def test_weights_that_never_arrive_are_found_once_they_matter(
    dtype: str, size: float, bound: float, step: float
) -> None:
    """However small a step: what it leaves behind adds up."""
    arrival, policy = Arrival(dtype, bound), walk(step, 60)
    stuck = policy[0] + rounding(size, 0)
    faults = [arrival.fault(0, version, trainer, stuck) for version, trainer in enumerate(policy)]
    found = next(version for version, fault in enumerate(faults) if fault)
    moved = float(np.abs(policy[found] - policy[0]).mean())
    assert moved < 11 * (3e-6 if dtype == "float32" else 0.03) or found == 1


def test_one_part_that_does_not_arrive_is_found() -> None:
    """A twentieth of what a step changes is missing."""
    arrival, policy = Arrival("float32", 1e-3), walk(1e-2, 3)
    assert arrival.fault(0, 0, policy[0], policy[0] + rounding(2e-6, 0)) is None
    missing = policy[0] + 0.95 * (policy[1] - policy[0]) + rounding(2e-6, 1)
    assert "fixed tokens" in str(arrival.fault(0, 1, policy[1], missing))


def test_numbers_that_are_none_are_a_fault() -> None:
    assert "not all finite" in str(Arrival("float32", 1e-3).fault(0, 0, np.zeros(4), np.full(4, np.nan)))


class Probing(RecordingTrainer):
    """Whose policy says -(1 + version / 100) of every token."""

    async def probe(self) -> Probed:
        version = self.exported[-1] if self.exported else 0
        return Probed((5, 6, 7), (-1 - version / 100,) * 3)


class Engine(ScriptedGenerator):
    """Says what a version's weights make of a prompt; `deaf`, it stays at the first."""

    def __init__(self, slot: int, deaf: bool = False) -> None:
        super().__init__(slot)
        self.sampling, self.deaf, self.asked = True, deaf, 0

    async def load(self, manifest: object) -> int:
        self.served = manifest.version  # type: ignore[attr-defined]
        return self.served

    async def generate(self, requests: Sequence[Request]) -> AsyncIterator[list[Completion]]:
        for request in requests:
            assert request.tokens.tolist() == [5, 6, 7][: request.key.uid - FIRST_UID + 1]
            self.asked += 1
            value = -1.0 - (0 if self.deaf else self.served) / 100
            span = (Span(start=0, stop=1, version=self.served),)
            logprobs = np.array([value], dtype=np.float32)
            token = np.array([1], dtype=np.int32)
            yield [Completion(key=request.key, tokens=token, rollout_logprobs=logprobs, spans=span, finish="length")]


@pytest.mark.parametrize("stops", [True, False])
def test_an_engine_that_says_it_loaded_and_did_not_is_named(stops: bool) -> None:
    async def run() -> tuple[int, int]:
        engines = [Engine(0), Engine(1, deaf=True)]
        sync = WeightSync(Fleet(engines), Probing(1), HubPeers(0, 1, Hub(1, 1)), 1e-3, stops=stops)
        await sync.begin()
        await sync.check([0, 1])
        await sync.check([0, 1])  # nothing is new
        assert [engine.asked for engine in engines] == [3, 3]
        await sync.send(1)
        await sync.check([0])
        await sync.check([0, 1])
        return engines[0].asked, engines[1].asked

    if stops:
        with pytest.raises(
            BackendError, match=r"version 1 are not those in the generator on slots \(1,\).* 0\.01 from"
        ):
            asyncio.run(run())
    else:
        assert asyncio.run(run()) == (6, 6), "each is asked once for each version"

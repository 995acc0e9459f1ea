"""Brings weights from the ranks to the engines of the policy."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping

import numpy as np

from yatt.controller.fleet import Fleet, PlacedGenerator
from yatt.controller.probe import Arrival, answers, probe, wrong_weights
from yatt.errors import BackendError
from yatt.protocols import EVERY_NODE, Peers, Trainer
from yatt.reports import Probed
from yatt.types import WeightManifest

log = logging.getLogger(__name__)


class WeightSync:
    """A new version reaches every engine of the policy, whole, before the next step can draw from it."""

    def __init__(
        self, fleet: Fleet, trainer: Trainer, peers: Peers, bound: float, *, dtype: str = "float32", stops: bool = True
    ) -> None:
        """`bound` is a gap of log-probabilities that rounding does not reach between two engines, or an engine and the
        trainer, of this `dtype`. Without `stops`, what the probe finds is a warning."""
        self._fleet = fleet
        self._trainer = trainer
        self._peers = peers
        self._bound = bound
        self._arrival, self._stops = Arrival(dtype, bound), stops
        self._probed: Probed | None = None
        self._checked: set[int] = set()  # the engines that were seen to have the weights of now
        self._current: Mapping[str, WeightManifest] = {}  # none while engines have the weights that the run starts from
        self._version = 0

    async def send(self, version: int) -> None:
        """Have the ranks write their weights and every engine load them. The leader does it; the other controllers need
        not wait, since engines stay paused until it is done. Raises BackendError where an engine ends up with another
        version."""
        if self._peers.index or not len(self._fleet):
            return
        self._current, self._version = await self._trainer.export(version), version
        served = await self._fleet.each(lambda _, generator: generator.load(_manifest(generator, self._current)))
        if stale := [self._fleet.generators[number].slots for number, v in served.items() if v != version]:
            raise BackendError(f"weights of version {version} did not reach the generators on slots {stale}")
        self._probed, self._checked = await self._trainer.probe(), set()

    async def begin(self) -> None:
        """Have the ranks look at the probe's tokens under the weights that the run starts from. Leader only, while they
        are awake."""
        if self._probed is None and len(self._fleet):
            self._probed = await self._trainer.probe()

    async def check(self, numbers: Collection[int]) -> None:
        """Hold what these engines, which sample, make of the probe's tokens against what the trainer did: once for each
        of them and set of weights. Leader only. Raises BackendError where one has other weights."""
        asked = set(numbers) - self._checked
        if self._probed is None or not asked:
            return
        tokens = np.array(self._probed.tokens, dtype=np.int32)
        known = np.array(self._probed.logprobs)
        seen = await self._fleet.each(lambda _, generator: answers(generator, tokens), among=asked)
        self._checked |= asked
        for number, found in seen.items():
            if fault := self._arrival.fault(number, self._version, known, found):
                line = wrong_weights(self._fleet.generators[number], self._version, fault)
                if self._stops:
                    raise BackendError(f"{line}; rollout.engine_gap=warn goes on all the same")
                log.warning("%s", line)

    async def give(self, generator: PlacedGenerator) -> None:
        """Have an engine that was started anew load the weights that the others have. Leader only; raises BackendError
        where it ends up with another version."""
        if self._current and await generator.load(_manifest(generator, self._current)) != self._version:
            raise BackendError(
                f"weights of version {self._version} did not reach the generator on slots {generator.slots}"
            )

    async def compare(self, new: PlacedGenerator, other: PlacedGenerator) -> None:
        """Hold an engine that was started anew against one that has been there; both sample. Raises BackendError where
        their weights are not the same."""
        await probe(new, other, self._bound)


def _manifest(generator: PlacedGenerator, manifests: Mapping[str, WeightManifest]) -> WeightManifest:
    """The weights that this generator can read."""
    manifest = manifests.get(generator.node) or manifests.get(EVERY_NODE)
    if manifest is None:
        raise BackendError(
            f"node {generator.node} has a generator but no rank to write its weights; set weights.transport=disk"
        )
    return manifest

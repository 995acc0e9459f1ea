"""Brings new weights from the ranks to the engines of the policy."""

from __future__ import annotations

from collections.abc import Mapping

from yatt.controller.fleet import Fleet, PlacedGenerator
from yatt.errors import BackendError
from yatt.protocols import EVERY_NODE, Peers, Trainer
from yatt.types import WeightManifest


class WeightSync:
    """A new version reaches every engine of the policy, whole, before the next step can draw from it."""

    def __init__(self, fleet: Fleet, trainer: Trainer, peers: Peers) -> None:
        self._fleet = fleet
        self._trainer = trainer
        self._peers = peers

    async def send(self, version: int) -> None:
        """Have the ranks write their weights and every engine load them. The leader does it; the other controllers need
        not wait, since engines stay paused until it is done. Raises BackendError where an engine ends up with another
        version."""
        if self._peers.index or not len(self._fleet):
            return
        manifests = await self._trainer.export(version)
        served = await self._fleet.each(lambda _, generator: generator.load(_manifest(generator, manifests)))
        if stale := [self._fleet.generators[number].slots for number, v in served.items() if v != version]:
            raise BackendError(f"weights of version {version} did not reach the generators on slots {stale}")


def _manifest(generator: PlacedGenerator, manifests: Mapping[str, WeightManifest]) -> WeightManifest:
    """The weights that this generator can read."""
    manifest = manifests.get(generator.node) or manifests.get(EVERY_NODE)
    if manifest is None:
        raise BackendError(
            f"node {generator.node} has a generator but no rank to write its weights; set weights.transport=disk"
        )
    return manifest

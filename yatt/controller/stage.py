"""Moves the cluster from phase to phase: wakes and sleeps what the plan says, and brings new weights to the engines."""

from __future__ import annotations

from collections.abc import Mapping

from yatt.controller.fleet import Fleet, PlacedGenerator
from yatt.errors import BackendError
from yatt.placement.plan import Phase, Plan, Role, difference
from yatt.protocols import EVERY_NODE, Peers, Trainer
from yatt.types import WeightManifest


class Stage:
    """The leader applies, the others wait. Engines sample in phase "rollout" only, whatever the plan keeps awake."""

    def __init__(self, plan: Plan, fleet: Fleet, trainer: Trainer, peers: Peers) -> None:
        self._plan = plan
        self._fleet = fleet
        self._trainer = trainer
        self._peers = peers
        self._phase: Phase | None = None
        self._awake: Mapping[int, frozenset[Role]] = {
            slot: frozenset({"generator", "trainer"}) for slot in plan["train"]
        }

    async def enter(self, phase: Phase) -> None:
        """Collective: returns once every slot is as the plan wants it in `phase`."""
        if phase == self._phase:
            return
        if self._peers.index == 0 and len(self._fleet):
            await self._apply(phase)
        self._awake, self._phase = self._plan[phase], phase
        await self._peers.barrier(f"phase/{phase}")

    async def _apply(self, phase: Phase) -> None:
        changes = difference(self._awake, self._plan[phase])
        for awake in (False, True):
            moved = {(c.slot, c.role) for c in changes if c.awake == awake}
            engines = {n for n, g in enumerate(self._fleet.generators) if (g.slots[0], "generator") in moved}
            await self._fleet.each(lambda _, g, awake=awake: g.wake() if awake else g.sleep(), among=engines)
            if any(role == "trainer" for _, role in moved):
                await (self._trainer.onload() if awake else self._trainer.offload())
        await self._fleet.each(lambda _, g: g.resume() if phase == "rollout" else g.pause())


class Publisher:
    """Version + 1 reaches every engine, whole, before anyone goes on."""

    def __init__(self, fleet: Fleet, trainer: Trainer, peers: Peers) -> None:
        self._fleet = fleet
        self._trainer = trainer
        self._peers = peers

    async def publish(self, version: int) -> None:
        """Collective. Raises BackendError where an engine ends up with another version."""
        if self._peers.index == 0 and len(self._fleet):
            manifests = await self._trainer.export(version)
            served = await self._fleet.each(lambda _, g: g.load(self._manifest(g, manifests)))
            if stale := [self._fleet.generators[n].slots for n, v in served.items() if v != version]:
                raise BackendError(f"weights of version {version} did not reach the generators on slots {stale}")
        await self._peers.barrier(f"published/{version}")

    @staticmethod
    def _manifest(generator: PlacedGenerator, manifests: Mapping[str, WeightManifest]) -> WeightManifest:
        manifest = manifests.get(generator.node) or manifests.get(EVERY_NODE)
        if manifest is None:
            raise BackendError(
                f"node {generator.node} has a generator but no rank to write its weights; set weights.transport=disk"
            )
        return manifest

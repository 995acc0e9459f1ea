"""Moves the cluster from phase to phase: wakes and sleeps what the plan says, and brings new weights to the engines."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Protocol

from yatt.errors import BackendError
from yatt.placement.plan import Phase, Plan, Role, difference
from yatt.protocols import EVERY_NODE, Generator, Peers, Trainer
from yatt.types import WeightManifest


class PlacedGenerator(Generator, Protocol):
    """A generator that knows which slots it occupies and on which node it runs."""

    slots: tuple[int, ...]
    node: str


class Stage:
    """The leader applies, the others wait. Engines sample in phase "rollout" only, whatever the plan keeps awake."""

    def __init__(self, plan: Plan, generators: Sequence[PlacedGenerator], trainer: Trainer, peers: Peers) -> None:
        self._plan = plan
        self._generators = generators
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
        if self._peers.index == 0 and self._generators:
            await self._apply(phase)
        self._awake, self._phase = self._plan[phase], phase
        await self._peers.barrier(f"phase/{phase}")

    async def _apply(self, phase: Phase) -> None:
        changes = difference(self._awake, self._plan[phase])
        for awake in (False, True):
            moved = {(c.slot, c.role) for c in changes if c.awake == awake}
            generators = [g for g in self._generators if (g.slots[0], "generator") in moved]
            await asyncio.gather(*(g.wake() if awake else g.sleep() for g in generators))
            if any(role == "trainer" for _, role in moved):
                await (self._trainer.onload() if awake else self._trainer.offload())
        await asyncio.gather(*(g.resume() if phase == "rollout" else g.pause() for g in self._generators))


class Publisher:
    """Version + 1 reaches every engine, whole, before anyone goes on."""

    def __init__(self, generators: Sequence[PlacedGenerator], trainer: Trainer, peers: Peers) -> None:
        self._generators = generators
        self._trainer = trainer
        self._peers = peers

    async def publish(self, version: int) -> None:
        """Collective. Raises BackendError where an engine ends up with another version."""
        if self._peers.index == 0 and self._generators:
            manifests = await self._trainer.export(version)
            served = await asyncio.gather(*(g.load(self._manifest(g, manifests)) for g in self._generators))
            if stale := [g.slots for g, v in zip(self._generators, served, strict=True) if v != version]:
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

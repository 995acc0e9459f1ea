"""How slots are divided into blocks, which role holds which block, and where engines stand. Data only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

POLICY, TRAINER = "policy", "trainer"
Role = str
"""`policy`, `trainer`, or the name of a judge."""
Phase = Literal["rollout", "train"]
Awake = Mapping[int, frozenset[Role]]
"""Slot -> roles awake on it."""
Split = Mapping[Role, int]
"""Blocks of each role while responses are drawn and judged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSite:
    """One engine: the role it serves and the slots it lives on."""

    role: Role
    slots: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The `slots` that are divided, in blocks that hold whole engines of every role. `sizes` are the slots of one
    engine of each role, the policy's first; each divides the largest, which is a block's."""

    slots: tuple[int, ...]
    sizes: Mapping[Role, int]

    @cached_property
    def blocks(self) -> tuple[tuple[int, ...], ...]:
        """The slots of each block; one slot each where nothing has engines."""
        size = max(self.sizes.values(), default=1)
        return tuple(self.slots[i : i + size] for i in range(0, len(self.slots), size))

    def engines(self, role: Role, blocks: Iterable[int]) -> list[EngineSite]:
        """The engines of a role on these blocks."""
        size = self.sizes[role]
        slots = [slot for block in blocks for slot in self.blocks[block]]
        return [EngineSite(role=role, slots=tuple(slots[i : i + size])) for i in range(0, len(slots), size)]

    def awake(self, holders: Sequence[Role]) -> Awake:
        """Roles awake on each slot; `holders` [blocks] is the role of each block."""
        return {slot: frozenset({role}) for block, role in zip(self.blocks, holders, strict=True) for slot in block}


def arrange(split: Split, before: Sequence[Role] | None = None, work: Sequence[float] = ()) -> tuple[Role, ...]:
    """The role of each block, so that each has as many as `split` says and as few as possible change hands: of a role
    that loses some those with the least `work`, the last ones among equals. Without `before`, roles stand side by side
    in the order of `split`."""
    if before is None:
        return tuple(role for role, count in split.items() for _ in range(count))
    spare = {role: before.count(role) - split.get(role, 0) for role in before}
    wanted = [role for role, count in split.items() for _ in range(count - before.count(role))]
    after = list(before)
    for block in sorted(reversed(range(len(before))), key=lambda b: work[b] if work else 0.0):
        if wanted and spare[before[block]] > 0:
            spare[before[block]] -= 1
            after[block] = wanted.pop(0)
    return tuple(after)


def apportion(blocks: int, weights: Mapping[Role, float]) -> dict[Role, int]:
    """Blocks in proportion to weights by largest remainder, at least one each."""
    total = sum(weights.values())
    quota = {role: blocks * weight / total if total else blocks / len(weights) for role, weight in weights.items()}
    split = {role: max(1, int(share)) for role, share in quota.items()}
    while sum(split.values()) < blocks:
        split[max(split, key=lambda role: quota[role] - split[role])] += 1
    while sum(split.values()) > blocks:
        split[min((r for r in split if split[r] > 1), key=lambda role: quota[role] - split[role])] -= 1
    return split

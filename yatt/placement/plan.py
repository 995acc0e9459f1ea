"""A plan is data: for each phase, which roles are awake on which slot."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

Role = Literal["generator", "trainer"]
Phase = Literal["rollout", "train"]
Plan = Mapping[Phase, Mapping[int, frozenset[Role]]]


class Change(NamedTuple):
    """One role on one slot is to wake or to sleep."""

    slot: int
    role: Role
    awake: bool


def colocated(slots: Iterable[int]) -> Plan:
    """Every role on every slot, one phase at a time: engines hold the memory in rollout, ranks in training."""
    slots = tuple(slots)
    return {
        "rollout": {slot: frozenset[Role]({"generator"}) for slot in slots},
        "train": {slot: frozenset[Role]({"trainer"}) for slot in slots},
    }


def resident(slots: Iterable[int]) -> Plan:
    """Every role always awake: for devices with room for all of them at once."""
    slots = tuple(slots)
    both = frozenset[Role]({"generator", "trainer"})
    return {"rollout": dict.fromkeys(slots, both), "train": dict.fromkeys(slots, both)}


def difference(before: Mapping[int, frozenset[Role]], after: Mapping[int, frozenset[Role]]) -> list[Change]:
    """What takes one phase's roles to another's: sleeps first, so that their memory is free for the wakes."""
    changes = [
        Change(slot, role, awake)
        for slot in sorted(before.keys() | after.keys())
        for role, awake in [
            *((r, False) for r in sorted(before.get(slot, frozenset()) - after.get(slot, frozenset()))),
            *((r, True) for r in sorted(after.get(slot, frozenset()) - before.get(slot, frozenset()))),
        ]
    ]
    return sorted(changes, key=lambda change: change.awake)

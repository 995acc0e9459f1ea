"""Faults at seeded random moments of a simulated run."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from yatt.simulation.world import World

Kind = Literal[
    "engine dies", "engine hangs", "engine is slow", "controller dies", "rank dies", "scorer hangs", "message is late"
]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A fault at second `at`, of the engine, controller or rank of number `target` (modulo how many there are).
    `amount` is how many times slower an engine becomes, or how many seconds late a message is."""

    kind: Kind
    at: float
    target: int = 0
    amount: float = 0.0


def draw_faults(seed: int, *, until: float, most: int = 4, kinds: Sequence[Kind] = KINDS) -> list[Fault]:
    """One to `most` faults within the first `until` seconds; a function of the arguments alone."""
    chance = random.Random(seed)
    return [
        Fault(
            kind=chance.choice(kinds),
            at=chance.uniform(0.0, until),
            target=chance.randrange(1 << 16),
            amount=chance.uniform(2.0, 20.0),
        )
        for _ in range(chance.randint(1, most))
    ]


def inject(world: World, faults: Sequence[Fault]) -> None:
    """Have them happen."""
    for fault in faults:
        asyncio.get_running_loop().call_at(fault.at, _happen, world, fault)


def _happen(world: World, fault: Fault) -> None:
    controllers = len(world.controllers)
    engines = [engine for engines in world.engines.values() for engine in engines]
    engine = engines[fault.target % len(engines)]
    if fault.kind == "engine dies":
        engine.die()
    elif fault.kind == "engine hangs":
        world.hang(engine)
    elif fault.kind == "engine is slow":
        engine.slow(fault.amount)
    elif fault.kind == "controller dies":
        world.kill(fault.target % controllers)
    elif fault.kind == "rank dies":
        world.ranks.die(fault.target % len(world.ranks.nodes))
    elif fault.kind == "scorer hangs":
        world.scorers[fault.target % controllers].hang()
    elif fault.kind == "message is late":
        world.network.delay(fault.amount)

"""Who gets which share of the slots while responses are drawn and judged: pure functions of what was measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from yatt.placement.plan import Role, Split


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """One engine of a role. A decode step with b running requests takes `step + per_request * b` seconds."""

    step: float
    per_request: float
    prefill: float  # seconds per token read
    capacity: int  # requests run at once
    engines: int  # in a block


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """A role's work at one moment, over all its engines."""

    requests: int  # at its engines, those that wait there included
    coming: float  # requests expected in the rest of the step
    tokens: float  # mean tokens a request at an engine has still to sample; a coming one samples `length`
    length: float  # mean tokens of a whole response of this role
    longest: float  # tokens the longest request has still to sample
    prefix: float  # mean tokens read anew where a request moves: its prompt, and the response so far
    speed: Speed


Loads = Mapping[Role, Load]


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A split, the seconds predicted to the end of the phase under it, and the reason in words."""

    split: Split
    seconds: float
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Mode:
    """How a placement mode decides. `start` is asked before each rollout: (blocks, loads of the whole step as expected
    from the last ones or None in the first, split before or None, seconds of switching a block) -> what to begin with.
    `look` is asked every so often within one: (split now, loads now, seconds of switching a block) -> what to change
    to, or None. A mode without `look` never moves within a step."""

    start: Callable[[int, Loads | None, Split | None, float], Choice]
    look: Callable[[Split, Loads, float], Choice | None] | None = None

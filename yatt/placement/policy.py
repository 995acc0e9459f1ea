"""The share of the slots that each role gets while responses are drawn and judged: pure functions of measurements."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from yatt.placement.forecast import FAIR, SPREAD, Forecast, Load, Loads, Missed, block_seconds, row, spreads
from yatt.placement.plan import POLICY, Role, Split, apportion


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A split, the seconds predicted to the end of the phase under it, and the reason in words."""

    split: Split
    seconds: float
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Mode:
    """How a placement mode decides. `start` is asked before each rollout: (blocks, loads of the whole step as expected
    from the last ones or None in the first, split that the last one began with or None, seconds of switching a block,
    what forecasts have missed) -> what to begin with. `look` is asked every so often within one: (split now, loads
    now, seconds of switching a block) -> what to change to, or None. Without `look` nothing moves within a step."""

    start: Callable[[int, Loads | None, Split | None, float, Missed], Choice]
    look: Callable[[Split, Loads, float], Choice | None] | None = None


MARGIN = 0.05
"""Share of the predicted seconds that a change must gain beyond the seconds of switching; less is within the error of
what is measured and predicted."""


def open_mode(name: str, *, given: Split, parameters: Mapping[Role, float]) -> Mode:
    """The mode of this name. `given` is the split in blocks, for `partial`; `parameters` the size of each role's model,
    the policy's first."""
    return MODES[name](given, parameters)


def miss(loads: Loads, split: Split, took: float) -> float:
    """The seconds a rollout `took`, divided by those forecast for these loads under the `split` it began with; at least
    0.5 and at most 2, and 1 where no end was forecast."""
    seconds = float(Forecast(loads=loads, blocks=sum(split.values())).seconds(row(split, loads))[0])
    return min(max(took / seconds, 0.5), 2.0) if 0 < seconds < np.inf else 1.0


def text(loads: Loads, before: Split, now: float, after: Split, then: float, switching: float) -> str:
    """One line for a decision: what was measured, what was predicted, what is done."""
    measured = "; ".join(f"{role} {_measured(load)}" for role, load in loads.items())
    kept = f"{_words(before)} {f'ends in {now:.3g} s' if np.isfinite(now) else 'never ends'}"
    change = "kept" if before == after else f"now {_words(after)}: {then:.3g} s, switching takes {switching:.2g} s"
    return f"{measured}; {kept}; {change}"


def _measured(load: Load) -> str:
    here = f"{load.requests} requests x {load.tokens:.0f} tokens" if load.requests else ""
    coming = f"{load.coming:.0f} coming x {load.length:.0f} tokens" if load.coming >= 1 else ""
    return " + ".join(filter(None, (here, coming))) or "idle"


def _words(split: Split) -> str:
    return " + ".join(f"{role} {count}" for role, count in split.items())


def _dynamic(given: Split, parameters: Mapping[Role, float]) -> Mode:
    def start(
        blocks: int, loads: Loads | None, before: Split | None, switching: float, missed: Missed = FAIR
    ) -> Choice:
        if loads is None:
            share = 1 if blocks >= len(parameters) else 0  # with fewer blocks than roles, they take turns
            split = {role: share for role in parameters} | {POLICY: blocks - share * (len(parameters) - 1)}
            why = "one block per judge" if share else "the judges' turn comes later"
            return Choice(split=split, seconds=0.0, why=f"nothing measured yet; {_words(split)}: {why}")
        forecast = Forecast(loads=loads, blocks=blocks, spread=SPREAD, missed=missed)
        best, seconds = forecast.best(np.vstack([spreads(loads, blocks), row({POLICY: blocks}, loads)]))
        if before is None or sum(before.values()) != blocks:
            return Choice(split=best, seconds=seconds, why=text(loads, best, seconds, best, seconds, switching))
        kept = float(forecast.seconds(row(before, loads))[0])
        if np.isfinite(kept) and kept - seconds <= switching + MARGIN * kept:
            return Choice(split=before, seconds=kept, why=text(loads, before, kept, before, kept, switching))
        return Choice(split=best, seconds=seconds, why=text(loads, before, kept, best, seconds, switching))

    return Mode(start=start, look=_look)


def _look(split: Split, loads: Loads, switching: float) -> Choice | None:
    """Move blocks where the phase then ends sooner by more than the switching and the margin; where the policy has
    put off giving any away, once waiting gains nothing more."""
    before, blocks = row(split, loads), sum(split.values())
    forecast = Forecast(loads=loads, blocks=blocks, switching=switching, before=before[0], spread=SPREAD)
    if blocks < forecast.working:
        return _serial(split, loads, switching)
    now = float(forecast.seconds(before)[0])
    best, seconds = forecast.best(np.vstack([before, spreads(loads, blocks)]))
    put_off = forecast.working > 1 and split.get(POLICY) == blocks
    if best == dict(split) or (np.isfinite(now) and now - seconds <= (0.0 if put_off else switching + MARGIN * now)):
        return None
    return Choice(split=best, seconds=seconds, why=text(loads, split, now, best, seconds, switching))


def _serial(split: Split, loads: Loads, switching: float) -> Choice | None:
    """One role at a time: who holds the blocks keeps them while anything is at its engines."""
    holder = max(split, key=lambda role: split[role])
    waiting = {role: block_seconds(load) for role, load in loads.items() if load.requests}
    if loads[holder].requests or not waiting:
        return None
    judges = [role for role in waiting if role != POLICY]
    taker = max(judges, key=lambda role: waiting[role]) if judges else POLICY
    blocks = sum(split.values())
    why = f"{holder} has nothing at its engines, {taker} {_measured(loads[taker])}; now {taker} {blocks}"
    return Choice(split={role: blocks * (role == taker) for role in split}, seconds=waiting[taker] / blocks, why=why)


def _standing(words: str, choose: Callable[[int], Split]) -> Mode:
    """A split that does not depend on what is measured."""

    def start(
        blocks: int, loads: Loads | None, before: Split | None, switching: float, missed: Missed = FAIR
    ) -> Choice:
        split = choose(blocks)
        seconds = float(Forecast(loads=loads, blocks=blocks).seconds(row(split, loads))[0]) if loads else 0.0
        return Choice(split=split, seconds=seconds, why=f"{_words(split)}: {words}")

    return Mode(start=start)


def _colocated(given: Split, parameters: Mapping[Role, float]) -> Mode:
    phases = _standing("serial phases", lambda blocks: {role: blocks * (role == POLICY) for role in parameters})
    return replace(phases, look=_serial)


MODES: Mapping[str, Callable[[Split, Mapping[Role, float]], Mode]] = {
    "colocated": _colocated,
    "partial": lambda given, parameters: _standing("fixed", lambda blocks: given),
    "weighted": lambda given, parameters: _standing("by parameters", lambda blocks: apportion(blocks, parameters)),
    "dynamic": _dynamic,
    "disaggregated": _dynamic,
}

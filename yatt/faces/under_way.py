"""What is being waited for while a run starts or evaluates, in a line."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_NUMBERED = re.compile(r"(.+) (\d+)")


@dataclass(frozen=True, slots=True)
class _Task:
    """Since when something is under way, and what it does now."""

    since: float
    doing: str


class Waiting:
    """Tasks under way, and how long those took that ended since there was none."""

    def __init__(self) -> None:
        self._tasks: dict[str, _Task] = {}
        self._ended: dict[str, float] = {}
        self._begun = 0.0

    @property
    def kinds(self) -> set[str]:
        """What is being done, numbers aside; empty where nothing is."""
        return {re.sub(r"\d+", "", task.doing) for task in tuple(self._tasks.values())}

    def begin(self, name: str, doing: str, now: float) -> None:
        """`name` is under way, or does something else now."""
        if not self._tasks:
            self._begun, self._ended = now, {}
        since = self._tasks[name].since if name in self._tasks else now
        self._tasks[name] = _Task(since, doing)

    def end(self, name: str, now: float) -> str:
        """`name` has ended. Returns a line on all that ended where it was the last, else ""."""
        task = self._tasks.pop(name, None)
        self._ended[name] = now - (task.since if task else now)
        if self._tasks:
            return ""
        return f"{numbered(self._ended)}: ready, {max(self._ended.values()):.1f} s"

    def line(self, now: float, most: int) -> str:
        """What is under way, in at most so many characters."""
        by_doing: dict[str, list[str]] = {}
        for name, task in tuple(self._tasks.items()):  # another thread may begin and end some
            by_doing.setdefault(task.doing, []).append(name)
        text = "; ".join(f"{numbered(names)}: {doing}" for doing, names in by_doing.items())
        seconds = f" ({now - self._begun:.0f} s)"
        room = most - len(seconds)
        return (text if len(text) <= room else text[: room - 1] + "…") + seconds


def numbered(names: Iterable[str]) -> str:
    """Names in short: `generator 0` to `generator 7` are generators 0-7."""
    kinds: dict[str, list[int]] = {}
    for name in names:
        match = _NUMBERED.fullmatch(name)
        kinds.setdefault(match[1] if match else name, []).extend([int(match[2])] if match else [])
    return ", ".join(
        f"{kind}{'s' * (len(numbers) > 1)} {_ranges(sorted(numbers))}" if numbers else kind
        for kind, numbers in kinds.items()
    )


def _ranges(numbers: Sequence[int]) -> str:
    """Neighbours as a range."""
    ends: list[list[int]] = []
    for number in numbers:
        if ends and number == ends[-1][-1] + 1:
            ends[-1][1:] = [number]
        else:
            ends.append([number])
    return ", ".join("-".join(map(str, pair)) for pair in ends)

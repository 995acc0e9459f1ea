"""The conversations of `samples/`, page by page, newest first: searched where they lie, never all in memory."""

from __future__ import annotations

import json
import math
import time
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from yatt.faces.trajectories import FILE, Record, record_of

PAGE = 20
"""Conversations of one page."""
SECONDS = 0.8
"""How long a page is searched for; the next page goes on from there."""
END = 1 << 40
"""A line behind every file's last."""
SEARCHED = ("prompt", "response", "answer", "detail", "status", "dropped", "messages", "segments", "chosen", "rejected")
"""The fields of a record that words are looked for in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """Which conversations: those whose texts hold `words`, in any case; of rewards and steps within both ends; of
    `kind` "step" (rollouts) or "eval", of both where it is ""; with `failed`, those whose reward failed."""

    words: str = ""
    low: float | None = None
    high: float | None = None
    first: int | None = None
    last: int | None = None
    kind: str = ""
    failed: bool = False


@dataclass(frozen=True, slots=True)
class Place:
    """Where a search goes on: behind line `line` of a file, in the order of files."""

    step: int
    name: str
    line: int


@dataclass(slots=True)
class Found:
    """A page of conversations. `on` says where the next one begins, None where there is no more; `searched` is the
    oldest step that was looked at."""

    records: list[tuple[str, Record]] = field(default_factory=list)
    on: Place | None = None
    searched: int | None = None


@dataclass(frozen=True, slots=True)
class _Index:
    """Of a file's lines: where each begins and ends, and its reward, no number where it failed."""

    stamp: tuple[int, int]
    starts: array[int]
    rewards: array[float]


class Samples:
    """The conversations of one run. Of a file that was looked at, places and rewards are remembered: 16 bytes each."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[str, _Index] = {}

    def newest(self) -> int:
        """The last step that has conversations; -1 where there are none."""
        return max((step for step, _, _ in self._files()), default=-1)

    def find(self, query: Query, after: Place | None = None) -> Found:
        """The next page behind `after`. What takes longer than SECONDS comes with the page after it."""
        found, until = Found(), time.monotonic() + SECONDS
        files = [
            (step, name, kind)
            for step, name, kind in sorted(self._files(), reverse=True)
            if _within(step, query.first, query.last) and query.kind in ("", kind)
            if after is None or _is_left(step, name, after)
        ]
        for step, name, kind in files:
            begin = after.line + 1 if after is not None and (step, name) == (after.step, after.name) else 0
            found.searched = step
            for line, record in self._matching(name, query, begin):
                found.records.append((kind, record))
                if len(found.records) == PAGE:
                    found.on = Place(step, name, line)
                    return found
            if time.monotonic() > until and (step, name, kind) != files[-1]:
                found.on = Place(step, name, END)
                return found
        return found

    def _files(self) -> Iterator[tuple[int, str, str]]:
        """(step, name, kind) of each file."""
        for file in self._folder.glob("*.jsonl"):
            if match := FILE.fullmatch(file.name):
                yield int(match[2]), file.name, match[1]

    def _matching(self, name: str, query: Query, begin: int) -> Iterator[tuple[int, Record]]:
        """The records of a file that are asked for, and their lines' numbers, from line `begin` on."""
        try:
            with open(self._folder / name, "rb") as file:
                index = self._index(name)
                rewarded = [n for n in range(begin, len(index.rewards)) if _rewarded(index.rewards[n], query)]
                if not rewarded:
                    return
                data = file.read()
        except OSError:  # a run that goes on from an earlier step has removed it
            return
        for line in rewarded:
            text = data[index.starts[line] : index.starts[line + 1]]
            if not _may_say(text, query.words) or (record := record_of(text)) is None:
                continue
            if _says(record, query.words) and (record.get("status") or not query.failed):
                yield line, record

    def _index(self, name: str) -> _Index:
        """The file's index, made anew where the file is another one."""
        path = self._folder / name
        stat = path.stat()
        stamp = (stat.st_mtime_ns, stat.st_size)
        known = self._known.get(name)
        if known is not None and known.stamp == stamp:
            return known
        starts, rewards = array("q", [0]), array("d")
        for line in path.read_bytes().split(b"\n"):
            record = record_of(line)
            value = record.get("reward") if record is not None else None
            starts.append(starts[-1] + len(line) + 1)
            rewards.append(value if isinstance(value, int | float) else math.nan)
        self._known[name] = _Index(stamp, starts, rewards)
        return self._known[name]


def _is_left(step: int, name: str, after: Place) -> bool:
    """Whether a file has lines behind that place: files come from the last step to the first."""
    here, there = (step, name), (after.step, after.name)
    return here < there or (here == there and after.line < END)


def _rewarded(reward: float, query: Query) -> bool:
    if query.failed or (query.low is None and query.high is None):
        return math.isnan(reward) or not query.failed
    return _within(reward, query.low, query.high)


def _within(value: float, low: float | None, high: float | None) -> bool:
    return (low is None or value >= low) and (high is None or value <= high)


def _may_say(line: bytes, words: str) -> bool:
    """Whether the words can be in a line's texts: a quick look that spares most lines their reading."""
    return not words.isascii() or json.dumps(words)[1:-1].lower().encode() in line.lower()


def _says(record: Record, words: str) -> bool:
    return not words or any(words.lower() in text.lower() for key in SEARCHED for text in _texts(record.get(key)))


def _texts(value: Any) -> Iterator[str]:
    """All texts within a value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)

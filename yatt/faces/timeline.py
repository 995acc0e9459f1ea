"""timeline.json: which process did what when, as a Chrome trace of bounded size that opens in Perfetto.

A process of the trace is a slot, its threads what lives there; one more holds the driver and the controllers. Every
event names its step. A span on several slots is an event on each; a decision on placement is an instant of the driver.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from heapq import nlargest
from pathlib import Path
from typing import Any

from yatt.reports import Decision, Incident, PhaseSpan

MOST_EVENTS = 20_000
"""Events in the file. Beyond it whole steps are left out: the first and the last ones stay, and every k-th between,
where k doubles each time."""
FIRST, LAST = 3, 4
MOST_OF_STEP = MOST_EVENTS // (FIRST + LAST + 1)
"""Events of one step; of more, decisions and the longest stay."""
CONTROL, SLOTS = 1, 2
"""Process number of driver and controllers, and of slot 0."""
END = b"\n]\n"
DECISION = "decision"

Steps = dict[int, list[PhaseSpan]]
Thread = tuple[int, str]


def mark(decision: Decision) -> PhaseSpan:
    """A decision as what the driver did in no time; its counts are the slots of each role."""
    at = decision.at
    return PhaseSpan(name=decision.text, actor="driver", role=DECISION, start=at, stop=at, counts=decision.slots)


def mark_incident(incident: Incident) -> PhaseSpan:
    """What happened to a process, in the same way."""
    return PhaseSpan(name=incident.line, actor="driver", role=DECISION, start=incident.at, stop=incident.at)


class Timeline:
    """One run's timeline. The file is a whole trace after every call; what a crash leaves can be read and added to."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._steps: Steps | None = None
        self._threads: set[Thread] = set()
        self._ends: dict[int, int] = {}  # where each step ends in the file; -1: the names before them
        self._stride = 1

    def append(self, step: int, spans: Sequence[PhaseSpan]) -> None:
        """Add to a step: the last one so far, or a later one."""
        steps = self._load()
        every = steps.get(step, []) + [
            replace(span, slots=slots) for span in spans for slots in (zip(span.slots) if span.slots else [()])
        ]
        kept = nlargest(MOST_OF_STEP, every, key=lambda s: (s.role == DECISION, s.stop - s.start))
        steps[step] = sorted(kept, key=lambda s: s.start)
        new = {_thread(span) for span in steps[step]} - self._threads
        self._threads |= new
        changed = min([step, *self._thin(steps)])
        self._write(steps, -1 if new else changed)

    def rewind(self, step: int) -> None:
        """Drop what happened in steps after `step`."""
        if self._path.exists():
            self._steps = {number: spans for number, spans in self._load().items() if number <= step}
            self._write(self._steps, -1)

    def read(self) -> Steps:
        """The spans of each step, one per slot where they are on several; broken lines are left out."""
        steps: Steps = {}
        text = self._path.read_text(encoding="utf-8", errors="replace") if self._path.exists() else ""
        for line in text.split("\n"):
            with suppress(ValueError, KeyError, TypeError):  # brackets, names, and what a crash broke off
                step, span = _span(json.loads(line.rstrip(",")))
                steps.setdefault(step, []).append(span)
        return steps

    def _load(self) -> Steps:
        if self._steps is None:
            self._steps = self.read()
            self._threads = {_thread(span) for spans in self._steps.values() for span in spans}
        return self._steps

    def _thin(self, steps: Steps) -> list[int]:
        """Leave steps out until the rest fits; returns which."""
        gone: list[int] = []
        while middle := list(steps)[FIRST:-LAST]:
            gone += [step for step in middle if step % self._stride]
            for step in gone:
                steps.pop(step, None)
            if sum(map(len, steps.values())) <= MOST_EVENTS:
                break
            self._stride *= 2
        return gone

    def _write(self, steps: Steps, first: int) -> None:
        """Write step `first` and all after it; -1 writes everything."""
        self._ends = {step: end for step, end in self._ends.items() if step < first}
        if not self._ends:
            self._path.write_bytes(b"[\n" + b",\n".join(json.dumps(e).encode() for e in _names(self._threads)) + END)
            self._ends[-1] = self._path.stat().st_size - len(END)
        with open(self._path, "r+b") as out:
            out.seek(list(self._ends.values())[-1])
            out.truncate()
            for step, spans in steps.items():
                if step not in self._ends:
                    out.writelines(b",\n" + json.dumps(_event(step, span)).encode() for span in spans)
                    self._ends[step] = out.tell()
            out.write(END)


def _thread(span: PhaseSpan) -> Thread:
    return (SLOTS + span.slots[0] if span.slots else CONTROL), span.actor


def _number(thread: Thread) -> int:
    """A thread's number: unique over processes, and the same in every process that writes."""
    return zlib.crc32(f"{thread[0]}/{thread[1]}".encode()) >> 1


def _event(step: int, span: PhaseSpan) -> dict[str, Any]:
    place = {"pid": _thread(span)[0], "tid": _number(_thread(span))}
    shape = {"ph": "i"} if span.role == DECISION else {"ph": "X", "dur": round((span.stop - span.start) * 1e6)}
    about = {**span.counts, "step": step, "actor": span.actor}
    return {"name": span.name, "cat": span.role, **shape, **place, "ts": round(span.start * 1e6), "args": about}


def _span(event: Any) -> tuple[int, PhaseSpan]:
    """The step and span that `_event` made it of. Raises KeyError for any other event."""
    counts, start, slot = event["args"], event["ts"] / 1e6, event["pid"] - SLOTS
    times = {"start": start, "stop": start + event.get("dur", 0) / 1e6}
    place = {"role": event["cat"], "slots": (slot,) if slot >= 0 else ()}
    step, actor = counts.pop("step"), counts.pop("actor")
    return step, PhaseSpan(name=event["name"], actor=actor, counts=counts, **times, **place)


def _names(threads: Iterable[Thread]) -> Iterable[dict[str, Any]]:
    """The names of processes and threads, in their order: the driver, controllers, then slot by slot."""
    kinds = sorted(threads, key=lambda t: (t[0], t[1] != "driver", t[1].rpartition(" ")[0], len(t[1]), t[1]))
    for order, (pid, actor) in enumerate(kinds):
        process = "driver, controllers" if pid == CONTROL else f"slot {pid - SLOTS}"
        for kind, name, index in (("process", process, pid), ("thread", actor, order)):
            at = {"ph": "M", "pid": pid, "tid": _number((pid, actor))}
            yield {"name": f"{kind}_name", **at, "args": {"name": name}}
            yield {"name": f"{kind}_sort_index", **at, "args": {"sort_index": index}}

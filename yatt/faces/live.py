"""What the live page of one run shows: the report's sections as they are now, and its conversations page by page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from yatt.errors import ConfigError
from yatt.faces.follow import FollowedRun
from yatt.faces.gantt import devices
from yatt.faces.page import page, render
from yatt.faces.report import Section, Told, sections, settings_section
from yatt.faces.samples import Place, Query, Samples
from yatt.faces.trajectories import conversation, same

SCRIPTS = ("page.js", "live.js")
KINDS = {"step": "rollout", "eval": "held-out"}


class LiveRun:
    """One run that is watched. A section has the number of the revision in which it became what it is, so that a page
    asks for those that have changed since."""

    def __init__(self, name: str, path: Path) -> None:
        self.name = name
        self._followed = FollowedRun(path)
        self._samples = Samples(self._followed.run.samples)
        self._shown: tuple[int, str] | None = None
        self._drawn: tuple[int, Markup] = (-1, Markup())
        self._sections: dict[str, tuple[int, Section]] = {}
        self._revision = 0

    def told(self) -> Told:
        """What the run's folder says now."""
        with self._followed.lock:
            return self._followed.refresh()

    def page(self, *, once: bool = False) -> str:
        """The whole page; one that is served `once` does not ask for more."""
        with self._followed.lock:
            self._refresh()
            return page(
                "live.html",
                title=f"{self.name} · YATT",
                scripts=SCRIPTS,
                live=True,
                once=once,
                revision=self._revision,
                sections=[section for _, section in self._sections.values()],
                settings=settings_section(self._followed.told),
                newest=self._samples.newest(),
                conversations=self.conversations({}),
            )

    def parts(self, since: int) -> dict[str, Any]:
        """The sections that have changed since a revision."""
        with self._followed.lock:
            self._refresh()
            changed = {id: section.body for id, (at, section) in self._sections.items() if at > since}
            return {"revision": self._revision, "parts": changed, "newest": self._samples.newest()}

    def devices(self, step: int | None) -> Markup:
        """The devices from a step on, or at both ends of the run."""
        with self._followed.lock:
            self._followed.refresh()
            return devices(self._followed.spans, chosen=step)

    def conversations(self, asked: Mapping[str, str]) -> Markup:
        """A page of conversations, newest first. Raises ConfigError for a filter that is none."""
        found = self._samples.find(query_of(asked), _place(asked.get("after", "")))
        hidden = same([record for _, record in found.records])
        shown = [
            conversation(record, f"{KINDS[kind]} of step {record['step']}, sibling {record['sibling']}", hidden)
            for kind, record in found.records
        ]
        on = "" if found.on is None else f"{found.on.step},{found.on.line},{found.on.name}"
        return render("conversations.html", shown=shown, on=on, searched=found.searched, more="after" in asked)

    def _refresh(self) -> None:
        followed = self._followed
        told, state = followed.refresh(), followed.state()
        if self._shown == (followed.version, state):
            return
        self._shown = (followed.version, state)
        if self._drawn[0] != followed.spans_version:
            self._drawn = (followed.spans_version, devices(followed.spans))
        self._revision += 1
        for section in sections(told, self._drawn[1], state):
            if section.id not in self._sections or self._sections[section.id][1] != section:
                self._sections[section.id] = (self._revision, section)


def query_of(asked: Mapping[str, str]) -> Query:
    """The filter in an address. Raises ConfigError naming what is no number."""

    def amount(key: str) -> float | None:
        text = asked.get(key, "").strip()
        try:
            return float(text) if text else None
        except ValueError:
            raise ConfigError(f"{key}={text[:40]} is not a number") from None

    steps = {key: None if (value := amount(key)) is None else int(value) for key in ("first", "last")}
    kind = asked.get("kind", "")
    return Query(
        words=asked.get("words", "").strip(),
        low=amount("low"),
        high=amount("high"),
        kind=kind if kind in KINDS else "",
        failed=asked.get("failed") == "on",
        **steps,
    )


def _place(text: str) -> Place | None:
    """Where a page ended, as its address says it. Raises ConfigError for any other text."""
    if not text:
        return None
    step, _, rest = text.partition(",")
    line, _, name = rest.partition(",")
    if not (step.isdecimal() and line.isdecimal() and name):
        raise ConfigError(f"after={text[:40]} is no place to go on from")
    return Place(int(step), name, int(line))

"""The placement section of the report: how the slots were split over the run, and the decisions that split them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from markupsafe import Markup

from yatt.faces.chart import stacked_chart
from yatt.faces.gantt import role_colours
from yatt.faces.page import render, table

Row = Mapping[str, Any]
FIRST, LAST = 10, 30
"""Decisions listed; those between are counted."""
LONGEST_TEXT = 400


def placement_section(rows: Sequence[Row]) -> Markup:
    """A chart of the slots of each role and a table of the decisions; nothing where nothing is placed."""
    means = {row["step"]: mean_split(row) for row in rows if row.get("decisions")}
    roles = list(dict.fromkeys(role for mean in means.values() for role in mean))
    layers = {role: [(step, mean.get(role, 0.0)) for step, mean in means.items()] for role in roles}
    chart = stacked_chart("Slots of each role", "slots, mean over the rollout", layers, role_colours(roles))
    return render("charts.html", charts=[chart, _table(list(_changes(rows)))]) if chart else chart


def mean_split(row: Row) -> dict[str, float]:
    """Slots of each role, weighted by time, from the step's first decision to the end of its rollout."""
    decisions = row["decisions"]
    start, last = decisions[0]["at"], decisions[-1]["at"]
    ends = [decision["at"] for decision in decisions] + [max(last, start + row["phases"].get("rollout", 0.0))]
    if ends[-1] == start:
        return dict(decisions[-1]["slots"])
    mean: Counter[str] = Counter()
    for decision, (begin, end) in zip(decisions, pairwise(ends), strict=True):
        for role, slots in decision["slots"].items():
            mean[role] += slots * (end - begin) / (ends[-1] - start)
    return dict(mean)


def _changes(rows: Sequence[Row]) -> Iterator[tuple[int, float, Row]]:
    """(step, seconds into its rollout, decision) of the decisions after which the split was another one."""
    before = None
    for row in rows:
        for decision in row.get("decisions") or ():
            if decision["slots"] != before:
                yield row["step"], decision["at"] - row["decisions"][0]["at"], decision
            before = decision["slots"]


def _table(changes: Sequence[tuple[int, float, Row]]) -> Markup:
    left = max(0, len(changes) - FIRST - LAST)
    rows: list[dict[str, Any]] = [
        {"cells": [step, f"{seconds:.1f} s", _slots(decision), decision["text"][:LONGEST_TEXT]]}
        for step, seconds, decision in (*changes[:FIRST], *changes[FIRST + left :])
    ]
    if left:
        rows.insert(FIRST, {"cells": [f"{left:,} more, in metrics.jsonl"], "span": 4})
    return table(("step", "at", "slots", "why"), rows, title="Decisions", kind="wide", wrapped=(3,))


def _slots(decision: Row) -> str:
    return ", ".join(f"{role} {slots}" for role, slots in decision["slots"].items())

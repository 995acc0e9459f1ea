"""The placement section of the report: how the slots were split over the run, and the decisions that split them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from itertools import pairwise
from typing import Any

from yatt.faces.chart import stacked_chart
from yatt.faces.gantt import role_colours

Row = Mapping[str, Any]
FIRST, LAST = 10, 30
"""Decisions listed; those between are counted."""
LONGEST_TEXT = 400


def placement_section(rows: Sequence[Row]) -> str:
    """A chart of the slots of each role and a table of the decisions; nothing where nothing is placed."""
    means = {row["step"]: mean_split(row) for row in rows if row.get("decisions")}
    roles = list(dict.fromkeys(role for mean in means.values() for role in mean))
    layers = {role: [(step, mean.get(role, 0.0)) for step, mean in means.items()] for role in roles}
    chart = stacked_chart("Slots of each role", "slots, mean over the rollout", layers, role_colours(roles))
    return f'<div class="charts">{chart}{_table(list(_changes(rows)))}</div>' if chart else ""


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


def _table(changes: Sequence[tuple[int, float, Row]]) -> str:
    left = max(0, len(changes) - FIRST - LAST)
    lines = [
        f"<tr><td>{step}</td><td>{seconds:.1f} s</td><td>{escape(_slots(decision))}</td>"
        f'<td class="why">{escape(decision["text"][:LONGEST_TEXT])}</td></tr>'
        for step, seconds, decision in (*changes[:FIRST], *changes[FIRST + left :])
    ]
    if left:
        lines.insert(FIRST, f'<tr><td colspan="4">{left:,} more, in metrics.jsonl</td></tr>')
    head = "".join(f"<th>{name}</th>" for name in ("step", "at", "slots", "why"))
    return f'<figure class="card wide"><h3>Decisions</h3><table><tr>{head}</tr>{"".join(lines)}</table></figure>'


def _slots(decision: Row) -> str:
    return ", ".join(f"{role} {slots}" for role, slots in decision["slots"].items())

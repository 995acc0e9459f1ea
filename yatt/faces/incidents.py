"""The report's section on what died in a run, and what was done about it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

Row = Mapping[str, Any]
FIRST, LAST = 20, 60
"""Incidents listed; those between are counted."""
LONGEST_TEXT = 600


def incidents_section(rows: Sequence[Row]) -> str:
    """A table; nothing where nothing happened."""
    told = [(row["step"], incident) for row in rows for incident in row.get("incidents") or ()]
    if not told:
        return ""
    left = max(0, len(told) - FIRST - LAST)
    lines = [
        f"<tr><td>{step}</td><td>{_clock(incident['at'])}</td><td>{escape(incident['process'])}</td>"
        f'<td class="why">{escape(incident["text"][:LONGEST_TEXT])}</td></tr>'
        for step, incident in (*told[:FIRST], *told[FIRST + left :])
    ]
    if left:
        lines.insert(FIRST, f'<tr><td colspan="4">{left:,} more, in metrics.jsonl</td></tr>')
    head = "".join(f"<th>{name}</th>" for name in ("before the end of step", "at (UTC)", "process", "what happened"))
    return f'<figure class="card wide"><table><tr>{head}</tr>{"".join(lines)}</table></figure>'


def _clock(at: float) -> str:
    return time.strftime("%H:%M:%S", time.gmtime(at))

"""The report's section on what died in a run, and what was done about it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from yatt.faces.page import table

Row = Mapping[str, Any]
FIRST, LAST = 20, 60
"""Incidents listed; those between are counted."""
LONGEST_TEXT = 600


def incidents_section(rows: Sequence[Row]) -> Markup:
    """A table; nothing where nothing happened."""
    told = [(row["step"], incident) for row in rows for incident in row.get("incidents") or ()]
    if not told:
        return Markup()
    left = max(0, len(told) - FIRST - LAST)
    lines: list[dict[str, Any]] = [
        {"cells": [step, _clock(incident["at"]), incident["process"], incident["text"][:LONGEST_TEXT]]}
        for step, incident in (*told[:FIRST], *told[FIRST + left :])
    ]
    if left:
        lines.insert(FIRST, {"cells": [f"{left:,} more, in metrics.jsonl"], "span": 4})
    head = ("before the end of step", "at (UTC)", "process", "what happened")
    return table(head, lines, kind="wide", wrapped=(3,))


def _clock(at: float) -> str:
    return time.strftime("%H:%M:%S", time.gmtime(at))

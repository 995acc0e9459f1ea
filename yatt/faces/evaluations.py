"""Evaluations in the report: lines with their intervals, and a table of sources."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from yatt.faces.chart import Series, percent
from yatt.faces.page import table

Row = Mapping[str, Any]
SHARES = {
    "accuracy, greedy": "accuracy_greedy",
    "accuracy, sampled": "accuracy_sampled",
    "pairs in order, held-out": "held_out_pair_accuracy",
}
MODES = ("accuracy_greedy", "accuracy_sampled")


def points_of(rows: Sequence[Row], key: str) -> list[tuple[float, float]]:
    """(step, value) where there is one."""
    return [(row["step"], row[key]) for row in rows if row.get(key) is not None]


def measured(rows: Sequence[Row], name: str, key: str) -> Series:
    """A line of what evaluations measured, in the band of their intervals."""
    rows = [row for row in rows if row.get(key) is not None]
    band = [_interval(row.get("evaluation"), key) or (row[key], row[key]) for row in rows]
    return Series(name=name, points=points_of(rows, key), band=band)


def interval_text(evaluation: Row, key: str) -> str:
    """The 95 % interval of a share in brackets; nothing where there is none."""
    ends = _interval(evaluation, key)
    return f" (95 %: {percent(ends[0])} to {percent(ends[1])})" if ends else ""


def by_source(rows: Sequence[Row]) -> Markup:
    """Accuracy for each source: in the first evaluation, and in the last; nothing where nobody asked."""
    told = [row["evaluation"]["sources"] for row in rows if (row.get("evaluation") or {}).get("sources")]
    if not told:
        return Markup()
    lines = [{"cells": list(_cells(source, told[0].get(source), now))} for source, now in told[-1].items()]
    return table(("source", "prompts", "greedy", "sampled, mean"), lines)


def _cells(source: str, first: Row | None, now: Row) -> Iterator[str]:
    yield source
    yield f"{now['prompts']:,}"
    for mode in MODES:
        if now.get(mode) is None:
            yield ""
            continue
        before = f"{percent(first[mode])} → " if first and first.get(mode) is not None else ""
        yield f"{before}{percent(now[mode])}{interval_text(now, mode)}"


def _interval(evaluation: Row | None, key: str) -> tuple[float, float] | None:
    ends = ((evaluation or {}).get("intervals") or {}).get(key.removeprefix("held_out_"))
    return (ends[0], ends[1]) if ends else None

"""Runs beside each other: their curves in one chart each, and the settings in which they differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from markupsafe import Markup

from yatt.faces.chart import Series, line_chart
from yatt.faces.curves import ANYWHERE, FROM_ZERO
from yatt.faces.evaluations import points_of
from yatt.faces.page import render, table
from yatt.faces.report import Told

MOST_RUNS = 7
"""Runs in one comparison: as many as there are colours."""
LONGEST_VALUE = 80
COMPARED = (
    ("Reward", "mean", "reward_mean", ANYWHERE),
    ("Accuracy on held-out prompts, greedy", "share", "accuracy_greedy", FROM_ZERO),
    ("Accuracy on held-out prompts, sampled", "share", "accuracy_sampled", FROM_ZERO),
    ("Loss", "loss", "loss", ANYWHERE),
    ("Held-out loss", "loss", "held_out_loss", ANYWHERE),
    ("Pairs in the right order, held-out", "share", "held_out_pair_accuracy", FROM_ZERO),
    ("Response length", "tokens, mean", "response_length_mean", FROM_ZERO),
    ("Entropy", "nats / token", "entropy", FROM_ZERO),
    ("KL to the reference", "nats / token", "kl_ref", FROM_ZERO),
    ("Gradient norm", "L2 norm", "grad_norm", FROM_ZERO),
    ("Throughput", "tokens / s", "tokens_per_s", FROM_ZERO),
    ("Time per step", "seconds", "seconds", FROM_ZERO),
    ("Groups dropped", "groups", "groups_dropped", FROM_ZERO),
)


def compared(runs: Mapping[str, Told]) -> Markup:
    """The comparison of these runs, by the names they are shown under."""
    drawn = []
    for title, unit, key, zero in COMPARED:
        series = []
        for name, told in runs.items():
            rows = [row for row in told.rows if row["step"] > 0 or key.startswith(("accuracy", "held_out"))]
            if any(row.get(key) for row in rows):
                series.append(Series(name=name, points=points_of(rows, key)))
        drawn.append(line_chart(title, unit, series, zero=zero))
    return render("charts.html", charts=drawn) + _differences(runs)


def _differences(runs: Mapping[str, Told]) -> Markup:
    """The settings whose values are not the same everywhere."""
    values = {name: dict(_leaves(told.config)) for name, told in runs.items()}
    keys = dict.fromkeys(key for leaves in values.values() for key in leaves)
    rows = [
        {"cells": [key, *(str(leaves.get(key, "—"))[:LONGEST_VALUE] for leaves in values.values())]}
        for key in keys
        if len({str(leaves.get(key, "—")) for leaves in values.values()}) > 1
    ]
    if not rows:
        return Markup()
    return table(("setting", *runs), rows, title="Settings that differ", kind="modes", wrapped=range(1, len(runs) + 1))


def _leaves(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value

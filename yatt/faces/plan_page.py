"""`yatt plan --html`: what ran where in the simulated steps, and what more devices bring, on one page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from markupsafe import Markup

from yatt.faces import page as pages
from yatt.faces.chart import Series, line_chart
from yatt.faces.gantt import STEPS, devices, role_colours
from yatt.faces.plan_words import COLUMNS, Plan, cells, choices, remarks
from yatt.faces.timeline import Steps, mark
from yatt.simulation.simulate import SimulationReport

Reports = Mapping[int, Mapping[str, SimulationReport]]
"""By number of devices and mode."""


def page(name: str, head: Mapping[str, Any], plans: Sequence[Plan], reports: Reports) -> str:
    """The terminal's words, step times and idle shares over the numbers of devices, and the last steps of each mode on
    the fewest."""
    count, simulated = next(iter(reports.items()))
    drawn = (("step_s", "Seconds of a step", "s"), ("idle", "Idle share", "of device time"))
    return pages.page(
        "plan.html",
        title=f"{name} · YATT plan",
        name=name,
        choices=list(choices(plans)),
        table=_table(plans),
        remarks=list(remarks(head, plans)),
        curves=[_curve(plans, *one) for one in drawn] if len(plans) > 1 else [],
        modes=[
            (f"{mode} on {count} devices", devices(_steps(report), _split(report)))
            for mode, report in simulated.items()
        ],
    )


def _table(plans: Sequence[Plan]) -> Markup:
    """A row per number of devices and mode, the chosen ones bold."""
    rows = [
        {"cells": cells(plan, name), "class": "chosen" if name == plan["choice"] else ""}
        for plan in plans
        for name in plan["modes"]
    ]
    return pages.table(COLUMNS, rows, title="Modes", kind="modes")


def _curve(plans: Sequence[Plan], key: str, title: str, unit: str) -> Markup:
    names = dict.fromkeys(mode for plan in plans for mode in plan["modes"])
    series = [
        Series(name=name, points=[(p["devices"], p["modes"][name][key]) for p in plans if name in p["modes"]])
        for name in names
    ]
    return line_chart(title, unit, series, share=key == "idle", zero=True, along="devices")


def _steps(report: SimulationReport) -> Steps:
    """The last steps as a timeline has them: a span on several slots is one on each."""
    return {
        step.step: [
            replace(span, slots=slots)
            for span in (*step.spans, *map(mark, step.decisions))
            for slots in (zip(span.slots) if span.slots else [()])
        ]
        for step in report.steps[-STEPS:]
    }


def _split(report: SimulationReport) -> Markup:
    """Slots of each role over the rollouts."""
    roles = dict.fromkeys(role for step in report.steps for d in step.decisions for role in d.slots)
    series = [
        Series(name=role, points=[(s.step, s.decisions[0].slots[role]) for s in report.steps if s.decisions])
        for role in roles
    ]
    title, colours = "Slots at the beginning of a rollout", role_colours(roles)
    return line_chart(title, "slots", series, zero=True, colours=colours) if len(roles) > 1 else Markup()

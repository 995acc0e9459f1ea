"""`yatt plan --html`: what ran where in the simulated steps, and what more devices bring, on one page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from html import escape
from typing import Any

from yatt.faces.chart import Series, line_chart
from yatt.faces.gantt import STEPS, devices
from yatt.faces.page import PAGE, SCRIPT, STYLE
from yatt.faces.timeline import Steps, mark
from yatt.simulation.simulate import SimulationReport


def page(title: str, plans: Sequence[Mapping[str, Any]], reports: Mapping[int, Mapping[str, SimulationReport]]) -> str:
    """Step times and idle shares over the numbers of devices, and the last steps of each mode on the fewest."""
    count, found = next(iter(reports.items()))
    body = [f"<h1>{escape(title)}</h1>"]
    body += [f"<p>choose <b>{p['choice']}</b> on {p['devices']} devices</p>" for p in plans]
    if len(plans) > 1:
        charts = [
            _curve(plans, "step_s", "Seconds of a step", "s"),
            _curve(plans, "idle", "Idle share", "of device time"),
        ]
        body.append(f'<h2>More devices</h2><div class="charts">{"".join(charts)}</div>')
    for mode, report in found.items():
        split = _split(report)
        body.append(f"<h2>{mode} on {count} devices</h2>{devices(_steps(report))}")
        body.append(f'<div class="charts">{split}</div>')
    return PAGE.format(title=escape(title), style=STYLE, body="".join(body), script=SCRIPT)


def _curve(plans: Sequence[Mapping[str, Any]], key: str, title: str, unit: str) -> str:
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


def _split(report: SimulationReport) -> str:
    """Slots of each role over the rollouts."""
    roles = dict.fromkeys(role for step in report.steps for d in step.decisions for role in d.slots)
    series = [
        Series(name=role, points=[(s.step, s.decisions[0].slots[role]) for s in report.steps if s.decisions])
        for role in roles
    ]
    return line_chart("Slots at the beginning of a rollout", "slots", series, zero=True) if len(roles) > 1 else ""

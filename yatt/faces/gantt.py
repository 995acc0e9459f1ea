"""The devices section of the report: what ran where in the first and the last steps, and how much stood idle."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from html import escape
from itertools import cycle
from statistics import fmean

from yatt.faces.chart import COLOURS, Series, line_chart, number, percent, ticks
from yatt.faces.metrics import union
from yatt.faces.timeline import DECISION, Steps
from yatt.placement.plan import POLICY, TRAINER
from yatt.reports import PhaseSpan, in_step

KINDS: Mapping[str, Sequence[str]] = {
    "sampling": ("sample", "rollout"),
    "training": ("update", "train"),
    "weights": ("export", "load", "sync"),
    "sleep, wake": ("sleep", "wake", "offload", "onload"),
    "judging": ("judge",),
    "evaluation": ("evaluate",),
    "other": ("",),
}
"""Names of spans that share a colour, in the order of the colours."""
OF_SPAN = {name: colour for colour, names in zip(COLOURS, KINDS.values(), strict=True) for name in names}
WHOLE = "whole slot"
OF_ROLE = {POLICY: OF_SPAN["sample"], TRAINER: OF_SPAN["update"], WHOLE: OF_SPAN[""]}
OF_JUDGES = [OF_SPAN[name] for name in ("judge", "load", "sleep", "evaluate")]
"""A role has the colour of its work, everywhere; judges after the first have one that no role has."""
STEPS = 2
MOST_SLOTS = 16
MOST_BARS = 60
"""Bars of one lane; of more, the longest are drawn."""
LANE, BAR, TOP = 24, 16, 22

Lane = tuple[int, str]
"""A slot and a role on it; slot -1 is the loop of controller 0 and the driver."""
Homes = Mapping[str, Sequence[int]]
"""The slots where something of each role lives; of role "", all slots."""
Window = tuple[float, float]


def role_colours(roles: Iterable[str]) -> dict[str, str]:
    """The colours of these roles."""
    judges = [role for role in dict.fromkeys(roles) if role not in OF_ROLE]
    return {**OF_ROLE, **dict(zip(judges, cycle(OF_JUDGES)))}


def devices(steps: Steps, more: str = "") -> str:
    """Gantt charts, a table and a curve of idle shares, and `more` cards; nothing where no device told what it did."""
    windows = {step: window for step, spans in sorted(steps.items()) if (window := _window(spans))}
    every = [span for spans in steps.values() for span in spans]
    homes = _homes(span for step in windows for span in steps[step])
    if not homes[""]:
        return ""
    parts = [part for part in (list(windows)[:STEPS], list(windows)[STEPS:][-STEPS:]) if part]
    charts = [_gantt({step: windows[step] for step in part}, every, homes) for part in parts]
    busy = {step: _busy(steps[step], window) for step, window in windows.items()}
    idle = _table(busy, windows, homes) + _curve(busy, homes)
    note = f'<p class="meta">{MOST_SLOTS} of {len(homes[""])} slots are drawn; means are over all.</p>'
    return f'{"".join(charts)}<div class="charts">{idle}{more}</div>' + (note if len(homes[""]) > MOST_SLOTS else "")


def _homes(spans: Iterable[PhaseSpan]) -> Homes:
    """The policy first, the trainer last, judges between."""
    lanes = sorted({(slot, span.role) for span in spans for slot in span.slots})
    roles = sorted({role for _, role in lanes}, key=lambda role: (role == TRAINER, role != POLICY, role))
    homes = {role: [slot for slot, other in lanes if other == role] for role in roles}
    return homes | {"": sorted({slot for slot, _ in lanes})}


def _window(spans: Sequence[PhaseSpan]) -> Window | None:
    """When the controllers were in the step; the driver evaluates and saves outside it. Slots move within rollouts, and
    within evaluations, which are not in the step."""
    loop = [span for span in in_step(spans) if span.start < span.stop]
    return (min(s.start for s in loop), max(s.stop for s in loop)) if loop else None


def _lanes(spans: Iterable[PhaseSpan], window: Window) -> dict[Lane, list[PhaseSpan]]:
    """The spans within the window, by slot and role."""
    lanes: defaultdict[Lane, list[PhaseSpan]] = defaultdict(list)
    for span in spans:
        start, stop = max(span.start, window[0]), min(span.stop, window[1])
        if start < stop and (span.slots or span.actor in ("driver", "controller 0")):
            lanes[span.slots[0] if span.slots else -1, span.role].append(replace(span, start=start, stop=stop))
    return lanes


def _busy(spans: Sequence[PhaseSpan], window: Window) -> dict[Lane, float]:
    """Share of the step in which a role on a slot did something; role "" is any role."""
    lanes = _lanes(spans, window)
    for slot in {slot for slot, _ in lanes if slot >= 0}:
        lanes[slot, ""] = [span for lane, spans in lanes.items() if lane[0] == slot for span in spans]
    return {lane: union(spans) / (window[1] - window[0]) for lane, spans in lanes.items()}


def _curve(busy: Mapping[int, Mapping[Lane, float]], homes: Homes) -> str:
    def idle(lanes: Mapping[Lane, float], role: str) -> float:
        return 1 - fmean(lanes.get((slot, role), 0.0) for slot in homes[role])

    series = [
        Series(name=role or WHOLE, points=[(step, idle(lanes, role)) for step, lanes in busy.items()]) for role in homes
    ]
    title, colours = "Idle share, mean over slots", role_colours(filter(None, homes))
    return line_chart(title, "share of the step", series, share=True, colours=colours)


def _table(busy: Mapping[int, Mapping[Lane, float]], windows: Mapping[int, Window], homes: Homes) -> str:
    """Idle shares over all recorded steps, a step counted by its length; of a role, where it lives."""
    seconds = {step: stop - start for step, (start, stop) in windows.items()}

    def cell(among: Iterable[int], role: str) -> str:
        if not (slots := [slot for slot in among if slot in homes[role]]):
            return "<td></td>"
        work = sum(fmean(busy[n].get((slot, role), 0.0) for slot in slots) * s for n, s in seconds.items())
        share = 1 - work / sum(seconds.values())
        return f'<td>{percent(share)}<i style="width:{share:.1%}"></i></td>'

    rows = {"all slots": homes[""], **{f"slot {slot}": [slot] for slot in homes[""][:MOST_SLOTS]}}
    body = [f"<tr><th>{n}</th>{''.join(cell(among, role) for role in homes)}</tr>" for n, among in rows.items()]
    head = "<th></th>" + "".join(f"<th>{escape(role) or WHOLE}</th>" for role in homes)
    title = f"Idle share, {len(windows)} recorded steps"
    return f'<figure class="card"><h3>{title}</h3><table><tr>{head}</tr>{"".join(body)}</table></figure>'


def _gantt(windows: Mapping[int, Window], spans: Sequence[PhaseSpan], homes: Homes) -> str:
    """A lane per slot and role over these steps, and one of the loop; idle is what no bar covers. A line across them is
    a decision on placement."""
    start, stop = min(w[0] for w in windows.values()), max(w[1] for w in windows.values())
    bars = _lanes(spans, (start, stop))
    slots = homes[""][:MOST_SLOTS]
    lanes = [(-1, ""), *((slot, role) for slot in slots for role in homes if role and slot in homes[role])]
    bottom = TOP + LANE * len(lanes)

    def x(time: float) -> str:
        return f"{100 * (time - start) / (stop - start):.3f}%"

    marks = []
    for at, lane in enumerate(lanes):
        place = f'y="{TOP + LANE * at + (LANE - BAR) / 2:g}" height="{BAR}"'
        marks.append(f'<rect class="idle" width="100%" {place}/>')
        for span in sorted(bars.get(lane, []), key=lambda s: s.start - s.stop)[:MOST_BARS]:
            width = max(0.15, 100 * (span.stop - span.start) / (stop - start))
            bar = f'<rect rx="2" x="{x(span.start)}" width="{width:.3f}%" {place}'
            marks.append(f'{bar} fill="{_colour(span)}"><title>{escape(_tip(span, start))}</title></rect>')
    moves = [span for span in spans if span.role == DECISION and start <= span.start <= stop][:MOST_BARS]
    for move in moves:
        moved = x(move.start)
        line = (
            f'<line x1="{moved}" x2="{moved}" y1="{TOP}" y2="{bottom}"/>'
            f'<circle r="5" cx="{moved}" cy="{TOP + LANE / 2:g}"/>'
        )
        marks.append(f'<g class="move"><title>{escape(_tip(move, start))}</title>{line}</g>')
    for step, (begun, _) in windows.items():
        marks.append(f'<line class="cut" x1="{x(begun)}" x2="{x(begun)}" y1="4" y2="{bottom}"/>')
        marks.append(f'<text class="step" x="{x(begun)}" dx="5" y="14">step {step}</text>')
    for tick in ticks(0.0, stop - start):
        marks.append(
            f'<text class="{"x" if tick else "step"}" x="{x(start + tick)}" y="{bottom + 14}">{tick:g} s</text>'
        )
    title = f"Step{'s' if len(windows) > 1 else ''} {' and '.join(map(str, windows))}"
    drawn = {_colour(span): True for lane in lanes for span in bars.get(lane, [])} | {"var(--ink)": bool(moves)}
    kinds = {**{kind: OF_SPAN[names[0]] for kind, names in KINDS.items()}, "decision": "var(--ink)"}
    swatches = [f'<li><i style="background:{c}"></i>{kind}</li>' for kind, c in kinds.items() if drawn.get(c)]
    labels = ["<li>loop</li>", *(f"<li>slot {slot} {escape(role)}</li>" for slot, role in lanes[1:])]
    return (
        f'<figure class="card gantt"><figcaption><h3>{title}</h3><ul>{"".join(swatches)}</ul></figcaption>'
        f'<div><ol>{"".join(labels)}</ol><svg height="{bottom + 20}" role="img" '
        f'aria-label="What ran where in {title.lower()}">{"".join(marks)}</svg></div></figure>'
    )


def _colour(span: PhaseSpan) -> str:
    name = "judge" if span.name == "sample" and span.role != POLICY else span.name
    return OF_SPAN.get(name, OF_SPAN[""])


def _tip(span: PhaseSpan, origin: float) -> str:
    lasted = f"{number(span.stop - span.start)} s from" if span.role != DECISION else "at"
    lines = [f"{span.actor}: {span.name}", f"{lasted} {number(span.start - origin)} s"]
    return "\n".join([*lines, *(f"{count:,} {name}" for name, count in span.counts.items())])

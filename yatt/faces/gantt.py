"""The devices section of the report: what ran where in the first and the last steps, and how much stood idle."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import cycle
from statistics import fmean

from markupsafe import Markup

from yatt.faces.chart import COLOURS, Series, line_chart, number, percent, ticks
from yatt.faces.metrics import union
from yatt.faces.page import render
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
NOTHING = Markup()


def role_colours(roles: Iterable[str]) -> dict[str, str]:
    """The colours of these roles."""
    judges = [role for role in dict.fromkeys(roles) if role not in OF_ROLE]
    return {**OF_ROLE, **dict(zip(judges, cycle(OF_JUDGES)))}


def devices(steps: Steps, more: Markup = NOTHING, chosen: int | None = None) -> Markup:
    """Gantt charts, a table and a curve of idle shares, and `more` cards; nothing where no device told what it did. The
    charts are of the first and the last steps, or of the `chosen` one and the next."""
    windows = {step: window for step, spans in sorted(steps.items()) if (window := _window(spans))}
    every = [span for spans in steps.values() for span in spans]
    homes = _homes(span for step in windows for span in steps[step])
    if not homes[""]:
        return NOTHING
    parts = [part for part in (list(windows)[:STEPS], list(windows)[STEPS:][-STEPS:]) if part]
    if chosen is not None:
        parts = [part for part in [[step for step in windows if step >= chosen][:STEPS]] if part] or parts
    busy = {step: _busy(steps[step], window) for step, window in windows.items()}
    left_out = f"{MOST_SLOTS} of {len(homes[''])} slots are drawn; means are over all."
    return render(
        "devices.html",
        charts=[_gantt({step: windows[step] for step in part}, every, homes) for part in parts],
        note=left_out if len(homes[""]) > MOST_SLOTS else "",
        title=f"Idle share, {len(windows)} recorded steps",
        roles=[role or WHOLE for role in homes],
        rows=_idle_rows(busy, windows, homes),
        curve=_curve(busy, homes),
        more=more,
    )


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


def _curve(busy: Mapping[int, Mapping[Lane, float]], homes: Homes) -> Markup:
    def idle(lanes: Mapping[Lane, float], role: str) -> float:
        return 1 - fmean(lanes.get((slot, role), 0.0) for slot in homes[role])

    series = [
        Series(name=role or WHOLE, points=[(step, idle(lanes, role)) for step, lanes in busy.items()]) for role in homes
    ]
    title, colours = "Idle share, mean over slots", role_colours(filter(None, homes))
    return line_chart(title, "share of the step", series, share=True, colours=colours)


def _idle_rows(
    busy: Mapping[int, Mapping[Lane, float]], windows: Mapping[int, Window], homes: Homes
) -> list[tuple[str, list[dict[str, str] | None]]]:
    """Idle shares over all recorded steps, a step counted by its length; of a role, where it lives."""
    seconds = {step: stop - start for step, (start, stop) in windows.items()}

    def cell(among: Iterable[int], role: str) -> dict[str, str] | None:
        if not (slots := [slot for slot in among if slot in homes[role]]):
            return None
        work = sum(fmean(busy[n].get((slot, role), 0.0) for slot in slots) * s for n, s in seconds.items())
        return {"text": percent(1 - work / sum(seconds.values()))}

    rows = {"all slots": homes[""], **{f"slot {slot}": [slot] for slot in homes[""][:MOST_SLOTS]}}
    return [(name, [cell(among, role) for role in homes]) for name, among in rows.items()]


def _gantt(windows: Mapping[int, Window], spans: Sequence[PhaseSpan], homes: Homes) -> Markup:
    """A lane per slot and role over these steps, and one of the loop; idle is what no bar covers. A line across them is
    a decision on placement."""
    start, stop = min(w[0] for w in windows.values()), max(w[1] for w in windows.values())
    bars = _lanes(spans, (start, stop))
    slots = homes[""][:MOST_SLOTS]
    lanes = [(-1, ""), *((slot, role) for slot in slots for role in homes if role and slot in homes[role])]
    bottom = TOP + LANE * len(lanes)
    moves = [span for span in spans if span.role == DECISION and start <= span.start <= stop][:MOST_BARS]

    def x(time: float) -> str:
        return f"{100 * (time - start) / (stop - start):.3f}%"

    def bar(span: PhaseSpan) -> dict[str, str]:
        width = max(0.15, 100 * (span.stop - span.start) / (stop - start))
        return {"x": x(span.start), "width": f"{width:.3f}%", "colour": _colour(span), "tip": _tip(span, start)}

    drawn = {_colour(span): True for lane in lanes for span in bars.get(lane, [])} | {"var(--ink)": bool(moves)}
    kinds = {**{kind: OF_SPAN[names[0]] for kind, names in KINDS.items()}, "decision": "var(--ink)"}
    return render(
        "gantt.html",
        title=f"Step{'s' if len(windows) > 1 else ''} {' and '.join(map(str, windows))}",
        swatches=[(kind, colour) for kind, colour in kinds.items() if drawn.get(colour)],
        labels=["loop", *(f"slot {slot} {role}" for slot, role in lanes[1:])],
        lanes=[
            {
                "place": Markup('y="{:g}" height="{}"').format(TOP + LANE * at + (LANE - BAR) / 2, BAR),
                "bars": [bar(s) for s in sorted(bars.get(lane, []), key=lambda s: s.start - s.stop)[:MOST_BARS]],
            }
            for at, lane in enumerate(lanes)
        ],
        moves=[{"x": x(move.start), "tip": _tip(move, start)} for move in moves],
        steps=[(x(begun), step) for step, (begun, _) in windows.items()],
        ticks=[(x(start + tick), f"{tick:g} s") for tick in ticks(0.0, stop - start)],
        **{"top": TOP, "bottom": bottom, "middle": f"{TOP + LANE / 2:g}"},
    )


def _colour(span: PhaseSpan) -> str:
    name = "judge" if span.name == "sample" and span.role != POLICY else span.name
    return OF_SPAN.get(name, OF_SPAN[""])


def _tip(span: PhaseSpan, origin: float) -> str:
    lasted = f"{number(span.stop - span.start)} s from" if span.role != DECISION else "at"
    lines = [f"{span.actor}: {span.name}", f"{lasted} {number(span.start - origin)} s"]
    return "\n".join([*lines, *(f"{count:,} {name}" for name, count in span.counts.items())])

"""Small SVG charts: lines with bands, and stacked bars. Colours are CSS variables of the page."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, pairwise
from statistics import fmean
from types import MappingProxyType
from typing import Any, Literal

from markupsafe import Markup

from yatt.faces.page import render

Point = tuple[float, float]
WIDTH, HEIGHT = 400, 218
LEFT, RIGHT, TOP, BOTTOM = 46, 386, 26, 182
MOST_POINTS = 240
MOST_BARS = 100
COLOURS = [f"var(--c{i})" for i in range(7)]
LARGEST = 1e300
"""Values beyond it are drawn there: sums and ranges of larger ones are no numbers any more."""
DASH = 12.0
"""Pixels from dash to dash of a line that covers another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Points (step, value) of one line; `band` has the ends of a band around each; `keep` is how a bucket of steps
    becomes one point where there are more than fit."""

    name: str
    points: Sequence[Point]
    band: Sequence[tuple[float, float]] | None = None
    keep: Literal["mean", "max"] = "mean"


@dataclass(frozen=True, slots=True)
class Axes:
    """From data to pixels. `whole`: what y counts has no halves."""

    x: tuple[float, float]
    y: tuple[float, float]
    whole: bool = False

    def px(self, x: float) -> float:
        return round(LEFT + (x - self.x[0]) / (self.x[1] - self.x[0]) * (RIGHT - LEFT), 1)

    def py(self, y: float) -> float:
        inside = min(max(y, self.y[0]), self.y[1])
        return round(BOTTOM - (inside - self.y[0]) / (self.y[1] - self.y[0]) * (BOTTOM - TOP), 1)


def line_chart(
    title: str,
    unit: str,
    series: Sequence[Series],
    *,
    share: bool = False,
    zero: bool = False,
    along: str = "step",
    colours: Mapping[str, str] = MappingProxyType({}),
    note: str = "",
    named: bool = False,
) -> Markup:
    """A card with one chart, or nothing where no series has a point. `share` is 0 to 100 %, `zero` starts at 0; `along`
    says what x is; `colours` are those of names that have their own; `note` stands below. A line that covers others is
    dashed; one that is alone has its name shown where it is `named`."""
    lines = {s.name: _thin(s, MOST_POINTS) for s in series if s.points}
    if not lines:
        return Markup()
    steps = [x for line in lines.values() for x, *_ in line]
    bounds = [end for line in lines.values() for _, *ends in line for end in ends]
    x_range = (min(steps), max(steps)) if min(steps) < max(steps) else (steps[0] - 0.5, steps[0] + 0.5)
    whole = not share and all(float(y).is_integer() for s in series for _, y in s.points)
    axes = Axes(x_range, (0.0, 1.0) if share else _range(bounds, zero=zero), whole)
    palette, drawn, marks = _palette(lines, colours), list[set[Point]](), list[dict[str, Any]]()
    for name, line in lines.items():
        colour = palette[name]
        if any(low < high for _, _, low, high in line):
            there = [f"{axes.px(x)},{axes.py(high)}" for x, _, _, high in line]
            back = [f"{axes.px(x)},{axes.py(low)}" for x, _, low, _ in reversed(line)]
            marks.append({"kind": "band", "colour": colour, "d": f"M{'L'.join(there + back)}Z"})
        at = [(axes.px(x), axes.py(y)) for x, y, *_ in line]
        covered = sum(2 * len(below.intersection(at)) > len(at) for below in drawn)
        drawn.append(set(at))
        long = DASH / 2**covered
        dash = f"{long:g} {DASH - long:g}" if covered else ""
        path = f"M{'L'.join(f'{x},{y}' for x, y in at)}"
        dots = at if len(at) <= 12 else []
        marks.append({"kind": "line", "colour": colour, "dash": dash, "d": path, "dots": dots})
    values = {name: {x: y for x, y, *_ in line} for name, line in lines.items()}
    return _card(title, unit, axes, marks, values, percent if share else number, palette, along, note, named)


def stacked_chart(
    title: str,
    unit: str,
    layers: Mapping[str, Sequence[Point]],
    colours: Mapping[str, str] = MappingProxyType({}),
    note: str = "",
) -> Markup:
    """A card with bars of stacked layers, all over the same steps; where they are many, neighbours share a bar."""
    thinned = {
        name: {x: y for x, y, *_ in _thin(Series(name=name, points=points), MOST_BARS)}
        for name, points in layers.items()
    }
    if not thinned or not (xs := sorted(next(iter(thinned.values())))):
        return Markup()
    step = min((b - a for a, b in pairwise(xs)), default=1.0)
    tops = [sum(layer[x] for layer in thinned.values()) for x in xs]
    axes = Axes((xs[0] - step / 2, xs[-1] + step / 2), _range(tops, zero=True))
    half = step * (0.46 if len(xs) <= 60 else 0.51)  # many bars with gaps between them would flicker
    palette, base, marks = _palette(thinned, colours), dict.fromkeys(xs, 0.0), []
    for name, layer in thinned.items():
        bars = []
        for x in xs:
            left, right = axes.px(max(x - half, axes.x[0])), axes.px(min(x + half, axes.x[1]))
            bottom, top = axes.py(base[x]), axes.py(base[x] + layer[x])
            base[x] += layer[x]
            bars.append(f"M{left},{bottom}V{top}H{right}V{bottom}Z")
        marks.append({"kind": "bars", "colour": palette[name], "d": "".join(bars)})
    return _card(title, unit, axes, marks, thinned, number, palette, note=note)


def number(value: float) -> str:
    """Three digits that matter, without needless exponents."""
    if value and (abs(value) < 1e-3 or abs(value) >= 1e6):
        return _short(f"{value:.2e}")
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def decimals(value: float, places: int = 3) -> str:
    """So many decimals; in a large number, three digits and an exponent."""
    return _short(f"{value:.2e}") if abs(value) >= 1e6 else f"{value:.{places}f}"


def _short(text: str) -> str:
    return text.replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")


def percent(value: float) -> str:
    return f"{value:.1%}"


def _palette(names: Iterable[str], own: Mapping[str, str]) -> dict[str, str]:
    """A colour for each name: its own, or the next that is nobody's."""
    taken = {own[name] for name in names if name in own}
    free = cycle([colour for colour in COLOURS if colour not in taken] or COLOURS)
    return {name: own[name] if name in own else next(free) for name in names}


def _card(
    title: str,
    unit: str,
    axes: Axes,
    marks: Sequence[Mapping[str, Any]],
    values: Mapping[str, Mapping[float, float]],
    show: Callable[[float], str],
    palette: Mapping[str, str],
    along: str = "step",
    note: str = "",
    named: bool = False,
) -> Markup:
    """The card around these marks: grid, tick labels, what the two axes are, and the numbers to point at."""
    xs = sorted({x for line in values.values() for x in line})
    table = {name: [show(line[x]) if x in line else "" for x in xs] for name, line in values.items()}
    hover = {"along": along, "x": [round(x) for x in xs], "px": [axes.px(x) for x in xs], "values": table}
    ends = ", ".join(f"{name} {line[0]} to {line[-1]}" for name, line in table.items())
    marked = ticks(*axes.y, whole=axes.whole)
    return render(
        "chart.html",
        title=title,
        unit=unit,
        along=along,
        note=note,
        label=f"{title}, {unit}, {along} {round(xs[0])} to {round(xs[-1])}: {ends}",
        hover=json.dumps(hover, separators=(",", ":")),
        swatches=[(name, palette[name]) for name in table] if named or len(table) > 1 else [],
        rows=[(axes.py(y), f"{y:.0%}" if show is percent else _short(f"{y:g}")) for y in marked],
        columns=[(axes.px(x), f"{x:,.0f}") for x in ticks(*axes.x, whole=True)],
        marks=marks,
        **{"width": WIDTH, "height": HEIGHT, "left": LEFT, "right": RIGHT, "top": TOP, "bottom": BOTTOM},
    )


def _thin(series: Series, most: int) -> list[tuple[float, float, float, float]]:
    """(step, value, ends of the band) for at most `most` buckets of equal numbers of points."""
    points = [(x, _drawable(y)) for x, y in series.points]
    band = [(_drawable(low), _drawable(high)) for low, high in series.band or [(y, y) for _, y in points]]
    size = math.ceil(len(points) / most)
    thin = []
    for start in range(0, len(points), size):
        xs, ys = zip(*points[start : start + size], strict=True)
        value = max(ys) if series.keep == "max" else fmean(ys)
        lows, highs = zip(*band[start : start + size], strict=True)
        thin.append((fmean(xs), value, fmean(lows), fmean(highs)))
    return thin


def _drawable(value: float) -> float:
    return min(max(value, -LARGEST), LARGEST)


def _range(ys: Sequence[float], *, zero: bool) -> tuple[float, float]:
    low, high = min(ys), max(ys)
    if zero:
        low, high = min(0.0, 1.05 * low), max(0.0, 1.05 * high)
        return (low, high) if high - low > 1 / LARGEST else (0.0, 1.0)
    pad = 0.06 * (high - low) or 0.1 * abs(high)
    pad = pad if pad > 1 / LARGEST else 0.5
    return low - pad, high + pad


def ticks(low: float, high: float, *, whole: bool = False) -> list[float]:
    """About four round numbers within [low, high]."""
    rough = (high - low) / 4
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(m * unit for m in (1, 2, 2.5, 5, 10) if m * unit >= rough * 0.999)
    step = max(1.0, math.ceil(step)) if whole else step
    first = math.ceil(low / step - 1e-9)
    return [float(f"{k * step:.12g}") for k in range(first, math.floor(high / step + 1e-9) + 1)]

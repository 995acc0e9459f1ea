"""Curves of a run, as a notebook shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from html import escape
from pathlib import Path
from typing import Any

from yatt.errors import ConfigError
from yatt.faces.chart import Series, line_chart
from yatt.faces.evaluations import points_of

USUAL = ("reward_mean", "accuracy_greedy", "accuracy_sampled", "loss", "held_out_loss", "response_length_mean")
OF_REWARDS = ("loss",)
"""Usual columns that say little where there are rewards."""
HEIGHT = 290
_PAGE = """<!doctype html><meta charset="utf-8"><title>{title}</title><style>
:root{{color-scheme:light dark;--ink:#1b1f26;--dim:#667080;--line:#e3e6eb;
--c0:#2f6fde;--c1:#d9730d;--c2:#12916a;--c3:#b03a8c;--c4:#7457e8;--c5:#8a6d3b;--c6:#7b8594}}
@media(prefers-color-scheme:dark){{:root{{--ink:#e6e9ee;--dim:#97a1b0;--line:#2d343f}}}}
body{{margin:0;color:var(--ink);font:14px system-ui,sans-serif;display:flex;flex-wrap:wrap;gap:12px}}
figure{{margin:0;width:400px;max-width:100%}}h3{{font-size:14px;margin:0}}.cursor,output{{display:none}}
svg{{width:100%;overflow:visible}}svg text{{font-size:11px;fill:var(--dim);text-anchor:end}}
svg text.x{{text-anchor:middle}}svg text.unit{{text-anchor:start}}
.grid{{stroke:var(--line)}}.axis{{stroke:var(--dim)}}.line{{fill:none;stroke-width:2}}
</style>{charts}"""


@dataclass(frozen=True, slots=True)
class Plot:
    """A page of charts, `count` of them."""

    page: str = field(repr=False)
    count: int

    def save(self, path: str | Path) -> Path:
        """Write the page; returns its path."""
        Path(path).write_text(self.page, encoding="utf-8")
        return Path(path)

    def _repr_html_(self) -> str:
        # In a frame, so that its style is not the notebook's.
        height = HEIGHT * -(-self.count // 2)
        return f'<iframe srcdoc="{escape(self.page)}" style="width:100%;height:{height}px;border:0"></iframe>'


def plot(name: str, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = ()) -> Plot:
    """Charts of columns of the metrics, nested ones by dotted names; of the usual ones where none is named. Raises
    ConfigError for a column that no row has numbers in."""
    flat = [_flat(row if row["step"] else _measured(row)) for row in rows]
    known = list(dict.fromkeys(column for row in flat for column in row))
    for column in columns:
        if column not in known:
            near = get_close_matches(column, known, n=3) or known[:3]
            raise ConfigError(f"{name}: no step has a number under {column!r}; try {', '.join(near) or 'later'}")
    rewarded = "reward_mean" in known
    usual = [column for column in USUAL if column in known and not (rewarded and column in OF_REWARDS)]
    shown = list(columns) or usual
    lines = {column: points_of(flat, column) for column in shown}
    charts = [line_chart(column, "", [Series(name=column, points=points)]) for column, points in lines.items()]
    return Plot(_PAGE.format(title=escape(name), charts="".join(charts)), sum(map(bool, charts)))


def _flat(row: Mapping[str, Any], at: str = "") -> dict[str, float]:
    """The numbers of a row, by dotted names."""
    numbers: dict[str, float] = {}
    for name, value in row.items():
        if isinstance(value, Mapping):
            numbers |= _flat(value, f"{at}{name}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            numbers[f"{at}{name}"] = value
    return numbers


def _measured(row: Mapping[str, Any]) -> dict[str, Any]:
    """Of step 0 what its evaluation measured; the rest are zeros of what has not happened yet."""
    return {name: value for name, value in row.items() if name == "step" or name.startswith(("accuracy", "held_out"))}

"""The terminal during a run: startup phases as they happen, then the steps, warnings, and where things are.

On a terminal: lines that scroll, above a live region that redraws 4 times a second. Elsewhere: plain lines only.
"""

from __future__ import annotations

import contextlib
import io
import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from yatt.faces.chart import decimals

DONE = ("done", "ready")
LINE_SECONDS = 5.0
HELD_OUT = {
    "accuracy_greedy": ("greedy", ".1%"),
    "accuracy_sampled": ("sampled", ".1%"),
    "held_out_loss": ("held-out loss", ".4f"),
    "held_out_pair_accuracy": ("held-out pairs", ".1%"),
}
"""An evaluation's measures: name and format."""
SIDES = (("chosen_reward", "rejected_reward"), ("desirable_reward", "undesirable_reward"))
"""Rewards of the preferred side and of the other."""


class Progress:
    """A context manager around a run of `total_steps`; `kind` "offline" shows loss where "rl" shows rewards."""

    def __init__(
        self,
        total_steps: int,
        kind: Literal["rl", "offline"] = "rl",
        *,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total, self.kind, self.clock = total_steps, kind, clock
        self.console = console or Console(highlight=False)
        self._running: dict[str, float] = {}
        self._row: Mapping[str, Any] | None = None
        self._ends: deque[tuple[float, int]] = deque(maxlen=20)
        self._last_line = -LINE_SECONDS
        self._live = Live(get_renderable=self._region, console=self.console, refresh_per_second=4, transient=True)

    def __enter__(self) -> Progress:
        if isinstance(self.console.file, io.TextIOWrapper):  # a sign the terminal cannot show must not end a run
            self.console.file.reconfigure(errors="replace")
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def phase(self, name: str, state: str) -> None:
        """A named startup task is now in `state`: one of `DONE` ends it, any other is under way."""
        if state in DONE:
            took = self.clock() - self._running.pop(name, self.clock())
            mark = ("✓ ", "green") if self.console.is_terminal else "  "
            self._print(Text.assemble(mark, f"{name}: {state}", (f", {took:.1f} s", "dim")))
            return
        self._running[name] = self.clock()
        if not self.console.is_terminal:
            self._print(Text(f"  {name}: {state}"))

    def step(self, row: Mapping[str, Any]) -> None:
        """A step has ended. Every rl step has its line; offline ones come each tenth of the run, and every 5 s."""
        self._row = row
        self._ends.append((self.clock(), row["step"]))
        tenth = max(1, self.total // 10)
        due = self.clock() - self._last_line >= LINE_SECONDS
        if self.kind == "rl" or due or row["step"] % tenth == 0 or row["step"] == self.total or "evaluation" in row:
            self._last_line = self.clock()
            self._print(self._line(row))

    def note(self, text: str) -> None:
        self._print(Text(text))

    def warn(self, text: str) -> None:
        self._print(Text.assemble(("warning: ", "bold yellow"), text))

    def finish(self, summary: Sequence[str]) -> None:
        """Take the live region down and say where things are and what to try next."""
        self._running.clear()
        self._row = None
        self._live.stop()
        text = Text("\n".join(summary))
        self._print(Panel(text, expand=False, border_style="green") if self.console.is_terminal else text)

    def _print(self, what: RenderableType) -> None:
        with contextlib.suppress(OSError):  # a terminal that goes away ends no run
            self.console.print(what, soft_wrap=not self.console.is_terminal)

    def _line(self, row: Mapping[str, Any]) -> Text:
        """The step on one line; what does not fit a narrow terminal is left out from the right."""
        room = self.console.width if self.console.is_terminal else 10_000
        line = Text(f"step {row['step']:>{len(str(self.total))}}/{self.total}", style="bold")
        for part in self._fields(row):
            if line.cell_len + 2 + part.cell_len > room:
                break
            line = Text.assemble(line, "  ", part)
        return line

    def _fields(self, row: Mapping[str, Any]) -> list[Text]:
        """The row's numbers, the most telling first."""
        fields = []
        if self.kind == "offline" and row["step"] > 0:
            fields = [_field("loss", _text(row["loss"], ".4f")), *_preferences(row)]
        elif row["step"] > 0:
            reward = row["reward_mean"]
            fields = [_field("reward", "-" if reward is None else decimals(reward))]
        for key, (name, form) in HELD_OUT.items():
            if row.get(key) is not None:
                fields.append(_field(name, format(row[key], form), "bold green"))
        if row["step"] == 0:
            return fields
        if self.kind == "rl":
            fields.append(_field("kl", _text(row["kl"], ".1e")))
            fields += [_field("critic", _text(row["critic_loss"], ".3f"))] if "critic_loss" in row else []
            fields.append(_field("len", f"{row['response_length_mean']:.0f}/{row['longest_response']}"))
        fields.append(_field("tok/s", _short(row["tokens_per_s"])))
        fields.append(Text(f"{row['seconds']:.2f} s"))
        for name, key in (("failed", "reward_failures"), ("dropped", "groups_dropped"), ("skipped", "skipped_updates")):
            if row.get(key):
                fields.append(_field(name, str(row[key]), "bold red" if key != "groups_dropped" else "none"))
        fields.append(_phases(row["phases"]) if self.kind == "rl" else Text())
        if not self.console.is_terminal and row["step"] < self.total:
            fields.append(_field("ETA", _clock(self._eta())))
        return [field for field in fields if field.plain]

    def _region(self) -> RenderableType:
        """The live region: tasks under way, then the bar of the run."""
        rows: list[RenderableType] = []
        for name, started in self._running.items():
            rows.append(Spinner("dots", Text.assemble(name, (f" {self.clock() - started:.0f} s", "dim"))))
        if self._row is not None:
            grid = Table.grid(padding=(0, 1), expand=False)
            bar = ProgressBar(total=self.total, completed=self._row["step"], width=max(8, self.console.width // 3))
            latest = "" if self.kind == "rl" else f" loss {_text(self._row['loss'], '.4f')}"
            grid.add_row(bar, Text(f"{self._row['step']}/{self.total}{latest} ETA {_clock(self._eta())}", no_wrap=True))
            rows.append(grid)
        return Group(*rows)

    def _eta(self) -> float | None:
        """Seconds left, at the pace of the last steps: responses grow, so old steps say little."""
        (first, a), (last, b) = self._ends[0], self._ends[-1]
        pace = (last - first) / (b - a) if b > a else _number(self._row["seconds"]) if self._row and b else None
        return None if pace is None else max(0.0, (self.total - b) * pace - (self.clock() - last))


def _preferences(row: Mapping[str, Any]) -> list[Text]:
    """How often, and by how much, what is preferred is ahead."""
    fields = [_field("pairs", f"{row['pair_accuracy']:.1%}")] if row.get("pair_accuracy") is not None else []
    margins = [row[good] - row[bad] for good, bad in SIDES if None not in (row.get(good), row.get(bad))]
    return fields + [_field("margin", f"{margin:+.3f}") for margin in margins]


def _phases(phases: Mapping[str, float]) -> Text:
    """Seconds of each phase that takes a hundredth of the step or more."""
    shown = {name: s for name, s in phases.items() if s > 0 and s >= 0.01 * sum(phases.values())}
    return Text(" ".join(f"{name} {s:.2f}s" for name, s in shown.items()), "dim")


def _field(name: str, value: str, style: str = "none") -> Text:
    return Text.assemble((f"{name} ", "dim"), (value, style))


def _text(value: float | None, form: str) -> str:
    """A number in its form; of one that nothing was measured of, a dash."""
    return "-" if value is None or math.isnan(value) else format(value, form)


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def _short(value: float) -> str:
    return f"{value / 1000:.1f}k" if value >= 1000 else f"{value:.0f}"


def _clock(seconds: float | None) -> str:
    if seconds is None:
        return "-:--"
    minutes, left = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{left:02}" if minutes >= 60 else f"{minutes}:{left:02}"

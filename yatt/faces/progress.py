"""The terminal during a run: what it waits for as it starts, then the steps, warnings, and where things are.

On a terminal: lines that scroll, above a live region that redraws 4 times a second. Elsewhere: plain lines only, of at
most PLAIN columns where they are a step's.
"""

from __future__ import annotations

import contextlib
import io
import math
import textwrap
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Literal

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from yatt.faces.chart import decimals, percent
from yatt.faces.under_way import Waiting

DONE = ("done", "ready")
LINE_SECONDS = 5.0
WAIT_SECONDS = 10.0
"""Without a terminal, how often it is said what is being waited for."""
PLAIN = 80
HELD_OUT: Mapping[str, tuple[str, Callable[[float], str]]] = {
    "accuracy_greedy": ("greedy", percent),
    "accuracy_sampled": ("sampled", percent),
    "held_out_loss": ("loss", partial(decimals, places=4)),
    "held_out_pair_accuracy": ("pairs", percent),
}
"""An evaluation's measures: name and form."""
LEGEND = "len: tokens of a response, mean/longest; dropped: groups left out of training"
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
        self._waiting = Waiting()
        self._said = -math.inf  # when it was said last what is waited for
        self._mentioned: set[str] = set()
        self._over = threading.Event()
        self._row: Mapping[str, Any] | None = None
        self._explained = False
        self._ends: deque[tuple[float, int]] = deque(maxlen=20)
        self._last_line = -LINE_SECONDS
        self._live = Live(get_renderable=self._region, console=self.console, refresh_per_second=4, transient=True)

    def __enter__(self) -> Progress:
        if isinstance(self.console.file, io.TextIOWrapper):  # a sign the terminal cannot show must not end a run
            self.console.file.reconfigure(errors="replace")
        if self.console.is_terminal:
            self._live.start()
        else:
            threading.Thread(target=self._keep_saying, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._live.stop()

    def phase(self, name: str, state: str) -> None:
        """What `name` does as the run starts, or evaluates: one of `DONE` ends it, any other is under way. Once nothing
        is, it is said how long all of it took."""
        if state not in DONE:
            self._waiting.begin(name, state, self.clock())
        elif summary := self._waiting.end(name, self.clock()):
            mark = ("✓ ", "green") if self.console.is_terminal else "  "
            self._print(Text.assemble(mark, summary))
            self._mentioned.clear()

    def remind(self) -> None:
        """Without a terminal: say what is being waited for, where something new is, and every WAIT_SECONDS."""
        now, kinds = self.clock(), self._waiting.kinds
        if kinds and (kinds - self._mentioned or now - self._said >= WAIT_SECONDS):
            self._said = now
            self._mentioned |= kinds
            self._print(Text(f"  {self._waiting.line(now, PLAIN - 2)}"))

    def _keep_saying(self) -> None:
        while not self._over.wait(1.0):
            self.remind()

    def step(self, row: Mapping[str, Any]) -> None:
        """A step has ended. Every rl step has its line; offline ones come each tenth of the run, and every 5 s."""
        self._row = row
        self._ends.append((self.clock(), row["step"]))
        tenth = max(1, self.total // 10)
        due = self.clock() - self._last_line >= LINE_SECONDS
        if self.kind == "rl" or due or row["step"] % tenth == 0 or row["step"] == self.total or "evaluation" in row:
            self._last_line = self.clock()
            if self.kind == "rl" and row["step"] > 0 and not self._explained:
                self._explained = True
                self._print(Text(LEGEND, "dim"))
            for fields in (self._fields(row), _held_out(row)):
                if fields:
                    self._print(self._line(row, fields))

    def note(self, text: str) -> None:
        self._print(Text(text))

    def detail(self, text: str) -> None:
        """A note on a step, on as many lines as it takes."""
        wide = self.console.width if self.console.is_terminal else PLAIN
        lines = textwrap.wrap(
            text, max(20, wide), subsequent_indent="  ", break_on_hyphens=False, break_long_words=False
        )
        self._print(Text("\n".join(lines)))

    def warn(self, text: str) -> None:
        self._print(Text.assemble(("warning: ", "bold yellow"), text))

    def finish(self, summary: Sequence[str]) -> None:
        """Take the live region down and say where things are and what to try next."""
        self._waiting = Waiting()
        self._row = None
        self._live.stop()
        text = Text("\n".join(summary))
        self._print(Panel(text, expand=False, border_style="green") if self.console.is_terminal else text)

    def _print(self, what: RenderableType) -> None:
        with contextlib.suppress(OSError):  # a terminal that goes away ends no run
            self.console.print(what, soft_wrap=not self.console.is_terminal)

    def _line(self, row: Mapping[str, Any], fields: Sequence[Text]) -> Text:
        """Numbers of the step on one line; what does not fit is left out, the least telling first."""
        room = self.console.width if self.console.is_terminal else PLAIN
        line = Text(f"step {row['step']:>{len(str(self.total))}}/{self.total}", style="bold")
        for field in fields:
            if line.cell_len + 2 + field.cell_len <= room:
                line = Text.assemble(line, "  ", field)
        return line

    def _fields(self, row: Mapping[str, Any]) -> list[Text]:
        """The row's numbers, the most telling first; none before the first step."""
        if row["step"] == 0:
            return []
        fields = []
        if self.kind == "offline":
            fields = [_field("loss", _text(row["loss"], 4)), *_preferences(row)]
        else:
            fields = [_field("reward", _text(row["reward_mean"]))]
            fields += [_field("kl", f"{row['kl_ref']:.1e}")] if row.get("kl_ref") else []
            fields += [_field("critic", _text(row["critic_loss"]))] if "critic_loss" in row else []
            fields.append(_field("len", f"{row['response_length_mean']:.0f}/{row['longest_response']}"))
        for name, key in (("failed", "reward_failures"), ("dropped", "groups_dropped"), ("skipped", "skipped_updates")):
            if row.get(key):
                fields.append(_field(name, _short(row[key]), "bold red" if key != "groups_dropped" else "none"))
        fields.append(Text(f"{_text(row['seconds'], 2)} s"))
        if not self.console.is_terminal and row["step"] < self.total:
            fields.append(_field("ETA", _clock(self._eta())))
        fields.append(_field("tok/s", _short(row["tokens_per_s"])))
        fields.append(_phases(row["phases"]) if self.kind == "rl" else Text())
        return [field for field in fields if field.plain]

    def _region(self) -> RenderableType:
        """The live region: what is waited for, then the bar of the run."""
        rows: list[RenderableType] = []
        if self._waiting.kinds:
            rows.append(Spinner("dots", Text(self._waiting.line(self.clock(), self.console.width - 2), no_wrap=True)))
        if self._row is not None:
            grid = Table.grid(padding=(0, 1), expand=False)
            bar = ProgressBar(total=self.total, completed=self._row["step"], width=max(8, self.console.width // 3))
            latest = "" if self.kind == "rl" else f" loss {_text(self._row['loss'], 4)}"
            grid.add_row(bar, Text(f"{self._row['step']}/{self.total}{latest} ETA {_clock(self._eta())}", no_wrap=True))
            rows.append(grid)
        return Group(*rows)

    def _eta(self) -> float | None:
        """Seconds left, at the pace of the last steps: responses grow, so old steps say little."""
        (first, a), (last, b) = self._ends[0], self._ends[-1]
        pace = (last - first) / (b - a) if b > a else _number(self._row["seconds"]) if self._row and b else None
        return None if pace is None else max(0.0, (self.total - b) * pace - (self.clock() - last))


def _held_out(row: Mapping[str, Any]) -> list[Text]:
    """What an evaluation measured, where there was one."""
    told = [
        _field(name, form(row[key]), "bold green") for key, (name, form) in HELD_OUT.items() if row.get(key) is not None
    ]
    return [Text("held-out:", "dim"), *told] if told else []


def _preferences(row: Mapping[str, Any]) -> list[Text]:
    """How often, and by how much, what is preferred is ahead."""
    fields = [_field("pairs", f"{row['pair_accuracy']:.1%}")] if row.get("pair_accuracy") is not None else []
    margins = [row[good] - row[bad] for good, bad in SIDES if None not in (row.get(good), row.get(bad))]
    return fields + [_field("margin", f"{'+' * (margin >= 0)}{decimals(margin)}") for margin in margins]


def _phases(phases: Mapping[str, float]) -> Text:
    """Seconds of each phase that takes a hundredth of the step or more."""
    shown = {name: s for name, s in phases.items() if s > 0 and s >= 0.01 * sum(phases.values())}
    return Text(" ".join(f"{name} {s:.2f}s" for name, s in shown.items()), "dim")


def _field(name: str, value: str, style: str = "none") -> Text:
    return Text.assemble((f"{name} ", "dim"), (value, style))


def _text(value: float | None, places: int = 3) -> str:
    """A number with so many decimals, or in few digits where it is large; of one that nothing was measured of, a
    dash."""
    return "-" if value is None or math.isnan(value) else decimals(value, places)


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def _short(value: float) -> str:
    if value >= 1e6:
        return decimals(value)
    return f"{value / 1000:.1f}k" if value >= 1000 else f"{value:.0f}"


def _clock(seconds: float | None) -> str:
    if seconds is None:
        return "-:--"
    minutes, left = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{left:02}" if minutes >= 60 else f"{minutes}:{left:02}"

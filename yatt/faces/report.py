"""report.html: a run, finished or not, as one page that needs no network; made from the run's folder alone.

The live page (`yatt/faces/watch.py`) has the same sections; the report is that page frozen into a file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from yatt.config import yaml_core
from yatt.config.secrets import masked
from yatt.errors import ConfigError
from yatt.faces import overview
from yatt.faces.curves import charts
from yatt.faces.evaluations import by_source
from yatt.faces.gantt import devices
from yatt.faces.incidents import incidents_section
from yatt.faces.page import page, render
from yatt.faces.placement import placement_section
from yatt.faces.rundir import RunDirectory, replace_text
from yatt.faces.trajectories import first_and_last, whole_group

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What a run's folder says of it: the text of its config without secrets and what it holds, the rows by step, the
    processes it has had."""

    name: str
    text: str
    config: Row
    rows: Sequence[Row]
    sessions: Sequence[Row]


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a page; one without a body is not shown."""

    id: str
    title: str
    body: Markup


def write_report(run_dir: Path) -> Path:
    """Write RUN/report.html anew and return its path. Raises ConfigError where `run_dir` holds no run."""
    run = RunDirectory(run_dir)
    check_run(run)
    text, config = shown_config(run)
    rows = sorted(run.read_metrics(), key=lambda row: row["step"])
    told = Told(name=name_of(run, config), text=text, config=config, rows=rows, sessions=run.read_sessions())
    parts = [*sections(told, devices(run.read_spans())), *_samples(run.samples, offline=overview.is_offline(config))]
    whole = page("report.html", title=f"{told.name} · YATT", sections=[*parts, settings_section(told)])
    replace_text(run.report, whole)
    return run.report


def check_run(run: RunDirectory) -> None:
    """Raises ConfigError where the folder holds no run."""
    if not run.config.exists() and not run.metrics.exists():
        raise ConfigError(
            f"{run.path} is not a run folder: it has neither config.yaml nor metrics.jsonl; give runs/NAME"
        )


def shown_config(run: RunDirectory) -> tuple[str, Row]:
    """The run's config as text and as what it holds, without its secrets."""
    text = run.config.read_text(encoding="utf-8") if run.config.exists() else ""
    config = yaml_core.read(text) or {}
    shown: Row = masked(config)
    return (yaml_core.write(shown) if shown != config else text), shown


def name_of(run: RunDirectory, config: Row) -> str:
    """The run's name."""
    return str(overview.setting(config, "run", "name") or run.path.resolve().name)


def sections(told: Told, drawn: Markup, state: str = "") -> Iterator[Section]:
    """The sections that follow from numbers, in their order; `drawn` are the devices."""
    config, rows = told.config, told.rows
    nothing = Markup("No step has ended yet.")
    top = (
        overview.header(told.name, config, rows, told.sessions, state),
        overview.tiles(config, rows),
        overview.warnings(config, rows),
    )
    yield Section("overview", "", Markup().join(top))
    yield Section("curves", "Curves", charts(rows, offline=overview.is_offline(config)) if rows else nothing)
    yield Section("sources", "Held-out accuracy by source", by_source(rows))
    yield Section("groups", "What became of the groups", overview.groups(config, rows))
    yield Section("failures", "Failures", overview.failures(rows))
    yield Section("incidents", "Deaths and recoveries", incidents_section(rows))
    yield Section("placement", "Placement", placement_section(rows))
    yield Section("devices", "Devices", drawn)


def _samples(folder: Path, *, offline: bool) -> Iterator[Section]:
    """What was written, and learned from, at the ends of the run."""
    yield Section("evaluated", "Held-out responses, before and after", first_and_last(folder, "eval"))
    ends = "Rows learned from, first and last" if offline else "Rollouts, first and last"
    yield Section("rollouts", ends, first_and_last(folder, "step"))
    yield Section("group", "A whole group of the last step", whole_group(folder))


def settings_section(told: Told) -> Section:
    """The run's config, folded."""
    return Section("settings", "Settings", render("settings.html", text=told.text))

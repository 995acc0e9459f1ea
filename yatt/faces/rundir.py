"""The run directory: everything needed to understand a finished or crashed run, and nothing else.

`config.yaml`, `metrics.jsonl` (one object per step), `sessions.jsonl` (one per process that the run has had),
`timeline.json` (Chrome trace), `samples/`, `checkpoints/step-N/`, `report.html`, `commands.txt` (how it was started,
each time), `log/`; of a call from Python `given/`, the functions and rows that it was given.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from yatt.config.paths import GIVEN
from yatt.errors import ConfigError, DataError
from yatt.faces.timeline import Steps, Timeline
from yatt.reports import PhaseSpan

COMPLETE = "complete.json"
CHECKPOINTS = "checkpoints"
LOCK = ".lock"
FILES = ("config.yaml", "metrics.jsonl", "timeline.json", "report.html", "calibration.json", "commands.txt")
FOLDERS = ("samples", CHECKPOINTS, "log", "model", "evaluations", "tensorboard", "weights")
OWN = (*FILES, *FOLDERS)
"""What a run, and commands on it, write into its folder; `given/` may be what the next one is given."""
_STEP_FILE = re.compile(r"^(?:step|eval)-(\d+)(?:\.c\d+)?\.jsonl$")
_CHECKPOINT = re.compile(r"^step-(\d+)$")


class RunDirectory:
    """Reads and writes one run's folder. Making the object touches nothing; `create` makes the folders."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.metrics = self.path / "metrics.jsonl"
        self.sessions = self.path / "sessions.jsonl"
        self.timeline = self.path / "timeline.json"
        self.samples = self.path / "samples"
        self.checkpoints_folder = self.path / CHECKPOINTS
        self.report = self.path / "report.html"
        self.log = self.path / "log"
        self.commands = self.path / "commands.txt"
        self.given = self.path / GIVEN
        self._timeline = Timeline(self.timeline)

    def create(self) -> RunDirectory:
        """Make the folders that are not there yet."""
        for folder in (self.samples, self.checkpoints_folder, self.log):
            folder.mkdir(parents=True, exist_ok=True)
        return self

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder for this process. Raises ConfigError naming the process that holds it already.

        The kernel drops the lock with the process, so a crash leaves nothing to clean up.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with open(self.path / LOCK, "a+", encoding="ascii") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                handle.seek(0)
                raise ConfigError(
                    f"run.name={self.path.name}: {self.path} is in use by process {handle.read().strip() or '?'}; "
                    "wait until it ends, or choose another run.name"
                ) from None
            handle.truncate(0)
            handle.write(f"{os.getpid()}\n")
            handle.flush()
            yield

    def clear(self) -> None:
        """Remove what a run has left here, and nothing else; the folder is locked."""
        for entry in (self.path / name for name in OWN):
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink(missing_ok=True)

    def holds_run(self) -> bool:
        """Whether a run has left metrics or checkpoints here."""
        return bool(self.checkpoints()) or (self.metrics.exists() and self.metrics.stat().st_size > 0)

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Add one line and flush it. NaN and infinity, which JSON lacks, become null."""
        with open(self.metrics, "a", encoding="utf-8") as out:
            out.write(_line(row))

    def append_session(self, session: Mapping[str, Any]) -> None:
        """Add a line on the process that goes on with the run."""
        with open(self.sessions, "a", encoding="utf-8") as out:
            out.write(_line(session))

    def read_sessions(self) -> list[dict[str, Any]]:
        """The processes that the run has had, in order; lines that are none are left out."""
        text = self.sessions.read_text(encoding="utf-8", errors="replace") if self.sessions.exists() else ""
        sessions = []
        for line in text.split("\n"):
            with contextlib.suppress(ValueError):
                sessions.append(json.loads(line))
        return sessions

    def read_metrics(self) -> list[dict[str, Any]]:
        """All rows; a half-written last line is left out. Raises DataError for any other line that is not JSON."""
        if not self.metrics.exists():
            return []
        lines = self.metrics.read_text(encoding="utf-8", errors="replace").split("\n")
        rows = []
        for number, line in enumerate(lines, 1):
            try:
                rows.append(json.loads(line))
            except ValueError:
                if line and number < len(lines):
                    raise DataError(
                        f"{self.metrics}, line {number}: not JSON: {line[:60]!r}; mend or drop it"
                    ) from None
        return rows

    def rewind(self, step: int) -> None:
        """Drop the rows, spans and samples of steps after `step`, so that a resumed run has each step once."""
        rows = [row for row in self.read_metrics() if row["step"] <= step]
        if self.metrics.exists():
            replace_text(self.metrics, "".join(map(_line, rows)))
        self._timeline.rewind(step)
        for file in self.samples.glob("*.jsonl"):
            match = _STEP_FILE.match(file.name)
            if match and int(match[1]) > step:
                file.unlink()

    def append_spans(self, step: int, spans: Sequence[PhaseSpan]) -> None:
        """Add what was done in a step to the timeline, which is a whole Chrome trace after every call."""
        self._timeline.append(step, spans)

    def read_spans(self) -> Steps:
        """The timeline's spans, by step."""
        return self._timeline.read()

    def read_samples(self, kind: Literal["step", "eval"], step: int | None = None) -> list[dict[str, Any]]:
        """Trajectories of the steps, or of one, or of evaluations: by step and controller; half-written lines are left
        out."""
        files = []
        for file in self.samples.glob(f"{kind}-*.jsonl"):
            if (match := _STEP_FILE.match(file.name)) and step in (None, int(match[1])):
                files.append((int(match[1]), file.name, file))
        rows = []
        for _, _, file in sorted(files):
            for line in file.read_text(encoding="utf-8", errors="replace").split("\n"):
                with contextlib.suppress(ValueError):
                    rows.append(json.loads(line))
        return rows

    def step_folders(self) -> list[Path]:
        """Checkpoints of which at least something is there, oldest step first."""
        found = [(step, folder) for folder in self.checkpoints_folder.glob("step-*") if (step := step_of(folder.name))]
        return [folder for _, folder in sorted(found) if folder.is_dir() and any(folder.iterdir())]

    def checkpoints(self) -> list[Path]:
        """Complete checkpoints, oldest step first."""
        return [folder for folder in self.step_folders() if (folder / COMPLETE).is_file()]

    def latest_checkpoint(self) -> Path | None:
        """The complete checkpoint of the highest step, if any."""
        folders = self.checkpoints()
        return folders[-1] if folders else None


def step_of(name: str) -> int | None:
    """The step of a checkpoint's folder; None for another name."""
    match = _CHECKPOINT.match(name)
    return int(match[1]) if match else None


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(_finite(row), allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return value


def replace_text(path: Path, text: str) -> None:
    """Write a file whole or not at all. A lone surrogate, from a file name or a text of the user's, is escaped."""
    aside = path.with_name(path.name + ".new")
    aside.write_text(text, encoding="utf-8", errors="backslashreplace")
    os.replace(aside, path)

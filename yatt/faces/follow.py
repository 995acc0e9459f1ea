"""Follows a run's folder while it grows: what is read once is not read again."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from yatt.faces.overview import setting
from yatt.faces.report import Told, name_of, shown_config
from yatt.faces.rundir import RunDirectory
from yatt.faces.timeline import Steps

Row = Mapping[str, Any]
TAIL = 256
"""Bytes before the end of what was read that must still be there: else the file was written anew."""


class Lines:
    """The whole lines of a file that grows. What is written anew, as a resumed run does it, is read from its start."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = 0
        self._tail = b""
        self._stamp: tuple[int, int, int] | None = None

    def new(self) -> tuple[list[bytes], bool]:
        """The lines that came since the last call, and whether they are all there are: earlier ones count no more."""
        try:
            found = os.stat(self._path)
        except OSError:
            return [], self._forget()
        stamp = (found.st_ino, found.st_size, found.st_mtime_ns)
        if stamp == self._stamp:
            return [], False
        with contextlib.suppress(OSError), open(self._path, "rb") as file:
            file.seek(max(0, self._read - len(self._tail)))
            anew = file.read(len(self._tail)) != self._tail and self._forget()
            file.seek(self._read)
            whole, newline, _ = file.read().rpartition(b"\n")
            whole += newline
            self._stamp = stamp
            self._read += len(whole)
            self._tail = (self._tail + whole)[-TAIL:]
            return whole.split(b"\n")[:-1], anew
        return [], False

    def _forget(self) -> bool:
        known = bool(self._read)
        self._read, self._tail, self._stamp = 0, b"", None
        return known


class FollowedRun:
    """What a run's folder says, as of the last `refresh`. `version` grows with every change, `spans_version` with
    those of the timeline. Threads take turns through `lock`."""

    def __init__(self, path: Path) -> None:
        self.run = RunDirectory(path)
        self.lock = threading.RLock()
        self.version = self.spans_version = 0
        self.spans: Steps = {}
        self._metrics, self._sessions = Lines(self.run.metrics), Lines(self.run.sessions)
        self._rows: dict[int, Row] = {}
        self._processes: list[Row] = []
        self._config: tuple[str, Row] = ("", {})
        self._stamps: dict[Path, int] = {}

    def refresh(self) -> Told:
        """Read what is new. The timeline is of bounded size and changes in its middle: it is read whole."""
        if self._changed(self.run.config):
            self._config = shown_config(self.run)
        rows, anew = self._metrics.new()
        if anew:
            self._rows.clear()
        for row in _objects(rows):
            if isinstance(row.get("step"), int):
                self._rows[row["step"]] = row
        began, again = self._sessions.new()
        if again:
            self._processes.clear()
        self._processes += _objects(began)
        if self._changed(self.run.timeline):
            self.spans = self.run.read_spans()
            self.spans_version += 1
        self.version += bool(rows or anew or began or again)
        return self.told

    @property
    def told(self) -> Told:
        """What was read last."""
        text, config = self._config
        rows = [self._rows[step] for step in sorted(self._rows)]
        return Told(name=name_of(self.run, config), text=text, config=config, rows=rows, sessions=self._processes)

    def state(self) -> str:
        """Whether a process holds the folder, and if none does, whether the run is done."""
        return state_of(self.run, setting(self._config[1], "train", "steps"), max(self._rows, default=0))

    def _changed(self, path: Path) -> bool:
        """Whether the file is another one than at the last call."""
        try:
            stamp = os.stat(path).st_mtime_ns
        except OSError:
            return False
        before, self._stamps[path] = self._stamps.get(path), stamp
        if before != stamp:
            self.version += 1
        return before != stamp


def state_of(run: RunDirectory, steps: Any, step: int) -> str:
    """Whether a process holds the folder, and if none does, whether `step` is the last of `steps`."""
    if held(run.path / ".lock"):
        return "running"
    return "finished" if steps and step >= steps else "stopped"


def held(lock: Path) -> bool:
    """Whether a process of this machine has locked the file. To try the lock would be to take it for a moment, in which
    a run could not begin."""
    with contextlib.suppress(OSError):
        inode = os.stat(lock).st_ino
        locks = Path("/proc/locks").read_text(encoding="ascii")
        return any(line.split()[1] == "FLOCK" and f":{inode} " in line for line in locks.splitlines())
    return False


def _objects(lines: Sequence[bytes]) -> list[dict[str, Any]]:
    """The JSON objects among these lines."""
    found = []
    for line in lines:
        with contextlib.suppress(ValueError):
            value = json.loads(line)
            if isinstance(value, dict):
                found.append(value)
    return found

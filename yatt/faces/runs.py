"""Many runs at a glance: what the list of runs says of each, without reading a run whole."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from yatt.errors import YattError
from yatt.faces.chart import number, percent
from yatt.faces.follow import state_of
from yatt.faces.overview import setting
from yatt.faces.report import shown_config
from yatt.faces.rundir import RunDirectory

TAIL = 1 << 16
"""Bytes of the end of metrics.jsonl that are looked at."""
HEAD = ("state", "algorithm", "model", "step", "reward", "held-out accuracy", "loss")


class Glance:
    """The state of one run as far as its config and its last rows say it."""

    def __init__(self, path: Path) -> None:
        self._run = RunDirectory(path)
        self._stamp: tuple[int, ...] = ()
        self._config: Mapping[str, Any] = {}
        self._rows: Sequence[Mapping[str, Any]] = ()

    def facts(self) -> list[str]:
        """A cell for each of HEAD."""
        stamp = tuple(_modified(path) for path in (self._run.config, self._run.metrics))
        if stamp != self._stamp:
            self._stamp = stamp
            with contextlib.suppress(OSError, YattError, ValueError):  # a folder that is being written, or is no run
                self._config = shown_config(self._run)[1]
            self._rows = _last_rows(self._run.metrics)
        config, rows = self._config, self._rows
        steps, step = setting(config, "train", "steps"), rows[-1]["step"] if rows else 0
        reward, accuracy, loss = (_last(rows, key) for key in ("reward_mean", "accuracy_greedy", "loss"))
        return [
            state_of(self._run, steps, step),
            str(setting(config, "algorithm", "name") or ""),
            str(setting(config, "model", "path") or ""),
            f"{step:,} of {steps or 0:,}",
            "" if reward is None else number(reward),
            "" if accuracy is None else percent(accuracy),
            "" if loss is None else number(loss),
        ]


def names_of(paths: Sequence[Path]) -> list[str]:
    """A name for each folder: its own, with a number where another has the same."""
    names: list[str] = []
    for path in paths:
        name, number = path.resolve().name, 2
        while name in names:
            name, number = f"{path.resolve().name}-{number}", number + 1
        names.append(name)
    return names


def _last_rows(metrics: Path) -> list[Mapping[str, Any]]:
    """The last rows of the file, as many as its end holds."""
    rows: list[Mapping[str, Any]] = []
    with contextlib.suppress(OSError), open(metrics, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - TAIL))
        for line in file.read().split(b"\n")[1 if size > TAIL else 0 :]:
            with contextlib.suppress(ValueError):
                rows.append(json.loads(line))
    return [row for row in rows if isinstance(row, dict) and isinstance(row.get("step"), int)]


def _last(rows: Sequence[Mapping[str, Any]], key: str) -> float | None:
    return next((row[key] for row in reversed(rows) if row.get(key) is not None), None)


def _modified(path: Path) -> int:
    with contextlib.suppress(OSError):
        return os.stat(path).st_mtime_ns
    return 0

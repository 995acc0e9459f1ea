"""Experiment trackers, through accelerate's wrappers. Imports accelerate, and so torch: only where a run starts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from textwrap import indent
from typing import Any

from accelerate.state import PartialState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker

from yatt.config.trackers import check_trackers
from yatt.faces.trajectories import records_of

PROJECT = "yatt"
RUN_NAME_OPTION = {
    "wandb": "name",
    "mlflow": "run_name",
    "trackio": "name",
    "swanlab": "experiment_name",
    "clearml": "task_name",
}

TABLES = 100
"""How many steps of a run have a table of rollouts, evenly spread; evaluations always have one."""
ROWS, LONGEST = 8, 1000
"""Completions of a table, and characters of a text in it."""
COLUMNS = ("step", "uid", "sibling", "prompt", "response", "answer", "reward", "status")


class Trackers:
    """Every tracker of a run. One that fails, at the start or later, is warned about once and left out: never the run.

    TensorBoard files go to RUN/tensorboard; the others see the project `yatt` and the run's name.
    """

    def __init__(
        self,
        names: Sequence[str],
        run_dir: str | Path,
        config: Mapping[str, Any],
        *,
        warn: Callable[[str], None] = print,
    ) -> None:
        check_trackers(names)
        PartialState(cpu=True)  # accelerate's logger refuses to speak without it; cpu: the driver touches no device
        self._warn = warn
        self._trackers: dict[str, GeneralTracker] = {}
        for name in dict.fromkeys(names):
            self._try(name, "start", self._start, name, Path(run_dir), flatten(config, texts=True))

    def log(self, row: Mapping[str, Any]) -> None:
        """Send every number of the row under `name` or `group/name`, at the row's step."""
        values = flatten(row)
        step = int(values.pop("step"))
        for name, tracker in list(self._trackers.items()):
            self._try(name, "log", tracker.log, values, step=step)

    def completions(self, row: Mapping[str, Any], samples: Path, steps: int) -> None:
        """Send tables of what was written in the row's step, of a run of so many `steps`: some rollouts, and held-out
        responses. Trackers that have neither tables nor texts get none."""
        step = row["step"]
        due = {"rollouts": step % math.ceil(steps / TABLES) == 0 or step == 1, "held-out": "evaluation" in row}
        for title, kind in (("rollouts", "step"), ("held-out", "eval")):
            takers = [name for name, tracker in self._trackers.items() if _takes_tables(name, tracker)]
            table = completions_table(samples, kind, step) if due[title] and takers else []
            for name in takers if table else ():
                self._try(name, "log a table", _send_table, name, self._trackers[name], title, table, step)

    def close(self) -> None:
        for name, tracker in list(self._trackers.items()):
            self._try(name, "finish", tracker.finish)
        self._trackers.clear()

    def _start(self, name: str, run_dir: Path, config: Mapping[str, Any]) -> None:
        kind = LOGGER_TYPE_TO_CLASS[name]
        options = {RUN_NAME_OPTION[name]: run_dir.name} if name in RUN_NAME_OPTION else {}
        folder = [str(run_dir)] if kind.requires_logging_directory else []
        tracker = kind("tensorboard" if name == "tensorboard" else PROJECT, *folder, **options)
        tracker.start()
        self._trackers[name] = tracker
        if name != "tensorboard":  # its hyperparameters become a second run in a subfolder; config.yaml has them
            tracker.store_init_configuration(dict(config))

    def _try(self, name: str, verb: str, call: Callable[..., None], *args: Any, **kwargs: Any) -> None:
        try:
            call(*args, **kwargs)
        except Exception as error:
            self._trackers.pop(name, None)
            self._warn(f"tracker {name} failed to {verb} ({type(error).__name__}: {error}); the run goes on without it")


def flatten(row: Mapping[str, Any], *, texts: bool = False, prefix: str = "") -> dict[str, Any]:
    """Nested names joined by `/`; finite numbers only, and anything else as text where `texts` is set."""
    flat: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, texts=texts, prefix=f"{prefix}{name}/")
        elif isinstance(value, (int, float)) and math.isfinite(value):
            flat[f"{prefix}{name}"] = value
        elif texts:
            flat[f"{prefix}{name}"] = str(value)
    return flat


def completions_table(samples: Path, kind: str, step: int) -> list[list[Any]]:
    """Rows of COLUMNS: the first completions of "step" or "eval" in a step, their texts cut."""
    shown = []
    for record in records_of(sorted(samples.glob(f"{kind}-{step}.*jsonl")))[:ROWS]:
        told = dict(record)
        if record.get("messages"):
            told["response"] = "\n".join(f"{m.get('role')}: {m.get('content')}" for m in record["messages"])
        for side in ("segments", "chosen", "rejected"):
            told["response"] = told.get("response") or "".join(text for text, _ in record.get(side) or ())
        cells = [told.get(name) for name in COLUMNS]
        shown.append([cell if isinstance(cell, int | float) else "" if cell is None else _cut(cell) for cell in cells])
    return shown


def _takes_tables(name: str, tracker: GeneralTracker) -> bool:
    return name == "tensorboard" or hasattr(tracker, "log_table")


def _send_table(name: str, tracker: GeneralTracker, title: str, table: Sequence[Sequence[Any]], step: int) -> None:
    if name == "tensorboard":  # it has texts in place of tables
        tracker.tracker.add_text(title, "\n\n---\n\n".join(map(_markdown, table)), global_step=step)
    else:
        tracker.log_table(title, columns=list(COLUMNS), data=[list(row) for row in table], step=step)


def _markdown(row: Sequence[Any]) -> str:
    """A completion as text: its numbers in a line, its texts as they are, which an indentation keeps from being
    markup."""
    cells = dict(zip(COLUMNS, row, strict=True))
    numbers = " · ".join(
        f"{name} {cells[name]}" for name in ("uid", "sibling", "reward", "status") if cells[name] != ""
    )
    texts = [f"{name}\n\n{indent(str(cells[name]), '    ', bool)}" for name in ("prompt", "response", "answer")]
    return "\n\n".join([numbers, *texts])


def _cut(value: Any) -> str:
    text = str(value)
    return text[:LONGEST] + (" …" if len(text) > LONGEST else "")

"""Experiment trackers, through accelerate's wrappers. Imports accelerate, and so torch: only where a run starts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate.state import PartialState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker

from yatt.config.trackers import check_trackers

PROJECT = "yatt"
RUN_NAME_OPTION = {
    "wandb": "name",
    "mlflow": "run_name",
    "trackio": "name",
    "swanlab": "experiment_name",
    "clearml": "task_name",
}


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

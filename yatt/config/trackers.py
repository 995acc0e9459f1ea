"""Experiment trackers by name, checked without importing one."""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Sequence

from yatt.errors import ConfigError

TRACKERS = {
    "tensorboard": ("tensorboard", "tensorboardX"),
    "wandb": ("wandb",),
    "mlflow": ("mlflow",),
    "trackio": ("trackio",),
    "swanlab": ("swanlab",),
    "comet_ml": ("comet_ml",),
    "clearml": ("clearml",),
    "aim": ("aim",),
    "dvclive": ("dvclive",),
}


def check_trackers(names: Sequence[str]) -> None:
    """Raises ConfigError for a name that is not known, or one whose package is not installed."""
    for name in names:
        if name not in TRACKERS:
            near = difflib.get_close_matches(name, TRACKERS, n=1, cutoff=0.5)
            remedy = f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(TRACKERS)}"
            raise ConfigError(f"log.trackers={name!r} is not a known tracker; {remedy}")
        if not any(importlib.util.find_spec(package) for package in TRACKERS[name]):
            package = TRACKERS[name][0].replace("_", "-")
            raise ConfigError(
                f"log.trackers={name!r} needs the package {package}, which is not installed; "
                f"run `pip install {package}`, or leave {name} out of log.trackers"
            )

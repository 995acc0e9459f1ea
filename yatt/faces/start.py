"""Whether a run can be where its settings want it, asked before anything heavy is imported."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from yatt.cluster.folders import ray_folder
from yatt.config.schema import Config
from yatt.errors import ConfigError
from yatt.faces.checkpoints import Checkpoints
from yatt.faces.rundir import RunDirectory

ROOM = 200
"""Bytes of the longest path within a run folder, and then some."""


def ready(
    config: Config, file: Path | None = None, overrides: Sequence[str] = (), *, overwrite: bool = False
) -> RunDirectory:
    """The run's folder, which may not be there yet. Raises ConfigError where it cannot be made, holds another run, or
    the checkpoint that the run goes on from was made under other settings, or Ray cannot be started here. `file` and
    `overrides` are what `config` was read from: the file of a run that has moved goes on elsewhere. With `overwrite`
    a run that the folder holds is no hindrance. Touches nothing."""
    run = RunDirectory(Path(config.run.dir) / config.run.name)
    if overwrite and config.resume != "never":
        raise ConfigError(f"--overwrite begins anew, and resume={config.resume} goes on; give one of them")
    if file is not None and config.resume == "auto":
        _check_moved(run, file, overrides)
    if config.cluster.address is None:
        ray_folder()
    _check_place(config, run)
    if not overwrite:
        _check_free(config, run)
    if (resume := Checkpoints(run, config).choose(deep=False).resume) is not None:
        resume.check(config)
    return run


def _check_moved(run: RunDirectory, file: Path, overrides: Sequence[str]) -> None:
    """Whether the config that a run has written is that of the folder it stands in."""
    told = any(word.startswith(("run.dir=", "run.name=", "run=")) for word in overrides)
    home = RunDirectory(file.parent)
    if not told and home.holds_run() and home.path.resolve() != run.path.resolve():
        there = file.parent.resolve()
        raise ConfigError(
            f"resume=auto: {file} is of the run in {there}, but its run.dir and run.name are those of {run.path}; if "
            f"it has moved, add run.dir={there.parent} run.name={there.name}"
        )


def _check_place(config: Config, run: RunDirectory) -> None:
    """Whether the system takes files there, of names this long."""
    folder = run.path.absolute()
    there = next(one for one in (folder, *folder.parents) if os.path.lexists(one))
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        what = "no folder" if not there.is_dir() else "not writable"
        raise ConfigError(f"run.dir={config.run.dir}: {there} is {what}; name another run.dir")
    longest, most = max(folder.parts, key=lambda part: len(os.fsencode(part))), os.pathconf(there, "PC_NAME_MAX")
    setting = f"run.name={config.run.name}" if longest == config.run.name else f"run.dir={config.run.dir}"
    if len(os.fsencode(longest)) > most:
        raise ConfigError(
            f"{setting:.60}: {longest:.20}... has {len(os.fsencode(longest))} bytes; a name there has at most {most}"
        )
    whole, most = len(os.fsencode(folder)) + ROOM, os.pathconf(there, "PC_PATH_MAX")
    if whole > most:
        raise ConfigError(f"{setting:.60}: paths of its files have up to {whole} bytes; one there has at most {most}")


def _check_free(config: Config, run: RunDirectory) -> None:
    """Whether what the folder holds is what the run goes on from."""
    if not run.holds_run() or config.resume == "auto":
        return
    at = f"run.name={config.run.name}: {run.path} holds a run already"
    if config.resume == "never":
        raise ConfigError(f"{at}; resume=auto goes on with it, --overwrite begins anew, another run.name keeps both")
    checkpoint, complete = Path(config.resume).resolve(), [one.resolve() for one in run.checkpoints()]
    if checkpoint.parent != run.checkpoints_folder.resolve():
        raise ConfigError(f"{at}, and resume={config.resume} is another's; give another run.name to start from there")
    if checkpoint in complete[:-1]:
        raise ConfigError(
            f"{at}, up to {complete[-1].name}: going on from {checkpoint.name} would leave two runs in one folder; "
            f"give another run.name, or remove the checkpoints after {checkpoint.name} first"
        )

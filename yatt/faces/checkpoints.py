"""Checkpoints of a run: written aside and renamed last, so that a folder named step-N is complete; old ones removed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

from yatt.config.load import save_config
from yatt.config.schema import Config
from yatt.errors import CheckpointError
from yatt.faces.rundir import COMPLETE, RunDirectory

StateWriter = Callable[[Path], Awaitable[dict[str, Any]]]


class Resume(NamedTuple):
    """Where a run goes on: the step that was completed, the ranks' and the controllers' folders, and the state that all
    controllers share."""

    step: int
    trainer: str
    controllers: str
    state: dict[str, Any]


class Checkpoints:
    """Saves and finds a run's checkpoints: `trainer/` by the ranks, `controllers/` by the controllers, `state.json` and
    `config.yaml` by the driver."""

    def __init__(self, run: RunDirectory, config: Config) -> None:
        self._run = run
        self._config = config

    async def save(self, step: int, write: StateWriter) -> Path:
        """Have everyone `write` and tell the state, then make it visible whole. Raises what they raise; nothing
        half-written stays."""
        final = self._run.checkpoints_folder / f"step-{step}"
        aside = final.with_name(f".step-{step}.part")
        shutil.rmtree(aside, ignore_errors=True)
        (aside / "controllers").mkdir(parents=True)
        try:
            state = await write(aside.absolute())
            save_config(self._config, aside / "config.yaml")
            _write_json(aside / "state.json", state)
            _write_json(aside / COMPLETE, {"step": step, "model": self._config.model.path})
            shutil.rmtree(final, ignore_errors=True)
            aside.rename(final)
            _sync(final.parent)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
        for old in self._run.checkpoints()[: -self._config.checkpoint.keep]:
            shutil.rmtree(old, ignore_errors=True)
        return final

    def resume(self) -> Resume | None:
        """What `resume` asks for: nothing, the latest complete checkpoint of this run if any, or the one at a path."""
        asked = self._config.resume
        if asked == "never":
            return None
        folder = self._run.latest_checkpoint() if asked == "auto" else Path(asked)
        return None if folder is None else read_checkpoint(folder)


def read_checkpoint(folder: Path) -> Resume:
    """The checkpoint in `folder`. Raises CheckpointError where it is missing or half-written."""
    if not folder.is_dir():
        raise CheckpointError(f"resume={folder}: there is no such folder; use auto, or a folder checkpoints/step-N")
    try:
        step = int(json.loads((folder / COMPLETE).read_text())["step"])
        state = json.loads((folder / "state.json").read_text())
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"resume={folder}: half-written checkpoint ({error}); remove it and use resume=auto, "
            "which takes the last complete one"
        ) from None
    folder = folder.absolute()
    return Resume(step, str(folder / "trainer"), str(folder / "controllers"), state)


def _write_json(path: Path, value: Any) -> None:
    with open(path, "w", encoding="utf-8") as out:
        json.dump(value, out, indent=1)
        out.flush()
        os.fsync(out.fileno())


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

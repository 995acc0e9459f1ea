"""Checkpoints of a run: written aside and renamed last, so that a folder named step-N is complete; old ones removed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from yatt.config.load import load_config, save_config
from yatt.config.resume import content_mistakes, draws_otherwise, resume_mistakes
from yatt.config.schema import Config
from yatt.errors import CheckpointError, ConfigError
from yatt.faces.rundir import COMPLETE, RunDirectory

StateWriter = Callable[[Path], Awaitable[dict[str, Any]]]


class Resume(NamedTuple):
    """Where a run goes on: the checkpoint's folder, the step that was completed, and the state that all controllers
    share; `contents` are those of `yatt.faces.contents`, none in older checkpoints."""

    folder: Path
    step: int
    state: dict[str, Any]
    contents: dict[str, str]

    @property
    def trainer(self) -> str:
        """The ranks' folder."""
        return str(self.folder / "trainer")

    @property
    def controllers(self) -> str:
        """The controllers' folder."""
        return str(self.folder / "controllers")

    def carried(self) -> list[int]:
        """The positions of the groups that the controllers carry over."""
        files = sorted(Path(self.controllers).glob("controller-*.jsonl"))
        return [json.loads(line)["uid"] for file in files for line in file.read_text(encoding="utf-8").splitlines()]

    def begun(self, config: Config) -> tuple[dict[str, Any], str]:
        """The state and the controllers' folder that `config` goes on with. Groups that it would have drawn otherwise
        are given back: their prompts are drawn anew."""
        if not draws_otherwise(config, load_config(str(self.folder / "config.yaml"), [])):
            return self.state, self.controllers
        source = self.state["source"]
        holes = sorted({*source["holes"], *self.carried()})
        return {**self.state, "source": {**source, "holes": holes}}, os.path.join(self.controllers, "none")

    def check(self, config: Config, contents: Mapping[str, str] | None = None) -> None:
        """Whether `config`, and the models and rows that it names, go on from here. Raises ConfigError where a setting
        would be said and not done."""
        then = load_config(str(self.folder / "config.yaml"), [])
        mistakes = resume_mistakes(config, then)
        if contents is not None:
            mistakes = content_mistakes(config, then, contents, self.contents)
        if lines := list(mistakes):
            raise ConfigError("\n".join(lines))


class Checkpoints:
    """Saves and finds a run's checkpoints: `trainer/` by the ranks, `controllers/` by the controllers, `state.json` and
    `config.yaml` by the driver. `contents` are written into each."""

    def __init__(self, run: RunDirectory, config: Config) -> None:
        self._run = run
        self._config = config
        self.contents: Mapping[str, str] = {}

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
            told = {"step": step, "model": self._config.model.path, "contents": dict(self.contents)}
            _write_json(aside / COMPLETE, told)
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
        """The checkpoint that `resume` asks for: none, the latest complete checkpoint of this run if any, or the one at
        a path."""
        asked = self._config.resume
        if asked == "never":
            return None
        folder = self._run.latest_checkpoint() if asked == "auto" else Path(asked)
        return None if folder is None else read_checkpoint(folder, "resume=", "use resume=auto, which takes")


def read_checkpoint(folder: Path, setting: str = "", otherwise: str = "name the run's folder, for") -> Resume:
    """The checkpoint in `folder`. Raises CheckpointError where it is missing or half-written; that begins with the
    `setting` that named it, if one did, and ends with how to get the last complete one `otherwise`."""
    if not folder.is_dir():
        others = ", ".join(one.name for one in RunDirectory(folder.parent.parent).checkpoints())
        there = f"; {folder.parent} has {others}" if others else f"; {otherwise} the last complete one"
        raise CheckpointError(f"{setting}{folder}: there is no such checkpoint{there}")
    try:
        complete = json.loads((folder / COMPLETE).read_text())
        step, contents = int(complete["step"]), complete.get("contents", {})
        state = json.loads((folder / "state.json").read_text())
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{setting}{folder}: half-written checkpoint ({error}); remove it and {otherwise} the last complete one"
        ) from None
    return Resume(folder.absolute(), step, state, contents)


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

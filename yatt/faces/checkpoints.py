"""Checkpoints of a run: written aside and renamed last, so that a folder named step-N is complete; old ones removed.

Every file has a checksum. `complete.json` has them, and its own; of a trainer's shards, the description beside each.
What is read is what was written, or refused."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import threading
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from yatt.checksums import Damaged, check_file, entry, read_json, write_json
from yatt.config.load import load_config, save_config
from yatt.config.resume import content_mistakes, draws_otherwise, resume_mistakes
from yatt.config.schema import Config
from yatt.errors import CheckpointError, ConfigError
from yatt.faces.remote import Remote
from yatt.faces.rundir import COMPLETE, RunDirectory
from yatt.training.identity import DESCRIPTION, SHARD, check_shards

T = TypeVar("T")
StateWriter = Callable[[Path], Awaitable[dict[str, Any]]]
READ = ("state.json", "config.yaml")
BROKEN = ".broken"
"""Behind the name of a checkpoint that was passed over."""


class Resume(NamedTuple):
    """Where a run goes on: the checkpoint's folder, the step that was completed, and the state that all controllers
    share; `contents` are those of `yatt.faces.contents`."""

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
        mistakes = [*resume_mistakes(config, then)]
        if contents is not None and not mistakes:
            mistakes = [*content_mistakes(config, then, contents, self.contents)]
        if mistakes:
            raise ConfigError("\n".join(mistakes))


class Choice(NamedTuple):
    """The checkpoint that is gone on from, if any, and those that were passed over for it: each with the reason."""

    resume: Resume | None
    passed: dict[Path, str]

    @property
    def lines(self) -> list[str]:
        """One for each that was passed over."""
        return [f"{folder} is passed over: {why}" for folder, why in self.passed.items()]


def newest_good(run: RunDirectory, *, deep: bool = True) -> Choice:
    """The checkpoint of the highest step of which every file is what was written; none where there are none. With
    `deep` all of it is read, else trainer's shards are not. Raises CheckpointError where there are some, and none is
    good."""
    passed: dict[Path, str] = {}
    for folder in reversed(run.step_folders()):
        try:
            return Choice(_read(folder, deep=deep), passed)
        except Damaged as error:
            passed[folder] = str(error)
    if passed:
        lines = "".join(f"\n{line}" for line in Choice(None, passed).lines)
        raise CheckpointError(
            f"{run.checkpoints_folder}: no checkpoint is good; bring one back, or start a new run{lines}"
        )
    return Choice(None, passed)


class Checkpoints:
    """Saves and finds a run's checkpoints: `trainer/` by the ranks, `controllers/` by the controllers, `state.json` and
    `config.yaml` by the driver. `contents` are written into each. What could not be copied elsewhere is told to
    `warn`."""

    def __init__(self, run: RunDirectory, config: Config) -> None:
        self._run = run
        self._config = config
        self._remote = Remote.of(config)
        self._copying: asyncio.Task[None] | None = None
        self.contents: Mapping[str, str] = {}
        self.warn: Callable[[str], None] = print

    async def save(self, step: int, write: StateWriter) -> Path:
        """Have everyone `write` and tell the state, then make it visible whole, and begin to copy it elsewhere. Raises
        what they raise; nothing half-written stays. One at a time."""
        aside = self._run.checkpoints_folder / f".step-{step}.part"
        shutil.rmtree(aside, ignore_errors=True)
        (aside / "controllers").mkdir(parents=True)
        try:
            state = await write(aside.absolute())
            await self.copied()
            final = await asyncio.to_thread(self._complete, step, aside, state)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
        if self._remote is not None:
            self._copying = asyncio.create_task(self._copy(self._remote, final))  # pruned after its end only
        return final

    def _complete(self, step: int, aside: Path, state: dict[str, Any]) -> Path:
        final = self._run.checkpoints_folder / f"step-{step}"
        save_config(self._config, aside / "config.yaml")
        (aside / "state.json").write_text(json.dumps(state, indent=1), encoding="utf-8")
        files = {}
        for file in sorted(aside.rglob("*")):
            vouched = file.suffix == SHARD and file.with_suffix(".json").is_file()
            if file.is_file() and not vouched:
                files[str(file.relative_to(aside))] = entry(file)
                _sync(file)
        told = {"step": step, "model": self._config.model.path, "contents": dict(self.contents), "files": files}
        write_json(aside / COMPLETE, told)
        shutil.rmtree(final, ignore_errors=True)
        aside.rename(final)
        _sync(final.parent)
        for old in self._run.checkpoints()[: -self._config.checkpoint.keep]:
            shutil.rmtree(old, ignore_errors=True)
        return final

    async def _copy(self, remote: Remote, folder: Path) -> None:
        try:
            await in_thread(remote.upload, folder, self._config.checkpoint.keep)
        except CheckpointError as error:
            self.warn(f"{error}; the run goes on, {folder} is good")

    async def copied(self) -> None:
        """Wait for the copy under way, if any."""
        if self._copying is not None:
            await self._copying

    def fetch(self) -> Path | None:
        """Bring the newest good checkpoint that was copied elsewhere, where this folder has no good one of its step or
        a later one; returns where it is now. Raises CheckpointError where it cannot be had."""
        if self._remote is None or self._config.resume != "auto":
            return None
        try:
            local = newest_good(self._run).resume
        except CheckpointError:
            local = None
        for step in reversed(self._remote.steps()):
            if local is not None and local.step >= step:
                break
            aside = self._run.checkpoints_folder / f".step-{step}.part"
            self._remote.download(step, aside)
            try:
                _read(aside)
            except Damaged as error:
                shutil.rmtree(aside)
                self.warn(f"{self._remote}/step-{step} is passed over: {error}")
                continue
            final = aside.with_name(f"step-{step}")
            shutil.rmtree(final, ignore_errors=True)
            return aside.rename(final)
        return None

    def choose(self, *, deep: bool = True) -> Choice:
        """The checkpoint that `resume` asks for: none, the newest good one of this run if any, or the one at a path.
        Raises CheckpointError as `newest_good` and `read_checkpoint`."""
        asked = self._config.resume
        if asked == "never":
            return Choice(None, {})
        if asked == "auto":
            return newest_good(self._run, deep=deep)
        own = Path(asked).resolve().parent == self._run.checkpoints_folder.resolve()
        return Choice(read_checkpoint(Path(asked), "resume=", own=own, deep=deep), {})

    def newest(self) -> Resume | None:
        """The newest good checkpoint that this run has written, if any; those passed over for it are said, and get
        other names. Raises CheckpointError as `newest_good`."""
        choice = newest_good(self._run)
        for line in choice.lines:
            self.warn(line)
        self.sweep(choice.passed)
        return choice.resume

    def sweep(self, passed: Mapping[Path, str]) -> None:
        """Remove what dead runs left half-written, and give other names to checkpoints that were passed over, so that
        they are taken for none; the run's folder is locked."""
        for part in self._run.checkpoints_folder.glob(".step-*.part"):
            shutil.rmtree(part, ignore_errors=True)
        for folder in passed:
            aside = folder.with_name(folder.name + BROKEN)
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)


def read_checkpoint(folder: Path, setting: str = "", *, own: bool = False, deep: bool = True) -> Resume:
    """The checkpoint in `folder`; with `deep`, all of it is read. Raises CheckpointError where it is missing, or one of
    its files is not what was written: that begins with the `setting` that named it, if one did, and ends with what to
    use instead. `own` is whether it is a checkpoint of the run that asks."""
    run = RunDirectory(folder.parent.parent)
    if not folder.is_dir():
        others = ", ".join(one.name for one in run.checkpoints())
        there = f"; {folder.parent} has {others}" if others else ""
        raise CheckpointError(f"{setting}{folder}: there is no such checkpoint{there}")
    try:
        return _read(folder, deep=deep)
    except Damaged as error:
        try:
            instead = newest_good(run).resume
        except CheckpointError:
            instead = None
        use = "no other there is good"
        if instead is not None:
            use = "use resume=auto, which takes " if own else f"use {setting}{folder.parent}/"
            use += instead.folder.name
        raise CheckpointError(f"{setting}{folder} is broken: {error}; {use}") from None


def _read(folder: Path, *, deep: bool = True) -> Resume:
    """Raises Damaged for a file that is not what was written."""
    complete = read_json(folder, COMPLETE, "step", "contents", "files")
    if missing := [name for name in READ if name not in complete["files"]]:
        raise Damaged(f"{COMPLETE} does not list {missing[0]}: another version wrote it")
    for name, written in complete["files"].items():
        check_file(folder, name, written, deep=deep or name in READ)
        if Path(name).name == DESCRIPTION:
            part = Path(name).parent
            try:
                check_shards(folder / part, deep=deep)
            except Damaged as error:
                raise Damaged(f"{part}/{error}") from None
    state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    return Resume(folder.absolute(), complete["step"], state, complete["contents"])


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


async def in_thread(function: Callable[..., T], *arguments: Any) -> T:
    """As `asyncio.to_thread`, in a thread that the end of the program does not wait for."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(method: Callable[[Any], None], value: Any) -> None:
        if not future.done():
            method(value)

    def work() -> None:
        try:
            told = (future.set_result, function(*arguments))
        except BaseException as error:
            told = (future.set_exception, error)  # type: ignore[assignment]
        with suppress(RuntimeError):  # nobody waits any more
            loop.call_soon_threadsafe(settle, *told)

    threading.Thread(target=work, daemon=True).start()
    return await future

"""Copies of a run's checkpoints, anywhere that fsspec reaches: complete or absent there too."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec

from yatt.config.schema import Config
from yatt.config.secrets import masked
from yatt.errors import CheckpointError, ConfigError
from yatt.faces.rundir import COMPLETE, step_of


class Remote:
    """The folder `checkpoint.remote`/RUN. Object stores rename nothing: a copy is complete once it has `complete.json`,
    which comes last and goes first. Blocking; what fails raises CheckpointError."""

    def __init__(self, url: str, run: str) -> None:
        """Raises ConfigError for an address that nothing here can reach. Connects to nothing."""
        self._url = f"{url.rstrip('/')}/{run}"
        try:
            fsspec.get_filesystem_class(fsspec.utils.get_protocol(url))
        except (ImportError, ValueError) as error:
            raise ConfigError(
                f"checkpoint.remote={masked(url)}: {error}; use a scheme that fsspec knows, such as s3://BUCKET/FOLDER"
            ) from None

    @staticmethod
    def of(config: Config) -> Remote | None:
        """The one of a run, if it has one."""
        url = config.checkpoint.remote
        return None if url is None else Remote(url, config.run.name)

    def __str__(self) -> str:
        return str(masked(self._url))

    def upload(self, folder: Path, keep: int) -> None:
        """Copy a checkpoint, and then remove all but the newest `keep`."""
        with self._told():
            files, root = self._open()
            target = f"{root}/{folder.name}"
            self._remove(files, target)
            names = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
            for name in sorted(names, key=lambda name: name == COMPLETE):
                files.makedirs(os.path.dirname(f"{target}/{name}"), exist_ok=True)
                files.put_file(str(folder / name), f"{target}/{name}")
            for step in self._steps(files, root)[:-keep]:
                self._remove(files, f"{root}/step-{step}")

    def steps(self) -> list[int]:
        """The steps of complete copies, in order."""
        with self._told():
            return self._steps(*self._open())

    def download(self, step: int, folder: Path) -> None:
        """Copy a checkpoint into a new folder."""
        with self._told():
            shutil.rmtree(folder, ignore_errors=True)
            files, root = self._open()
            source = f"{root}/step-{step}"
            for path in files.find(source):
                target = folder / os.path.relpath(path, source)
                target.parent.mkdir(parents=True, exist_ok=True)
                files.get_file(path, str(target))

    def _open(self) -> tuple[Any, str]:
        files, root = fsspec.core.url_to_fs(self._url)
        files.invalidate_cache()
        return files, root.rstrip("/")

    def _steps(self, files: Any, root: str) -> list[int]:
        names = (
            [os.path.basename(path.rstrip("/")) for path in files.ls(root, detail=False)] if files.exists(root) else []
        )
        steps = sorted(step for name in names if (step := step_of(name)) is not None)
        return [step for step in steps if files.exists(f"{root}/step-{step}/{COMPLETE}")]

    def _remove(self, files: Any, folder: str) -> None:
        if files.exists(f"{folder}/{COMPLETE}"):
            files.rm(f"{folder}/{COMPLETE}")
        if files.exists(folder):
            files.rm(folder, recursive=True)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """File systems raise what they like."""
        try:
            yield
        except Exception as error:
            why = str(error).partition("\n")[0] or type(error).__name__
            raise CheckpointError(f"checkpoint.remote={self}: {masked(why)}") from error

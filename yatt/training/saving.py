"""A rank's shard on its way to the disk, written by a thread of its own while training goes on."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from yatt.checksums import write_json
from yatt.errors import BackendError
from yatt.training.identity import DESCRIPTION
from yatt.training.memory import release_freed_memory
from yatt.training.shard_files import Box, write_shard
from yatt.training.snapshot import Snapshot

COPIED = 0.4
"""Of a shard that lies in the host's memory, the most that is copied: half as much again as its states is what a
checkpoint may take. A device's is copied whole."""


class Saving:
    """A shard that is written from the memory of its boxes, as they are now. `model` and `state` are the same on all
    ranks; rank 0 writes them. Waits for nobody."""

    def __init__(
        self, path: str, boxes: Sequence[Box], *, rank: int, ranks: int, model: dict[str, Any], state: dict[str, Any]
    ) -> None:
        self._folder, self._boxes, self._rank = Path(path), boxes, rank
        self._told = {"shards": ranks, "model": model, "state": state}
        on_device = any(box.values.device.type != "cpu" for box in boxes)
        limit = None if on_device else int(COPIED * sum(box.values.nbytes for box in boxes))
        self._snapshot = Snapshot([box.values for box in boxes], limit)
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._write, name=f"checkpoint {path}", daemon=True)
        self._thread.start()

    def secure(self) -> None:
        """Return once the boxes' memory may change."""
        self._snapshot.secure()

    def over(self) -> None:
        """Return once it is written, or has failed."""
        self._thread.join()

    def wait(self) -> None:
        """Return once all is on the disk. Raises BackendError where it is not."""
        self.over()
        if self._failure is not None:
            free = shutil.disk_usage(next(one for one in (self._folder, *self._folder.parents) if one.is_dir())).free
            raise BackendError(
                f"checkpoint {self._folder} could not be written: {self._failure}; its disk has {free / 2**20:.1f} MiB "
                "free"
            ) from self._failure

    def _write(self) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            if self._rank == 0:
                (self._folder / DESCRIPTION).unlink(missing_ok=True)
            write_shard(self._folder, self._rank, self._boxes, self._snapshot)
            if self._rank == 0:
                write_json(self._folder / DESCRIPTION, self._told)
        except Exception as error:
            self._failure = error
        finally:
            self._snapshot.forget()
            self._boxes = ()
            release_freed_memory()

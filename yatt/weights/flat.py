"""Weights through shared memory: tensors end to end in one flat file under /dev/shm."""

from __future__ import annotations

import fcntl
import itertools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
import xxhash

from yatt.errors import BackendError
from yatt.types import TensorEntry, WeightManifest

ALIGNMENT = 64
PREFIX = "yatt-"
_numbers = itertools.count()


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """The tensor's bytes, without a copy where it is contiguous on the CPU."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def describe(name: str, tensor: torch.Tensor, offset: int) -> TensorEntry:
    """The tensor's line in a manifest."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    return TensorEntry(name=name, dtype=dtype, shape=tuple(tensor.shape), offset=offset, nbytes=tensor.nbytes)


class FlatWriter:
    """Writes each version of the weights into one of two buffers in turn, so that the last one stays readable.

    Files are `DIRECTORY/yatt-TOKEN-PID-N.weights`, locked while their writer lives; those of dead writers are removed.
    Not thread-safe. `close` unlinks the files; maps that readers hold stay valid.
    """

    def __init__(self, directory: str | Path, token: str) -> None:
        remove_stale(directory)
        self._buffers = [_create(Path(directory), token) for _ in range(2)]
        self._layout: tuple[TensorEntry, ...] | None = None
        self._turn = 0

    def write(self, tensors: Iterable[tuple[str, torch.Tensor]], version: int) -> WeightManifest:
        """Copy a stream of (Hugging Face name, tensor) into the next buffer, one tensor at a time.

        Raises BackendError where the stream differs in a name, shape or dtype from the first one written.
        """
        fd, path = self._buffers[self._turn]
        entries: list[TensorEntry] = []
        checksum = xxhash.xxh3_64()
        offset = 0
        for name, tensor in tensors:
            data = tensor_bytes(tensor)
            entry = describe(name, tensor, offset)
            self._check(len(entries), entry)
            _write_at(fd, data, offset, path)
            checksum.update(data)
            entries.append(entry)
            offset += -(-data.nbytes // ALIGNMENT) * ALIGNMENT
        if self._layout is not None and len(entries) != len(self._layout):
            raise BackendError(f"weights: tensor {self._layout[len(entries)].name} is missing from version {version}")
        self._layout = tuple(entries)
        self._turn = 1 - self._turn
        return WeightManifest(
            version=version, kind="flat", path=str(path), checksum=checksum.hexdigest(), entries=self._layout
        )

    def _check(self, position: int, entry: TensorEntry) -> None:
        if self._layout is None:
            return
        expected = self._layout[position] if position < len(self._layout) else None
        if entry != expected:
            raise BackendError(
                f"weights: tensor {position} is {entry}, but was {expected} in the first version written"
            )

    def close(self) -> None:
        for fd, path in self._buffers:
            path.unlink(missing_ok=True)
            os.close(fd)
        self._buffers = []


def read(manifest: WeightManifest) -> Iterator[tuple[str, torch.Tensor]]:
    """Views (name, tensor) into the mapped file; writing to one changes neither the file nor other readers.

    Raises BackendError where the file is gone or too short.
    """
    path = manifest.path
    needed = max((e.offset + e.nbytes for e in manifest.entries if e.nbytes), default=0)
    try:
        size = os.path.getsize(path)
        if size < needed:
            raise BackendError(f"weights: {path} has {size} bytes, its manifest says {needed}: it was truncated")
        flat = torch.from_numpy(np.memmap(path, dtype=np.uint8, mode="c")) if needed else torch.empty(0)
    except OSError as error:
        raise BackendError(f"weights: {path} cannot be read: {error}") from error
    for entry in manifest.entries:
        data = flat[entry.offset : entry.offset + entry.nbytes]
        yield entry.name, data.view(getattr(torch, entry.dtype)).view(entry.shape)


def remove_stale(directory: str | Path) -> list[Path]:
    """Remove flat files whose writer no longer lives (nobody holds their lock); returns what was removed."""
    removed = []
    for path in Path(directory).glob(f"{PREFIX}*.weights"):
        try:
            fd = os.open(path, os.O_RDWR)
        except OSError:
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
            removed.append(path)
        except OSError:
            pass
        finally:
            os.close(fd)
    return removed


def _create(directory: Path, token: str) -> tuple[int, Path]:
    """A new locked, empty file. Its lock goes with the process, so a pid reused by another one misleads nobody."""
    while True:
        path = directory / f"{PREFIX}{token}-{os.getpid()}-{next(_numbers)}.weights"
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            continue
        except OSError as error:
            raise BackendError(f"weights: {path} cannot be created: {error}") from error
        fcntl.flock(fd, fcntl.LOCK_EX)
        if path.exists():
            return fd, path
        os.close(fd)  # another process cleaned up between our open and our lock


def _write_at(fd: int, view: memoryview, offset: int, path: Path) -> None:
    while view:
        try:
            written = os.pwrite(fd, view, offset)
        except OSError as error:
            raise BackendError(f"weights: {path} cannot be written: {error}") from error
        view, offset = view[written:], offset + written

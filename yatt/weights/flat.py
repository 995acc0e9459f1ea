"""Weights through shared memory: tensors end to end in one flat file under /dev/shm."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
import xxhash

from yatt.errors import BackendError
from yatt.types import TensorEntry, WeightManifest

ALIGNMENT = 64
PREFIX = "yatt-"


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
        self._layout: tuple[TensorEntry, ...] = ()
        self._turn = 0

    def write(self, tensors: Iterable[tuple[str, torch.Tensor]], version: int) -> WeightManifest:
        """Copy a stream of (Hugging Face name, tensor) into the next buffer, one tensor at a time.

        Raises BackendError where memory runs out, or the stream's layout differs from the first one's.
        """
        file, path = self._buffers[self._turn]
        entries: list[TensorEntry] = []
        checksum = xxhash.xxh3_64()
        offset = 0
        try:
            for name, tensor in tensors:
                data = tensor_bytes(tensor)
                entries.append(describe(name, tensor, offset))
                file.seek(offset)
                file.write(data)
                checksum.update(data)
                offset += -(-data.nbytes // ALIGNMENT) * ALIGNMENT
            file.flush()
        except OSError as error:
            raise BackendError(f"weights: {path} cannot be written: {error}") from error
        layout = tuple(entries)
        for new, old in itertools.zip_longest(layout, self._layout or layout):
            if new != old:
                raise BackendError(f"weights: version {version} has {new} where the first version had {old}")
        self._layout = layout
        self._turn = 1 - self._turn
        return WeightManifest(
            version=version, kind="flat", path=str(path), checksum=checksum.hexdigest(), entries=layout
        )

    def close(self) -> None:
        for file, path in self._buffers:
            path.unlink(missing_ok=True)
            file.close()
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
        with contextlib.suppress(OSError), open(path, "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
            removed.append(path)
    return removed


def _create(directory: Path, token: str) -> tuple[BinaryIO, Path]:
    """A new locked, empty file. Its lock goes with the process, so a pid reused by another one misleads nobody."""
    try:
        handle, name = tempfile.mkstemp(prefix=f"{PREFIX}{token}-{os.getpid()}-", suffix=".weights", dir=directory)
    except OSError as error:
        raise BackendError(f"weights: no file can be made in {directory}: {error}") from error
    file, path = open(handle, "r+b"), Path(name)  # noqa: SIM115  (closed by FlatWriter.close)
    fcntl.flock(file, fcntl.LOCK_EX)
    if path.exists():
        return file, path
    file.close()  # another process cleaned up between our open and our lock
    return _create(directory, token)

"""How a version of the policy's weights travels from the trainer to the engines of a node.

A writer makes a `WeightManifest`; a reader verifies it and reads it. Names are Hugging Face names throughout.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Literal, Protocol

import torch
import xxhash

from yatt.errors import BackendError
from yatt.types import WeightManifest
from yatt.weights import flat, folder

__all__ = ["SHARED_MEMORY", "WeightWriter", "check_names", "read", "verify", "writer_for"]

SHARED_MEMORY = "/dev/shm"
WRITERS: dict[str, type[flat.FlatWriter] | type[folder.FolderWriter]] = {
    "shm": flat.FlatWriter,
    "disk": folder.FolderWriter,
}
READERS = {"flat": flat.read, "folder": folder.read}


class WeightWriter(Protocol):
    """Writes versions of one model's weights, each whole."""

    def write(self, tensors: Iterable[tuple[str, torch.Tensor]], version: int) -> WeightManifest: ...

    def close(self) -> None: ...


def writer_for(kind: Literal["shm", "disk"], directory: str | Path | None, token: str) -> WeightWriter:
    """The writer of a transport. `directory` is by default /dev/shm for "shm", and needed for "disk".

    `token` tells apart the runs and nodes that share the directory.
    """
    if kind == "disk" and directory is None:
        raise BackendError("weights.transport=disk needs a directory: set weights.dir")
    return WRITERS[kind](directory or SHARED_MEMORY, token)


def verify(manifest: WeightManifest) -> None:
    """Read every byte; raise BackendError where the checksum over them is not the manifest's."""
    checksum = xxhash.xxh3_64()
    for _, tensor in READERS[manifest.kind](manifest):
        checksum.update(flat.tensor_bytes(tensor))
    if checksum.hexdigest() != manifest.checksum:
        raise BackendError(
            f"weights: version {manifest.version} in {manifest.path} has checksum {checksum.hexdigest()}, "
            f"its manifest says {manifest.checksum}: it was changed or half-written"
        )


def read(manifest: WeightManifest, *, verified: bool = False) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, tensor) of a whole version, in the manifest's order; verified first unless the caller already did.

    Raises BackendError before the first tensor on a wrong checksum, a missing tensor or a truncated file.
    """
    if not verified:
        verify(manifest)
    return READERS[manifest.kind](manifest)


def check_names(manifest: WeightManifest, expected: Mapping[str, tuple[int, ...]], tied: bool) -> None:
    """Raise BackendError unless the manifest has exactly the tensors of a model folder, in name and shape.

    `lm_head.weight` may be absent or present where it is `tied` to the embedding.
    """
    given = {entry.name: entry.shape for entry in manifest.entries}
    for name in sorted(given.keys() | expected.keys()):
        if tied and name == "lm_head.weight" and (name not in given or name not in expected):
            continue
        if given.get(name) != expected.get(name):
            raise BackendError(
                f"weights: in version {manifest.version} ({manifest.path}) the tensor {name} is "
                f"{given.get(name, 'missing')}, in the model it is {expected.get(name, 'missing')}"
            )

"""Weights through a disk: a safetensors folder per version, complete or absent."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
import xxhash
from safetensors import SafetensorError, safe_open

from yatt.config.weight_files import INDEX, WHOLE
from yatt.errors import BackendError
from yatt.types import TensorEntry, WeightManifest
from yatt.weights.flat import describe, tensor_bytes
from yatt.weights.shards import write_shards


class FolderWriter:
    """Writes each version to `DIRECTORY/TOKEN-vN`, aside first and renamed when complete; keeps the last two.

    Holds at most one shard in memory.
    """

    def __init__(self, directory: str | Path, token: str) -> None:
        self._root = Path(directory)
        self._token = token
        self._kept: list[Path] = []

    def write(self, tensors: Iterable[tuple[str, torch.Tensor]], version: int) -> WeightManifest:
        """Write a stream of (Hugging Face name, tensor)."""
        entries: list[TensorEntry] = []
        checksum = xxhash.xxh3_64()

        def noted() -> Iterator[tuple[str, torch.Tensor]]:
            offset = 0
            for name, tensor in tensors:
                checksum.update(tensor_bytes(tensor))
                entries.append(describe(name, tensor, offset))
                offset += tensor.nbytes
                yield name, tensor

        folder = self._root / f"{self._token}-v{version}"
        aside = folder.with_name(folder.name + ".partial")
        try:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
            write_shards(aside, noted())
            shutil.rmtree(folder, ignore_errors=True)
            aside.rename(folder)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(aside, ignore_errors=True)
            raise BackendError(f"weights: {folder} cannot be written: {error}") from error
        self._kept = [kept for kept in self._kept if kept != folder] + [folder]
        while len(self._kept) > 2:
            shutil.rmtree(self._kept.pop(0), ignore_errors=True)
        return WeightManifest(
            version=version, kind="folder", path=str(folder), checksum=checksum.hexdigest(), entries=tuple(entries)
        )

    def close(self) -> None:
        for folder in self._kept:
            shutil.rmtree(folder, ignore_errors=True)
        self._kept = []


def read(manifest: WeightManifest) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors (name, tensor) in the manifest's order.

    Raises BackendError where a file or a tensor is missing or not as the manifest says.
    """
    folder = Path(manifest.path)
    try:
        files = _files(folder)
        for entry in manifest.entries:
            if entry.name not in files:
                raise BackendError(f"weights: tensor {entry.name} is missing from {folder}")
            with safe_open(folder / files[entry.name], framework="pt") as shard:
                tensor = shard.get_tensor(entry.name)
            if tuple(tensor.shape) != entry.shape:
                raise BackendError(f"weights: {entry.name} in {folder} is {tuple(tensor.shape)}, not {entry.shape}")
            yield entry.name, tensor
    except (OSError, SafetensorError, ValueError) as error:
        raise BackendError(f"weights: {folder} cannot be read: {error}") from error


def _files(folder: Path) -> dict[str, str]:
    """The file of each tensor."""
    if (folder / INDEX).exists():
        return dict(json.loads((folder / INDEX).read_text())["weight_map"])
    with safe_open(folder / WHOLE, framework="pt") as whole:
        return dict.fromkeys(whole.keys(), WHOLE)

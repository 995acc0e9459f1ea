"""Weights through a disk: a safetensors folder per version, complete or absent."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from yatt.errors import BackendError
from yatt.types import TensorEntry, WeightManifest
from yatt.weights.flat import describe, tensor_bytes

INDEX = "model.safetensors.index.json"
SHARD_BYTES = 2 << 30


class FolderWriter:
    """Writes each version to `DIRECTORY/TOKEN-vN`, aside first and renamed when complete; keeps the last two.

    Holds at most one shard (2 GiB) in memory.
    """

    def __init__(self, directory: str | Path, token: str) -> None:
        self._root = Path(directory)
        self._token = token
        self._kept: list[Path] = []

    def write(self, tensors: Iterable[tuple[str, torch.Tensor]], version: int) -> WeightManifest:
        """Write a stream of (Hugging Face name, tensor) as shards with an index."""
        folder = self._root / f"{self._token}-v{version}"
        aside = folder.with_name(folder.name + ".partial")
        try:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
            entries, checksum = _write_shards(aside, tensors)
            shutil.rmtree(folder, ignore_errors=True)
            aside.rename(folder)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(aside, ignore_errors=True)
            raise BackendError(f"weights: {folder} cannot be written: {error}") from error
        self._kept = [kept for kept in self._kept if kept != folder] + [folder]
        while len(self._kept) > 2:
            shutil.rmtree(self._kept.pop(0), ignore_errors=True)
        return WeightManifest(version=version, kind="folder", path=str(folder), checksum=checksum, entries=entries)

    def close(self) -> None:
        for folder in self._kept:
            shutil.rmtree(folder, ignore_errors=True)
        self._kept = []


def _write_shards(folder: Path, tensors: Iterable[tuple[str, torch.Tensor]]) -> tuple[tuple[TensorEntry, ...], str]:
    entries: list[TensorEntry] = []
    files: dict[str, str] = {}
    shard: dict[str, torch.Tensor] = {}
    checksum = xxhash.xxh3_64()
    total = held = 0
    for name, tensor in tensors:
        if held + tensor.nbytes > SHARD_BYTES:
            files |= _write_shard(folder, shard, len(entries))
            shard, held = {}, 0
        checksum.update(tensor_bytes(tensor))
        entries.append(describe(name, tensor, total))
        # A copy, since a stream may reuse its tensor and safetensors refuses tensors that share memory.
        shard[name] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        total, held = total + tensor.nbytes, held + tensor.nbytes
    files |= _write_shard(folder, shard, len(entries))
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": files}, indent=1))
    return tuple(entries), checksum.hexdigest()


def _write_shard(folder: Path, shard: dict[str, torch.Tensor], number: int) -> dict[str, str]:
    file = f"model-{number:05d}.safetensors"
    save_file(shard, folder / file)
    return dict.fromkeys(shard, file)


def read(manifest: WeightManifest) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors (name, tensor) in the manifest's order.

    Raises BackendError where a file or a tensor is missing or not as the manifest says.
    """
    folder = Path(manifest.path)
    try:
        weight_map = json.loads((folder / INDEX).read_text())["weight_map"]
        for entry in manifest.entries:
            if entry.name not in weight_map:
                raise BackendError(f"weights: tensor {entry.name} is missing from {folder}")
            with safe_open(folder / weight_map[entry.name], framework="pt") as shard:
                tensor = shard.get_tensor(entry.name)
            if tuple(tensor.shape) != entry.shape:
                raise BackendError(f"weights: {entry.name} in {folder} is {tuple(tensor.shape)}, not {entry.shape}")
            yield entry.name, tensor
    except (OSError, SafetensorError, ValueError) as error:
        raise BackendError(f"weights: {folder} cannot be read: {error}") from error

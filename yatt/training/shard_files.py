"""A trainer's checkpoint in files: each rank's tensors in one, as boxes of whole tensors, which any layout can read.

    shard-0.safetensors    what rank 0 held, one tensor after another
    shard-0.json           where each has its place, and the size and the checksum of that file; written after it
    trainer.json           of which model it is, how many shards there are, and the state that all ranks share

Nothing in them is code. A shard without its JSON file is half-written.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from torch import Tensor

from yatt.checksums import Damaged, write_json
from yatt.training.identity import check_shard, read_shards, shard_names
from yatt.training.snapshot import Snapshot

Shape = tuple[int, ...]
TYPES = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""safetensors' own names."""


@dataclass(frozen=True, slots=True)
class Box:
    """A part of a tensor of the checkpoint, which has the shape `whole`: where in it the part begins, and the memory
    that has its values. A `padded` tensor has as many rows as its layout asks for, of which the last ones are zeros."""

    name: str
    whole: Shape
    offset: Shape
    values: Tensor
    padded: bool = False


def write_shard(folder: Path, number: int, boxes: Sequence[Box], snapshot: Snapshot) -> None:
    """Write boxes, whose values the snapshot gives one after another, and then what describes them. Raises OSError."""
    name, description = shard_names(number)
    (folder / description).unlink(missing_ok=True)
    header, places, end = {}, {}, 0
    for box in boxes:
        key, shape = f"{box.name}@{','.join(map(str, box.offset))}", list(box.values.shape)
        span = [end, end := end + box.values.nbytes]
        header[key] = {"dtype": TYPES[box.values.dtype], "shape": shape, "data_offsets": span}
        places[key] = {"of": box.name, "whole": list(box.whole), "offset": list(box.offset), "shape": shape}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    checksum, size = xxhash.xxh3_64(), 0
    with open(folder / name, "wb", buffering=0) as file:
        for data in chain((memoryview(len(text).to_bytes(8, "little")), memoryview(text)), snapshot.taken()):
            checksum.update(data)
            size += len(data)
            _write(file, data)
        os.fsync(file.fileno())
    write_json(folder / description, {"bytes": size, "checksum": checksum.hexdigest(), "tensors": places})


def _write(file: BinaryIO, data: memoryview) -> None:
    """Write all of it: one call of the system writes as much as it can."""
    while data:
        data = data[file.write(data) :]


class Shards:
    """The shards of a checkpoint, from which any layout takes what it needs. Opening raises Damaged where one is
    missing or half-written."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._written = read_shards(folder)
        self._good: set[int] = set()
        self._places: dict[str, list[tuple[int, str, dict[str, Any]]]] = {}
        for number, written in enumerate(self._written):
            for key, place in written["tensors"].items():
                self._places.setdefault(place["of"], []).append((number, key, place))

    def fill(self, boxes: Iterable[Box]) -> None:
        """Read the values of boxes, into their memory. Each shard that one of them needs is read whole and checked
        before that: nothing has changed when Damaged is raised."""
        wanted = [(box, self._parts(box)) for box in boxes]
        numbers = {number for _, parts in wanted for number, *_ in parts}
        for number in sorted(numbers - self._good):
            check_shard(self._folder, number, self._written[number])
            self._good.add(number)
        files = {number: self._open(number) for number in sorted(numbers)}
        for box, parts in wanted:
            if box.padded:
                box.values.zero_()
            for number, key, source, target in parts:
                box.values[target] = files[number].get_slice(key)[source].to(box.values.device)

    def _open(self, number: int) -> Any:
        name = shard_names(number)[0]
        try:
            return safe_open(self._folder / name, framework="pt")
        except (OSError, SafetensorError) as error:
            raise Damaged(f"{name} cannot be read ({error})") from None

    def _parts(self, box: Box) -> list[tuple[int, str, tuple[slice, ...], tuple[slice, ...]]]:
        """Where the values of a box are: shard, tensor, which part of it, and which part of the box that is."""
        places = self._places.get(box.name, [])
        whole = tuple(places[0][2]["whole"]) if places else None
        if whole is None or (whole != box.whole and not box.padded):
            raise Damaged(f"{box.name} has the shape {whole or 'of nothing'}, and {box.whole} in the model")
        parts = []
        for number, key, place in places:
            cut = _overlap(place["offset"], place["shape"], box.offset, box.values.shape)
            if cut is not None:
                parts.append((number, key, *cut))
        sizes = zip(whole, box.values.shape, box.offset, strict=True)
        needed = math.prod(max(0, min(end, first + size) - first) for end, size, first in sizes)
        have = sum(math.prod(one.stop - one.start for one in target) for *_, target in parts)
        if have != needed:
            raise Damaged(f"{box.name} has {have} of the {needed} values from {list(box.offset)} on")
        return parts


def _overlap(
    first: Sequence[int], sizes: Sequence[int], second: Sequence[int], others: Sequence[int]
) -> tuple[tuple[slice, ...], tuple[slice, ...]] | None:
    """What two boxes share, as parts of either; None where they share nothing."""
    in_first, in_second = [], []
    for a, size, b, other in zip(first, sizes, second, others, strict=True):
        begin, end = max(a, b), min(a + size, b + other)
        if begin >= end:
            return None
        in_first.append(slice(begin - a, end - a))
        in_second.append(slice(begin - b, end - b))
    return tuple(in_first), tuple(in_second)

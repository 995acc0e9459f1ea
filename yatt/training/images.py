"""The images of a step on their way to the models: each distinct one is read once by a rank, and put through the tower
once in a micro-batch, whatever the number of sequences that show it."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from yatt.errors import BackendError
from yatt.types import Media, Sample
from yatt.vision.images import ImageReader
from yatt.vision.rotary import positions


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedImages:
    """The K distinct images of a micro-batch, and where they are shown.

    `patches` of each [N, D] uint8, on the host; `sizes` [K, 3], their times, rows and columns. A row of what the tower
    makes of them is shown at each of `places` [I] among the micro-batch's tokens: row `rows` [I]. `mean` and `std` [3]
    normalise the patches."""

    patches: tuple[Tensor, ...]
    sizes: Tensor
    places: Tensor
    rows: Tensor
    mean: Tensor
    std: Tensor

    def normalised(self) -> Tensor:
        """The patches of all [N, D] float32, on the device: (x / 255 - mean) / std of each channel. Channels come one
        after another in D."""
        whole = torch.cat([one.to(self.places.device) for one in self.patches])
        x = whole.unflatten(1, (3, -1)).float() * (1 / 255)
        return ((x - self.mean[:, None]) / self.std[:, None]).flatten(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """What a model that sees needs of a micro-batch beside its tokens. `positions` [3, P]: time, row and column of each
    token. `images` are None where there are none, and on a rank that has no tower."""

    positions: Tensor
    images: PackedImages | None = None


class Eyes:
    """Reads the images of a rank's samples as the processor of the policy's folder does. `reads` is whether this rank
    has a tower; `merge` by `merge` patches are a token."""

    def __init__(self, folder: str, *, merge: int, reads: bool) -> None:
        """Cheap: the processor is opened at the first image."""
        self._folder, self._merge, self._reads = folder, merge, reads
        self._reader: ImageReader | None = None
        self._patches: dict[Hashable, Tensor] = {}

    def forget(self) -> None:
        """The images of a step have been used."""
        self._patches.clear()

    def see(self, sequences: Sequence[Sample], lengths: Sequence[int], device: torch.device) -> Sight:
        """Of sequences end to end, each lengthened to one of `lengths`. Raises BackendError for an image that is not
        what was said of it."""
        columns = [positions(n, s.media, self._merge) for s, n in zip(sequences, lengths, strict=True)]
        where = torch.from_numpy(np.concatenate(columns, axis=1)).to(device)
        if not self._reads or not any(sequence.media for sequence in sequences):
            return Sight(positions=where)
        starts = np.concatenate([[0], np.cumsum(lengths)])
        shown = [(s, int(start), image) for s, start in zip(sequences, starts, strict=False) for image in s.media]
        distinct = {_name(image): image for _, _, image in shown}
        firsts = dict(zip(distinct, np.cumsum([0, *(image.tokens for image in distinct.values())]), strict=False))
        places, rows = [], []
        for sequence, start, image in shown:
            if image.start + image.tokens > len(sequence.tokens):
                raise BackendError(f"an image of sample {sequence.key} ends beyond its {len(sequence.tokens)} tokens")
            places.append(start + image.start + np.arange(image.tokens))
            rows.append(firsts[_name(image)] + np.arange(image.tokens))
        patches = tuple(self._read(name, image) for name, image in distinct.items())
        assert self._reader is not None
        return Sight(
            positions=where,
            images=PackedImages(
                patches=patches,
                sizes=torch.tensor([image.patches for image in distinct.values()], device=device),
                places=torch.from_numpy(np.concatenate(places)).to(device),
                rows=torch.from_numpy(np.concatenate(rows)).to(device),
                mean=torch.from_numpy(self._reader.mean).to(device),
                std=torch.from_numpy(self._reader.std).to(device),
            ),
        )

    def _read(self, name: Hashable, image: Media) -> Tensor:
        if self._reader is None:
            self._reader = ImageReader(self._folder)
        if name not in self._patches:
            self._patches[name] = torch.from_numpy(self._reader.read(image.handle))
        patches, said = self._patches[name], int(np.prod(image.patches))
        if len(patches) != said or image.tokens * self._merge**2 != said:
            raise BackendError(
                f"an image has {len(patches)} patches, {image.patches} and {image.tokens} tokens were said of it"
            )
        return patches


def _name(image: Media) -> Hashable:
    """Equal for equal images."""
    return image.digest or id(image.handle)

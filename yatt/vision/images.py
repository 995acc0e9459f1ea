"""From an encoded image to the patches that a vision tower reads. Controllers look at its header only; engines and
the ranks of the first stage make its patches, by this one code."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image
from transformers import AutoImageProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

Patches = tuple[int, int, int]
"""Patches of an image, as `Media.patches`: times, rows, columns."""


class ImageReader:
    """Reads images as the processor of a model folder does, with PIL and no torchvision.

    `merge`: so many by so many patches are one token. `mean` and `std` [3]: what a tower's input is normalised by.
    Raises ConfigError for a folder without the files of a processor."""

    def __init__(self, folder: str) -> None:
        auto: Any = AutoImageProcessor
        self._processor = auto.from_pretrained(folder, local_files_only=True, backend="pil")
        self.merge: int = self._processor.merge_size
        self.mean = np.array(self._processor.image_mean, np.float32)
        self.std = np.array(self._processor.image_std, np.float32)

    def size(self, image: np.ndarray) -> Patches:
        """How many patches the image of these bytes has, from its header: nothing is decoded."""
        with Image.open(io.BytesIO(image.data)) as opened:
            width, height = opened.size
        size, limits = self._processor.patch_size, self._processor.size
        rows, columns = smart_resize(height, width, size * self.merge, limits["shortest_edge"], limits["longest_edge"])
        return 1, rows // size, columns // size

    @property
    def most_tokens(self) -> int:
        """The tokens of the largest image there can be; a larger one is resized."""
        edge = self._processor.patch_size * self.merge
        return int(self._processor.size["longest_edge"]) // edge**2

    def tokens(self, patches: Patches) -> int:
        """How many tokens an image of so many patches takes."""
        times, rows, columns = patches
        return times * rows * columns // self.merge**2

    def read(self, image: np.ndarray) -> np.ndarray:
        """The patches [P, 3 * times * size * size] uint8 of the image of these bytes; a tower's input once it is
        normalised, which is for the device (`normalised`)."""
        with Image.open(io.BytesIO(image.data)) as opened:
            pixels = opened.convert("RGB")
        made = self._processor(images=[pixels], return_tensors="np", do_rescale=False, do_normalize=False)
        return np.ascontiguousarray(made["pixel_values"], np.uint8)

    def normalised(self, patches: np.ndarray) -> np.ndarray:
        """uint8 patches [P, D] -> float32 [P, D]: (x / 255 - mean) / std of each channel, which come one after another
        in D."""
        x = patches.reshape(len(patches), 3, -1).astype(np.float32) * np.float32(1 / 255)
        return ((x - self.mean[:, None]) / self.std[:, None]).reshape(patches.shape)

"""From an encoded image to the patches that a vision tower reads. Controllers look at its header, and whether it can be
decoded; engines and the ranks of the first stage make its patches, by this one code.

It does what transformers' image processor of the Qwen-VL models does, from PIL and numpy alone: a controller that
imports that processor imports torch.
"""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from yatt.errors import BadRow
from yatt.text import one_line
from yatt.vision.processor import read_processor

Patches = tuple[int, int, int]
"""Patches of an image, as `Media.patches`: times, rows, columns."""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")
"""The formats that are read. PIL has others, some of which start programs."""
MOST_PIXELS = 89_478_485
"""An image of more is refused: decoded it takes a quarter of a gigabyte, however small its file. PIL warns from
here on."""
LONGEST_SIDES = 200
"""An image whose longer side is more than so many times the shorter is refused, as the processor does."""
_QUARTER_TURNS = (5, 6, 7, 8)
"""Orientations by which rows become columns."""
_LATE_NOTES = (b"eXIf", b"Raw profile type", b"com.adobe.xmp")
"""What a PNG file may say of its orientation behind its pixels, too, where its header does not show it."""


class ImageReader:
    """Reads images as the processor of a model folder does.

    `merge`: so many by so many patches are one token. `mean` and `std` [3]: what a tower's input is normalised by. With
    `max_pixels` larger images become smaller, as where the processor's own limit is that low; how large they are is
    for `size` to say, and for `read` to be told. Raises ConfigError where the folder's processor cannot be followed, or
    `max_pixels` is under the least that it makes of an image."""

    def __init__(self, folder: str, max_pixels: int | None = None, setting: str = "model.path") -> None:
        self._processor = read_processor(folder, max_pixels, setting)
        self.merge = self._processor.merge
        self.mean = np.array(self._processor.mean, np.float32)
        self.std = np.array(self._processor.std, np.float32)

    def size(self, image: np.ndarray) -> Patches:
        """How many patches the image of these bytes has, from its header: nothing is decoded. Raises BadRow for what
        is no image, or one that is not read."""
        return self.fitting(self.pixels(image))

    def pixels(self, image: np.ndarray) -> tuple[int, int]:
        """Rows and columns of the image, upright, from its header. Raises BadRow as `size` does."""
        data = image.tobytes()
        with _opened(data) as opened:
            try:
                turned = _turned(opened, data)
            except Exception as error:  # PIL raises whatever a file's notes lead it to
                raise BadRow(f"the image's EXIF notes cannot be read: {one_line(error)}") from None
            width, height = opened.size[::-1] if turned else opened.size
        return height, width

    def fitting(self, pixels: tuple[int, int]) -> Patches:
        """How many patches an image of so many rows and columns of pixels has. Raises BadRow for one too long for its
        width."""
        made = self._processor
        rows, columns = fitted(*pixels, made.patch * made.merge, made.least, made.most)
        return 1, rows // made.patch, columns // made.patch

    def check(self, image: np.ndarray) -> None:
        """Decode the image and forget it. Raises BadRow where that cannot be done: a header does not show that a file
        is cut off. A JPEG is decoded at an eighth of its size, from all of its bytes, in half the time or less."""
        with _opened(image.tobytes()) as opened:
            opened.draft(None, (max(1, opened.width // 8), max(1, opened.height // 8)))
            try:
                opened.load()
                opened.crop((0, 0, 1, 1)).convert("RGB")
            except Exception as error:  # each decoder has errors of its own
                raise BadRow(f"the image cannot be decoded: {one_line(error)}") from None

    @property
    def most_tokens(self) -> int:
        """The tokens of the largest image there can be; a larger one is resized."""
        return self._processor.most // (self._processor.patch * self.merge) ** 2

    def tokens(self, patches: Patches) -> int:
        """How many tokens an image of so many patches takes."""
        times, rows, columns = patches
        return times * rows * columns // self.merge**2

    def read(self, image: np.ndarray, patches: Patches | None = None) -> np.ndarray:
        """The patches [P, 3 * times * size * size] uint8 of the image of these bytes, so many as `patches` (by default
        `size`) says: a tower's input once it is normalised, which is for the device (`normalised`)."""
        patches = patches or self.size(image)
        with _opened(image.tobytes()) as opened:
            return self.patched(ImageOps.exif_transpose(opened).convert("RGB"), patches)

    def patched(self, pixels: Image.Image, patches: Patches) -> np.ndarray:
        """The patches of an upright RGB image, as `read` gives them."""
        _, rows, columns = patches
        merge, size = self.merge, self._processor.patch
        fitting = pixels.resize((columns * size, rows * size), Image.Resampling(self._processor.resample))
        blocks = np.asarray(fitting).reshape(rows // merge, merge, size, columns // merge, merge, size, 3)
        # Patches of one token stand together; within a patch a channel's frames, all alike, and their rows and columns.
        ordered = blocks.transpose(0, 3, 1, 4, 6, 2, 5)[:, :, :, :, :, None]
        frames = np.broadcast_to(ordered, (*ordered.shape[:5], self._processor.times, size, size))
        return np.ascontiguousarray(frames.reshape(rows * columns, -1))

    def normalised(self, patches: np.ndarray) -> np.ndarray:
        """uint8 patches [P, D] -> float32 [P, D]: (x / 255 - mean) / std of each channel, which come one after another
        in D."""
        x = patches.reshape(len(patches), 3, -1).astype(np.float32) * np.float32(1 / 255)
        normal: np.ndarray = ((x - self.mean[:, None]) / self.std[:, None]).reshape(patches.shape)
        return normal


def fitted(height: int, width: int, unit: int, least: int, most: int) -> tuple[int, int]:
    """The size that an image is brought to: sides that `unit` divides, near its own shape, with from `least` to `most`
    pixels. Raises BadRow for an image too long for its width."""
    if max(height, width) > LONGEST_SIDES * min(height, width):
        raise BadRow(
            f"the image is {width} x {height} pixels; one side may be {LONGEST_SIDES} times the other; cut or pad it"
        )
    rows, columns = round(height / unit) * unit, round(width / unit) * unit
    if rows * columns > most:
        shrink = math.sqrt(height * width / most)
        rows, columns = (max(unit, math.floor(side / shrink / unit) * unit) for side in (height, width))
    elif rows * columns < least:
        grow = math.sqrt(least / (height * width))
        rows, columns = (math.ceil(side * grow / unit) * unit for side in (height, width))
    return rows, columns


def thumbnail(image: np.ndarray, side: int) -> bytes:
    """A JPEG of the image of these bytes, upright, whose sides are at most so many pixels. Raises BadRow where it
    cannot be decoded."""
    with _opened(image.tobytes()) as opened:
        opened.draft(None, (side, side))
        try:
            small: Any = ImageOps.exif_transpose(opened).convert("RGB")
        except Exception as error:
            raise BadRow(f"the image cannot be decoded: {one_line(error)}") from None
    small.thumbnail((side, side))
    out = io.BytesIO()
    small.save(out, "JPEG", quality=80)
    return out.getvalue()


def _opened(data: bytes) -> Image.Image:
    """The image of a file, its header read. Raises BadRow."""
    try:
        opened = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        raise BadRow(
            f"the image has over {2 * MOST_PIXELS} pixels; the most is {MOST_PIXELS}; make it smaller"
        ) from None
    except UnidentifiedImageError:
        raise BadRow(
            f"the image is none that is read ({', '.join(FORMATS)}), or its header is torn: it begins {data[:8]!r}"
        ) from None
    except Exception as error:  # PIL raises whatever a file leads it to
        raise BadRow(f"the image cannot be read: {one_line(error)}") from None
    if opened.width * opened.height > MOST_PIXELS:
        opened.close()
        raise BadRow(
            f"the image has {opened.width} x {opened.height} pixels; the most is {MOST_PIXELS}; make it smaller"
        )
    return opened


def _turned(opened: Image.Image, data: bytes) -> bool:
    """Whether an image that is opened, and not yet decoded, has its sides the other way round once it is upright."""
    if opened.format == "TIFF":
        return False  # PIL gives the size of the upright image
    if opened.format == "PNG" and "exif" not in opened.info:
        if not any(note in data for note in _LATE_NOTES):
            return False
        opened.load()
    return opened.getexif().get(ExifTags.Base.Orientation) in _QUARTER_TURNS

"""Images are read as transformers' own processor reads them, whatever their size, mode, format and orientation; and
what cannot be read is refused in one line."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import SIDE, as_array, encoded, picture, pixels, seeing_folder
from PIL import ExifTags, Image
from transformers.image_utils import load_image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize

from yatt.errors import BadRow, ConfigError
from yatt.vision import images
from yatt.vision.images import ImageReader, fitted, thumbnail

RGB = pixels(21, 38)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return seeing_folder(tmp_path_factory.mktemp("model") / "seeing")


@pytest.fixture(scope="module")
def reader(folder: str) -> ImageReader:
    return ImageReader(folder)


def theirs(folder: str, data: bytes, file: Path, **options) -> tuple[np.ndarray, tuple[int, ...]]:
    """Patches and grid of transformers, from a file on disk."""
    file.write_bytes(data)
    processor = Qwen2VLImageProcessorPil.from_pretrained(folder, **options)
    made = processor(images=[load_image(str(file))], return_tensors="np")
    return made["pixel_values"], tuple(int(n) for n in made["image_grid_thw"][0])


def assert_same(folder: str, data: bytes, file: Path, max_pixels: int | None = None) -> None:
    reader = ImageReader(folder, max_pixels)
    size = {} if max_pixels is None else {"size": {"shortest_edge": SIDE**2, "longest_edge": max_pixels}}
    expected, grid = theirs(folder, data, file, **size)
    image = as_array(data)
    reader.check(image)
    patches = reader.size(image)
    assert patches == grid
    read = ImageReader(folder).read(image, patches)  # whoever makes the patches knows no limit
    assert (read.dtype, read.shape) == (np.uint8, expected.shape)
    np.testing.assert_allclose(reader.normalised(read), expected, rtol=0, atol=1e-6)


@given(st.integers(1, 4000), st.integers(1, 4000), st.sampled_from([8, 28, 32]), st.integers(1, 10**6), st.data())
@settings(max_examples=300, deadline=None)
def test_sizes_are_those_of_transformers(height, width, unit, least, data):
    most = data.draw(st.integers(least, 10**7))
    try:
        expected = smart_resize(height, width, unit, least, most)
    except ValueError:
        with pytest.raises(BadRow, match=r"200 times"):
            fitted(height, width, unit, least, most)
        return
    assert fitted(height, width, unit, least, most) == expected


@given(st.integers(1, 150), st.integers(1, 150), st.integers(0, 99), st.sampled_from([None, 400, 1500]))
@settings(max_examples=25, deadline=None)
def test_patches_are_those_of_transformers(folder, tmp_path_factory, height, width, seed, max_pixels):
    assert_same(folder, picture(height, width, seed), tmp_path_factory.mktemp("one") / "image.png", max_pixels)


GREY16 = Image.fromarray((np.arange(20 * 30, dtype=np.uint16) * 97).reshape(20, 30))
OTHERS = {
    **{f"{mode}.png": encoded(RGB.convert(mode)) for mode in ("1", "L", "LA", "P", "RGBA")},
    "clear.png": encoded(RGB.quantize(16), transparency=3),
    "16 bits.png": encoded(GREY16),
    "CMYK.jpg": encoded(RGB.convert("CMYK"), "JPEG"),
    "grey.jpg": encoded(RGB.convert("L"), "JPEG"),
    "progressive.jpg": encoded(RGB, "JPEG", progressive=True),
    "float.tif": encoded(RGB.convert("F"), "TIFF"),
    "RGBA.webp": encoded(RGB.convert("RGBA"), "WEBP"),
    "moving.gif": encoded(RGB.quantize(8), "GIF", save_all=True, append_images=[pixels(21, 38, 1).quantize(8)]),
    "moving.png": encoded(RGB, save_all=True, append_images=[pixels(21, 38, 1)]),
    "moving.webp": encoded(RGB, "WEBP", save_all=True, append_images=[pixels(21, 38, 1)]),
    "two.tif": encoded(RGB, "TIFF", save_all=True, append_images=[pixels(9, 9, 1)]),
    "colours.bmp": encoded(RGB, "BMP"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_every_mode_and_the_first_frame_of_several_is_read_as_transformers_does(folder, tmp_path, name):
    assert_same(folder, OTHERS[name], tmp_path / name)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "MPO"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_lies_as_its_notes_say(folder, tmp_path, kind, orientation):
    notes = Image.Exif()
    notes[ExifTags.Base.Orientation] = orientation
    assert_same(folder, encoded(RGB, kind, exif=notes), tmp_path / f"image.{kind.lower()}")


def test_notes_behind_the_pixels_of_a_png_count_too(folder, tmp_path):
    notes = Image.Exif()
    notes[ExifTags.Base.Orientation] = 6
    data = encoded(RGB)
    body = b"eXIf" + notes.tobytes()[6:]
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    end = data.index(b"IDAT") + struct.unpack(">I", data[data.index(b"IDAT") - 4 :][:4])[0] + 8
    late = data[:end] + chunk + data[end:]
    assert ImageReader(folder).size(as_array(late))[1:] == ImageReader(folder).size(as_array(data))[:0:-1]
    assert_same(folder, late, tmp_path / "late.png")


def cut(kind: str, share: float) -> bytes:
    data = picture(64, 96, kind=kind)
    return data[: int(len(data) * share)]


def header(width: int, height: int) -> bytes:
    """A PNG file that says it is so large."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    return start + encoded(RGB)[33:]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
def test_a_file_that_is_cut_off_cannot_be_decoded(reader, kind, share):
    with pytest.raises(BadRow, match=r"^the image (cannot be|is none)"):
        reader.size(as_array(cut(kind, share)))
        reader.check(as_array(cut(kind, share)))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"GIF of a cat", "is none that is read (JPEG, PNG, WEBP"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "is none that is read"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is none that is read"),
        (header(10_000, 9_000), "10000 x 9000 pixels; the most is 89478485"),
        (header(60_000, 60_000), "the most is 89478485"),
        (picture(2, 500), "is 500 x 2 pixels; one side may be 200 times the other"),
    ],
)
def test_what_is_no_image_that_can_be_used_says_why(reader, data, words):
    with pytest.raises(BadRow) as failure:
        reader.size(as_array(data))
    assert words in str(failure.value) and "\n" not in str(failure.value) and "0x" not in str(failure.value)


def test_a_header_says_the_size_without_decoding(reader, monkeypatch):
    image = as_array(picture(16, 24))
    monkeypatch.setattr(images.Image.Image, "load", None)
    assert reader.size(image) == (1, 4, 6)
    assert reader.tokens((1, 4, 6)) == 6


def test_a_larger_limit_than_the_processors_changes_nothing(folder):
    image = as_array(picture(300, 300))
    assert ImageReader(folder, 10**9).size(image) == ImageReader(folder).size(image) == (1, 16, 16)
    assert ImageReader(folder, 1024).size(image) == (1, 8, 8)


@pytest.mark.parametrize(
    ("processor", "words"),
    [
        ({"image_processor_type": "CLIPImageProcessor"}, "image_processor_type=CLIPImageProcessor is not followed"),
        ({"do_resize": False}, "do_resize=False, which is not followed"),
        ({"rescale_factor": 0.5}, "rescale_factor=0.5"),
        ({"patch_size": 0}, "no whole number above 0 under patch_size"),
        ({"size": {"height": 8, "width": 8}}, "shortest_edge, longest_edge"),
    ],
)
def test_a_processor_that_is_not_followed_is_refused(tmp_path, processor, words):
    with pytest.raises(ConfigError, match=words):
        ImageReader(seeing_folder(tmp_path, **processor))


def test_a_limit_under_the_least_is_refused(folder):
    with pytest.raises(
        ConfigError, match=rf"^data.max_pixels=63 is under the {SIDE**2} pixels .* use {SIDE**2} or more"
    ):
        ImageReader(folder, 63)


def test_a_folder_without_a_processor_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"model\.path=.*preprocessor_config\.json"):
        ImageReader(str(tmp_path))


def test_the_files_of_a_processor_are_read_as_transformers_reads_them(tmp_path):
    """Its own way to save them, and the names that older files have."""
    old = seeing_folder(tmp_path / "old", size=None, min_pixels=128, max_pixels=4096)
    Qwen2VLImageProcessorPil.from_pretrained(old).save_pretrained(tmp_path / "new")
    for folder in (old, str(tmp_path / "new")):
        assert_same(folder, picture(100, 70), tmp_path / "image.png")
        assert ImageReader(folder).size(as_array(picture(100, 70)))[1:] == (18, 12)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_thumbnail_is_a_small_jpeg(kind):
    small = Image.open(io.BytesIO(thumbnail(as_array(picture(300, 200, kind=kind)), 64)))
    assert (small.format, max(small.size)) == ("JPEG", 64)
    with pytest.raises(BadRow):
        thumbnail(as_array(cut(kind, 0.5)), 64)

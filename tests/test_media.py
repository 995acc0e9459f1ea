"""Images of prompts: read in every form the data may have them, held once each, and never among the metadata."""

from __future__ import annotations

import base64
import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from datasets import Dataset, Features, Image, Value
from tiny_models import tiny_tokenizer

from yatt.config.schema import DataConfig
from yatt.data.media import read_media
from yatt.data.prompts import PromptEncoder
from yatt.data.rows import BadRow, open_files
from yatt.protocols import MediaStore
from yatt.types import Media

IMAGE = bytes(range(7))
OTHER = b"other"


class ListStore:
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.held: list[np.ndarray] = []

    def hold(self, data: np.ndarray) -> Media:
        self.held.append(data)
        return Media(handle=len(self.held) - 1, nbytes=data.nbytes)


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(IMAGE)
    return tmp_path


def encoder(store: MediaStore | None, **data) -> PromptEncoder:
    return PromptEncoder(tiny_tokenizer(), DataConfig(path="x", media_key="image", **data), 64, 8, store)


@pytest.mark.parametrize(
    "value",
    [
        "images/a.png",
        "data:image/png;base64," + base64.b64encode(IMAGE).decode(),
        IMAGE,
        {"bytes": IMAGE, "path": None},
        {"bytes": None, "path": "images/a.png"},
    ],
)
def test_every_form_gives_the_same_bytes(place, value):
    (image,) = read_media(value, "image")
    assert (image.dtype, image.ndim, image.tobytes()) == (np.uint8, 1, IMAGE)
    assert [i.tobytes() for i in read_media([value, OTHER], "image")] == [IMAGE, OTHER]


def test_a_file_is_mapped_not_copied(place):
    """What is read shows what the file holds now."""
    (image,) = read_media("images/a.png", "image")
    with open("images/a.png", "r+b") as file:
        file.write(b"\xff")
    assert image[0] == 0xFF


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("images/none.png", ["'image'", "images/none.png", "No such file"]),
        ("images", ["'image'", "directory"]),
        (3, ["'image'", "int", "path"]),
        ([IMAGE, 2.5], ["'image'", "float"]),
        ({"url": "x"}, ["'image'", "NoneType"]),
        ("data:image/png,AAAA", ["'image'", ";base64,"]),
        ("data:image/png;base64,A?", ["'image'", "base64"]),
        (b"", ["'image'", "empty"]),
    ],
)
def test_a_bad_image_is_a_bad_row_that_names_its_column(place, value, words):
    with pytest.raises(BadRow) as failure:
        encoder(ListStore())({"prompt": "a b", "image": value}, 0, 0)
    for word in words:
        assert word in str(failure.value)


def test_a_missing_column_is_a_bad_row():
    with pytest.raises(BadRow, match=r"no column 'image' \(it has 'prompt'\); see data.media_key"):
        encoder(ListStore())({"prompt": "a b"}, 0, 0)


def test_each_image_of_a_prompt_is_held_once(place):
    store = ListStore()
    prompt = encoder(store)({"prompt": "a b", "image": ["images/a.png", OTHER]}, 4, 2)
    assert [h.tobytes() for h in store.held] == [IMAGE, OTHER]
    assert prompt.media == (Media(handle=0, nbytes=7), Media(handle=1, nbytes=5))
    assert encoder(store)({"prompt": "a b", "image": None}, 5, 3).media == ()
    assert len(store.held) == 2


def test_without_a_store_images_are_only_looked_at(place):
    look = encoder(None)
    assert look({"prompt": "a b", "image": "images/a.png"}, 0, 0).media == ()
    with pytest.raises(BadRow, match="No such file"):
        look({"prompt": "a b", "image": "images/none.png"}, 0, 0)


def test_metadata_carries_no_image(place):
    row = {"prompt": "a b", "image": "images/a.png", "level": 3}
    assert encoder(None)(row, 0, 0).metadata == {"level": 3}
    assert encoder(None, metadata_keys=["image"])(row, 0, 0).metadata == {"image": "images/a.png"}


def test_rows_of_a_parquet_file_bring_their_bytes(place):
    table = pyarrow.table({"prompt": ["a b"], "image": [{"bytes": IMAGE, "path": "a.png"}]})
    pyarrow.parquet.write_table(table, "rows.parquet")
    store = ListStore()
    encoder(store)(open_files("rows.parquet", "data.path").row(0), 0, 0)
    assert [h.tobytes() for h in store.held] == [IMAGE]


def test_an_image_column_of_datasets_is_not_decoded(place):
    features = Features(prompt=Value("string"), image=Image())
    Dataset.from_dict({"prompt": ["a b"], "image": [{"bytes": IMAGE, "path": None}]}, features).save_to_disk("rows")
    store = ListStore()
    encoder(store)(open_files("rows", "data.path").row(0), 0, 0)
    assert [h.tobytes() for h in store.held] == [IMAGE]


def test_rows_of_a_jsonl_file_name_theirs(place):
    (place / "rows.jsonl").write_text(json.dumps({"prompt": "a b", "image": ["images/a.png"]}) + "\n")
    store = ListStore()
    encoder(store)(open_files("rows.jsonl", "data.path").row(0), 0, 0)
    assert [h.tobytes() for h in store.held] == [IMAGE]

"""Images of prompts: read in every form the data may have them, held once each, and never among the metadata."""

from __future__ import annotations

import base64
import json
import weakref
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from datasets import Dataset, Features, Image, Value
from tiny_models import tiny_tokenizer

from yatt.cluster import media
from yatt.cluster.media import RayMediaStore, address, opened
from yatt.config.schema import DataConfig
from yatt.data.media import listed_media, read_image
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

    def hold(self, images: Sequence[Media]) -> tuple[Media, ...]:
        first = len(self.held)
        self.held += [image.handle for image in images]
        return tuple(replace(image, handle=first + i) for i, image in enumerate(images))


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
    image = read_image(value, "here")
    assert (image.dtype, image.ndim, image.tobytes()) == (np.uint8, 1, IMAGE)
    assert listed_media([value, None, OTHER]) == [value, OTHER] and listed_media(value) == [value]


def test_a_file_is_mapped_not_copied(place):
    """What is read shows what the file holds now."""
    image = read_image("images/a.png", "here")
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
        ({"link": "x"}, ["'image'", "NoneType"]),
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


@pytest.fixture
def put(monkeypatch):
    """What has been put into the store."""
    objects: list[list[np.ndarray]] = []
    monkeypatch.setattr(media.ray, "put", lambda value: objects.append(value) or len(objects) - 1)
    return objects


def image(value: int, nbytes: int = 1000) -> Media:
    return Media(handle=np.full(nbytes, value, dtype=np.uint8), nbytes=nbytes)


def received(message: tuple, objects: list) -> list[int]:
    """The images that come out of a message, each by its first byte; Ray opens what it refers to."""
    return [int(i[0]) for i in opened([message[0], *(objects[ref] for ref in message[1:])] if message else ())]


def test_images_drawn_one_after_another_are_one_object_once_sent(put):
    store = RayMediaStore(together=True)
    prompts = [store.hold([image(2 * k), image(2 * k + 1)]) for k in range(3)]
    assert put == [], "nothing has been sent"
    engine = address([m.handle for m in (*prompts[2], *prompts[0])])
    assert received(engine, put) == [4, 5, 0, 1]
    assert [len(o) for o in put] == [6] and len(engine) == 2
    later = store.hold([image(9)])
    rank = address([m.handle for m in (*later, *prompts[1])])
    assert received(rank, put) == [9, 2, 3]
    assert [len(o) for o in put] == [6, 1] and len(rank) == 3
    assert (address([]), opened(()), store.hold([])) == ((), [], ())


def test_a_parcel_is_put_away_when_it_is_full(put, monkeypatch):
    monkeypatch.setattr(media, "PARCEL_BYTES", 2500)
    store = RayMediaStore(together=True)
    held = [store.hold([image(k)])[0] for k in range(7)]
    assert [[int(i[0]) for i in o] for o in put] == [[0, 1, 2], [3, 4, 5]]
    assert received(address([held[k].handle for k in (6, 0, 5)]), put) == [6, 0, 5]


def test_across_nodes_each_prompt_has_an_object_of_its_own(put):
    store = RayMediaStore(together=False)
    held = [store.hold([image(2 * k), image(2 * k + 1)]) for k in range(3)]
    assert [[int(i[0]) for i in o] for o in put] == [[0, 1], [2, 3], [4, 5]]
    assert received(address([m.handle for m in (*held[2], *held[0])]), put) == [4, 5, 0, 1]


def test_a_parcel_goes_with_its_last_image(put):
    """The store itself keeps none, or the last of a step would stay until the next is drawn."""
    store = RayMediaStore(together=True)
    first, second = store.hold([image(1)]), store.hold([image(2)])
    parcel = weakref.ref(first[0].handle.parcel)
    assert second[0].handle.parcel is parcel()
    address([first[0].handle])
    del first
    assert parcel() is not None
    del second
    assert parcel() is None

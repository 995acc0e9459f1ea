"""Rows with images, in every form they come in: the tokens, places and bytes that the policy is given, against
transformers' own rule; and what is refused, each in one line with its place."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pyarrow
import pyarrow.parquet
import pytest
import xxhash
from datasets import Dataset, Features, Image, List, Value
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import END, PAD, PARTS, START, as_array, picture, seeing_folder, seeing_tokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from yatt.config.image_tokens import image_tokens
from yatt.config.schema import Config, DataConfig, EnvironmentConfig
from yatt.data import images as data_images
from yatt.data.columns import Columns
from yatt.data.encoders import row_encoder
from yatt.data.loader import Loader, check_rows
from yatt.data.prompts import load_tokenizer
from yatt.data.rows import open_files
from yatt.errors import BadRow, ConfigError, DataError
from yatt.types import Media, Pair, Prompt, Sample
from yatt.vision.images import ImageReader

ONE, TWO = picture(16, 24), picture(24, 16, seed=1, kind="JPEG")  # 6 tokens each
DATA_URI = "data:image/png;base64," + base64.b64encode(ONE).decode()


class ListStore:
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.held: list[bytes] = []

    def hold(self, images: Sequence[Media]) -> tuple[Media, ...]:
        self.held += [image.handle.tobytes() for image in images]
        return tuple(replace(image, handle=len(self.held) - len(images) + n) for n, image in enumerate(images))


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return seeing_folder(tmp_path_factory.mktemp("model") / "seeing")


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> str:
    return seeing_folder(tmp_path_factory.mktemp("model") / "plain", template=None)


def config_of(model: str, algorithm: str = "grpo", length: int = 200, **data: Any) -> Config:
    given = {"path": "x"} | data
    return Config.model_validate(
        {
            "model": {"path": model, "context_length": length},
            "data": given,
            "algorithm": {"name": algorithm},
            "rollout": {"max_tokens": 8},
            "train": {"steps": 1, "batch_size": 1},
            "reward": {"function": "exact_match"} if algorithm == "grpo" else {},
        }
    )


class Rows:
    """Rows in memory, whose files lie in `place`."""

    def __init__(self, rows: list[dict[str, Any]], place: Path | str = "") -> None:
        self._rows, self._place = rows, str(place)

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, index: int) -> dict[str, Any]:
        return self._rows[index]

    def origin(self, index: int) -> str:
        return f"rows.jsonl:{index + 1}"

    def folder(self, index: int) -> str:
        return self._place


def encoded(model: str, row: dict[str, Any], place: Path | str = "", algorithm: str = "grpo", **data: Any) -> Any:
    """A row, and the bytes that were put into the store."""
    store, length = ListStore(), data.pop("length", 200)
    source = Rows([row], place)
    encode = row_encoder(config_of(model, algorithm, length, **data), load_tokenizer(model), source, store)
    return encode(row, 0, 0), store.held


def test_a_row_with_images_begins_no_conversation(model: str) -> None:
    """Without their bytes, the marks of its images would be words."""
    config = config_of(model).model_copy(update={"environment": EnvironmentConfig(function="calculator")})
    rows = Rows([{"prompt": "<image> ?", "images": [ONE]}, {"prompt": "And ?"}])
    encode = row_encoder(config, load_tokenizer(model), rows, ListStore())
    with pytest.raises(BadRow, match="the row has images, and conversations are of text alone"):
        encode(rows.row(0), 0, 0)
    assert len(encode(rows.row(1), 1, 1).tokens)


def tokens_of(model: str, text: str) -> list[int]:
    return list(load_tokenizer(model)(text, add_special_tokens=False).input_ids)


def looked_at(media: Sequence[Media], tokens: np.ndarray, model: str) -> None:
    """Every image stands where it says, in tokens that are all its own."""
    known, reader = image_tokens(model), ImageReader(model)
    assert known is not None
    taken = np.zeros(len(tokens), dtype=bool)
    for image in media:
        assert image.tokens == reader.tokens(image.patches) > 0
        place = slice(image.start, image.start + image.tokens)
        assert (tokens[place] == known.image).all() and not taken[place].any()
        assert tokens[image.start - 1] == known.start and tokens[place.stop] == known.end
        taken[place] = True
    assert list(media) == sorted(media, key=lambda image: image.start)
    assert (taken == (tokens == known.image)).all()


def user(content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


def image_url(url: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": url}


SEEN = {
    "marks in a text, a list of structs": {"prompt": "<image>a b", "images": [{"bytes": ONE, "path": "x.png"}]},
    "marks in a message": {"prompt": user("<image>a b"), "images": [ONE]},
    "a column of one": {"prompt": "<image>a b", "image": ONE},
    "one without a mark": {"prompt": "a b", "image": {"bytes": ONE, "path": None}},
    "one without a mark in messages": {"prompt": user("a b"), "image": "one.png"},
    "a path": {"prompt": "<image>a b", "images": ["one.png"]},
    "a struct of a path": {"prompt": "<image>a b", "images": [{"bytes": None, "path": "one.png"}]},
    "a file address": {"prompt": "<image>a b", "images": ["file://PLACE/one.png"]},
    "base64 in a column": {"prompt": "<image>a b", "images": [DATA_URI]},
    "a list as JSON": {"prompt": "<image>a b", "images": '["one.png"]'},
    "OpenAI's parts": {
        "prompt": user([image_url({"url": DATA_URI, "detail": "low"}), {"type": "text", "text": "a b"}])
    },
    "an address as text": {"prompt": user([image_url(DATA_URI), {"type": "text", "text": "a b"}])},
    "the newer parts": {
        "prompt": user([{"type": "input_image", "image_url": DATA_URI}, {"type": "input_text", "text": "a b"}])
    },
    "a part's path": {"prompt": user([{"type": "image", "image": "one.png"}, {"type": "text", "text": "a b"}])},
    "a part's bytes": {"prompt": user([{"type": "image", "image": {"bytes": ONE, "path": None}}, {"text": "a b"}])},
    "a part's base64": {
        "prompt": user([{"type": "image", "base64": base64.b64encode(ONE).decode()}, {"type": "text", "text": "a b"}])
    },
    "a source of base64": {
        "prompt": user(
            [
                {"type": "image", "source": {"type": "base64", "data": base64.b64encode(ONE).decode()}},
                {"type": "text", "text": "a b"},
            ]
        )
    },
    "an empty part": {"prompt": user([{"type": "image"}, {"type": "text", "text": "a b"}]), "images": [ONE]},
    "parts of a table": {
        "prompt": user(
            [{"type": "image", "text": None, "image": None}, {"type": "text", "text": "a b", "image": None}]
        ),
        "images": [{"bytes": ONE, "path": None}],
    },
    "ShareGPT": {"prompt": [{"from": "human", "value": "<image>a b"}], "images": ["one.png"]},
    "JSON text": {"prompt": json.dumps(user("<image>a b")), "images": ["one.png"]},
}


@pytest.mark.parametrize("form", SEEN)
def test_every_form_gives_the_same_prompt(model, tmp_path, form):
    (tmp_path / "one.png").write_bytes(ONE)
    row = json.loads(json.dumps(SEEN[form], default=lambda value: value.hex()).replace("PLACE", str(tmp_path)))
    row = _with_bytes(row)
    prompt, held = encoded(model, row, tmp_path)
    assert held == [ONE]
    assert prompt.tokens.tolist() == tokens_of(model, f"user: {START}{PAD * 6}{END}a b\nassistant: ")
    assert prompt.text == f"user: {START}{PAD}{END}a b\nassistant: " and prompt.question == "<image>a b"
    digest = xxhash.xxh3_128_hexdigest(ONE)
    start = int(np.flatnonzero(prompt.tokens == image_tokens(model).image)[0])
    assert prompt.media == (
        Media(handle=0, nbytes=len(ONE), digest=digest, pixels=(16, 24), patches=(1, 4, 6), start=start, tokens=6),
    )
    assert not {"images", "image"} & set(prompt.metadata)


def _with_bytes(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_bytes(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_with_bytes(inner) for inner in value]
    return ONE if value == ONE.hex() else value


def test_images_stand_where_their_marks_do_in_order(model):
    row = {
        "prompt": [
            {"role": "system", "content": "s"},
            {"role": "user", "content": "a <image> b <image>"},
            {"role": "assistant", "content": "an <image> is no picture here"},
            {"role": "user", "content": [{"type": "text", "text": "c"}, image_url(DATA_URI), {"type": "image"}]},
        ],
        "images": [TWO, picture(8, 8), picture(8, 16)],
    }
    prompt, held = encoded(model, row)
    assert held == [TWO, picture(8, 8), ONE, picture(8, 16)]
    assert [image.tokens for image in prompt.media] == [6, 1, 6, 2]
    looked_at(prompt.media, prompt.tokens, model)


def test_text_without_a_template(plain):
    for text in ("x <image>y", f"x {START}{PAD}{END}y"):
        prompt, held = encoded(plain, {"prompt": text, "images": [ONE]})
        assert held == [ONE] and prompt.text == f"x {START}{PAD}{END}y"
        looked_at(prompt.media, prompt.tokens, plain)
    prompt, _ = encoded(plain, {"prompt": "no picture"})
    assert prompt.media == ()


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_tokens_and_places_are_those_of_transformers(model, data):
    """Its rule: in the rendered text each image's token is written as often as its patches over merge^2 say."""
    words = st.text("abc <>/", max_size=6).filter(lambda text: "<image>" not in text)
    sizes = data.draw(st.lists(st.tuples(st.integers(1, 90), st.integers(1, 90)), max_size=4))
    pictures = [picture(*size, seed=n) for n, size in enumerate(sizes)]
    texts = [data.draw(words) for _ in range(len(pictures) + 1)]
    text = "<image>".join(texts)
    if not text.strip():
        return
    prompt, held = encoded(model, {"prompt": user(text), "images": pictures}, length=4000)
    tokenizer = seeing_tokenizer()
    parts = [{"type": "text", "text": texts[0]}]
    for after in texts[1:]:
        parts += [{"type": "image"}, {"type": "text", "text": after}]
    rendered = tokenizer.apply_chat_template(user(parts), tokenize=False, add_generation_prompt=True)
    if pictures:
        processor = Qwen2VLImageProcessorPil.from_pretrained(model)
        grids = [processor(images=[pil(one)], return_tensors="np")["image_grid_thw"][0] for one in pictures]
        for grid in grids:
            rendered = rendered.replace(PAD, "<here>" * int(grid.prod() // processor.merge_size**2), 1)
        assert [list(image.patches) for image in prompt.media] == [grid.tolist() for grid in grids]
    expected = tokenizer(rendered.replace("<here>", PAD), add_special_tokens=False).input_ids
    assert prompt.tokens.tolist() == expected and held == pictures
    looked_at(prompt.media, prompt.tokens, model)


def pil(data: bytes) -> PIL.Image.Image:
    return PIL.Image.open(io.BytesIO(data))


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "<image><image>a", "images": [ONE]}, "2 places for images, and column 'images' holds 1 image;"),
        ({"prompt": "<image>a", "images": [ONE, TWO]}, "1 place for images, and column 'images' holds 2 images"),
        ({"prompt": "a", "images": [ONE]}, "0 places for images, and column 'images' holds 1 image; write one <image>"),
        ({"prompt": "<image>a"}, "1 place for images, and there is no column of images"),
        ({"prompt": user([{"type": "image"}])}, "1 place for images, and there is no column"),
        ({"prompt": "<image>a", "images": []}, "1 place"),
        ({"prompt": f"a {PAD}"}, f"the prompt's text holds '{PAD}', which stands for an image; write <image>"),
        ({"prompt": f"{PAD}", "images": [ONE]}, "0 places"),
        ({"prompt": f"<image>{PAD}", "images": [ONE]}, "which stands for an image"),
        ({"prompt": user([{"type": "text", "text": PAD}, image_url(DATA_URI)])}, "which stands for an image"),
        ({"prompt": [*user("a"), {"role": "assistant", "content": PAD}, *user("b")]}, "which stands for an image"),
        ({"prompt": user([{"type": "video", "video": "a.mp4"}])}, "message 1 has a part of type 'video'"),
        ({"prompt": user([{"image_url": None}])}, "message 1 has a part without 'type' and 'text'"),
        ({"prompt": [*user("a"), {"role": "assistant", "content": [image_url(DATA_URI)]}, *user("b")]}, "message 2 is"),
        ({"prompt": "a\ufdd0", "images": []}, "which is no character"),
        ({"prompt": "<image>a", "images": ["http://localhost:9/a.png"]}, "or set data.fetch_images=true"),
        ({"prompt": user([image_url({"url": "HTTPS://host/a.png"})])}, "message 1: image 'HTTPS://host/a.png' is on"),
        ({"prompt": "<image>a", "images": ["none.png"]}, "column 'images', image 1: image"),
        ({"prompt": "<image>a", "images": ["a\0.png"]}, "column 'images', image 1: image"),
        ({"prompt": "<image>a", "images": [3]}, "column 'images', image 1 holds a int for an image"),
        ({"prompt": "<image>a", "images": [b"a cat"]}, "column 'images', image 1: the image is none that is read"),
        ({"prompt": "<image>a", "images": [TWO[:-40]]}, "column 'images', image 1: the image cannot be decoded"),
        ({"prompt": "<image>a", "images": [ONE[:-40]]}, "column 'images', image 1: the image cannot be decoded"),
        ({"prompt": user([image_url("data:image/png,AAAA")])}, "message 1: 'data:image/png' begins no base64 text"),
    ],
)
def test_a_bad_row_says_why_in_one_line_with_its_place(model, tmp_path, row, words):
    config = config_of(model)
    source = Rows([{"prompt": "fine"}, row], tmp_path)
    encode = row_encoder(config, load_tokenizer(model), source, ListStore())
    with pytest.raises(DataError) as failure:
        check_rows(source, encode, "fail")
    assert str(failure.value).startswith("1 bad row(s) of 2 looked at: rows.jsonl:2: ")
    assert words in str(failure.value) and "\n" not in str(failure.value) and "0x" not in str(failure.value)


def test_an_image_is_never_cut(model):
    row = {"prompt": "<image>a b", "images": [picture(64, 64)]}  # 64 tokens, and 23 around them
    prompt, _ = encoded(model, row, length=95)
    assert len(prompt.tokens) == 87
    words = r"the prompt has 87 tokens, 64 of them of 1 image\(s\); the most is 86 .* a lower data.max_pixels"
    with pytest.raises(BadRow, match=words):
        encoded(model, row, length=94)
    smaller, _ = encoded(model, row, length=94, max_pixels=1024)
    assert smaller.media[0].patches == (1, 8, 8) and len(smaller.tokens) == 39


def test_a_model_that_sees_none_leaves_rows_as_they_are(tmp_path):
    tokenizer = seeing_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    prompt, held = encoded(str(tmp_path), {"prompt": "<image>a", "images": [ONE]})
    assert prompt.question == "<image>a" and prompt.media == () and not held
    with pytest.raises(BadRow, match="the model sees no images"):
        encoded(str(tmp_path), {"prompt": user([{"type": "image"}, {"type": "text", "text": "a"}])})


def test_a_template_that_takes_no_parts_is_told(tmp_path):
    folder = seeing_folder(tmp_path, template="{% for m in messages %}{{ m['content'] }}{% endfor %}")
    with pytest.raises(BadRow, match="the chat template writes 0 of the prompt's 1 images"):
        encoded(folder, {"prompt": "<image>a", "images": [ONE]})


def test_a_model_that_does_not_name_its_tokens_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"vision_config": {}, "image_token_id": 3}))
    with pytest.raises(ConfigError, match="names no token under vision_start_token_id, vision_end_token_id"):
        image_tokens(str(tmp_path))


# --- where rows come from


def from_file(model: str, path: str | list[str], algorithm: str = "grpo", **data: Any) -> list[Any]:
    source, store = open_files(path, "data.path"), ListStore()
    encode = row_encoder(config_of(model, algorithm, **data), load_tokenizer(model), source, store)
    rows = [encode(source.row(n), n, n) for n in range(len(source))]
    return [(row, store.held) for row in rows]


def test_paths_start_at_the_file_of_their_row(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, image in (("a", ONE), ("b", TWO)):
        (tmp_path / name / "images").mkdir(parents=True)
        (tmp_path / name / "images" / "one.png").write_bytes(image)
        (tmp_path / name / "rows.jsonl").write_text(
            json.dumps({"prompt": "<image>q", "image": "images/one.png"}) + "\n"
        )
    (tmp_path / "b" / "rows.csv").write_text('prompt,images\n<image>q,"[""images/one.png""]"\n')
    (tmp_path / "b" / "rows.json").write_text(json.dumps([{"prompt": "<image>q", "image": "images/one.png"}]))
    pyarrow.parquet.write_table(
        pyarrow.table({"prompt": ["<image>q"], "images": [[{"bytes": None, "path": "images/one.png"}]]}), "b/r.parquet"
    )
    files = ["a/rows.jsonl", "b/rows.jsonl", "b/rows.csv", "b/rows.json", "b/r.parquet"]
    assert from_file(model, files)[0][1] == [ONE, TWO, TWO, TWO, TWO]


def test_a_table_of_structs(model, tmp_path):
    table = pyarrow.table(
        {
            "prompt": ["<image><image>a", "b"],
            "images": [[{"bytes": ONE, "path": "x"}, {"bytes": TWO, "path": None}], []],
        }
    )
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    (first, held), (second, _) = from_file(model, str(tmp_path / "rows.parquet"))
    assert held == [ONE, TWO] and [image.start for image in first.media] == sorted({m.start for m in first.media})
    assert second.media == ()


@pytest.mark.parametrize("nested", [Image(), List(Image())])
@pytest.mark.parametrize("parquet", [False, True])
def test_features_of_datasets_are_never_decoded_by_it(model, tmp_path, nested, parquet, monkeypatch):
    monkeypatch.setattr(Image, "decode_example", None)
    one = {"bytes": ONE, "path": None}
    columns = {"prompt": ["<image>a"], "images": [one if isinstance(nested, Image) else [one]]}
    rows = Dataset.from_dict(columns, Features(prompt=Value("string"), images=nested))
    path = str(tmp_path / ("rows.parquet" if parquet else "rows"))
    rows.to_parquet(path) if parquet else rows.save_to_disk(path)
    ((prompt, held),) = from_file(model, path)
    assert held == [ONE] and prompt.media[0].patches == (1, 4, 6)


def test_images_within_messages_of_a_table(model, tmp_path):
    parts = List({"type": Value("string"), "text": Value("string"), "image": Image()})
    features = Features(messages=List({"role": Value("string"), "content": parts}))
    content = [
        {"type": "image", "text": None, "image": {"bytes": ONE, "path": None}},
        {"type": "text", "text": "a b", "image": None},
    ]
    Dataset.from_dict({"messages": [user(content)]}, features).to_parquet(str(tmp_path / "rows.parquet"))
    ((prompt, held),) = from_file(model, str(tmp_path / "rows.parquet"), prompt_key="messages")
    assert held == [ONE]
    assert prompt.tokens.tolist() == tokens_of(model, f"user: {START}{PAD * 6}{END}a b\nassistant: ")


def test_a_named_column_comes_before_the_usual_ones(model):
    row = {"prompt": "<image>a", "images": ["not this"], "extra": {"shots": [TWO]}}
    _, held = encoded(model, row, media_key="extra.shots")
    assert held == [TWO]
    with pytest.raises(BadRow, match=r"no column 'shots' \(it has 'prompt'\); see data.media_key"):
        encoded(model, {"prompt": "<image>a"}, media_key="shots")


def test_columns_that_no_prompt_is_made_of_are_told(model):
    config = config_of(model)
    rows = [("r:1", {"prompt": "<image>a", "images": [ONE], "answer": "b", "videos": ["x"]})]
    assert Columns(config, "training data", rows).check() == [
        "training data: no prompt is made of 'videos'; other trainers read such columns"
    ]


# --- samples


def test_a_demonstration_has_its_images(model):
    row = {"prompt": "<image>a b", "response": "c d", "images": [ONE]}
    sample, held = encoded(model, row, algorithm="sft")
    assert isinstance(sample, Sample) and held == [ONE]
    looked_at(sample.media, sample.tokens, model)
    prompt, _ = encoded(model, row)
    assert prompt.tokens.tolist() == sample.tokens[: len(prompt.tokens)].tolist() and prompt.media == sample.media
    assert not sample.loss_mask[: len(prompt.tokens)].any() and sample.loss_mask[len(prompt.tokens) :].all()


def test_every_turn_of_a_talk_is_imitated_behind_images_too(model):
    talk = [
        {"role": "user", "content": "a<image>"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": [image_url(DATA_URI), {"type": "text", "text": "c"}]},
        {"role": "assistant", "content": "d"},
    ]
    sample, held = encoded(model, {"messages": talk, "images": [TWO]}, algorithm="sft")
    assert held == [TWO, ONE]
    looked_at(sample.media, sample.tokens, model)
    plain_talk = [{**m, "content": "c" if isinstance(m["content"], list) else m["content"]} for m in talk]
    plain_talk[0]["content"] = "a"
    without, _ = encoded(model, {"messages": plain_talk}, algorithm="sft")
    assert sample.tokens[sample.loss_mask].tolist() == without.tokens[without.loss_mask].tolist()


def test_a_response_may_say_an_images_token(model):
    """It is text that was sampled: a place without an image."""
    row = {"prompt": "<image>a b", "response": f"c {PAD} d", "images": [ONE]}
    sample, _ = encoded(model, row, algorithm="sft")
    known = image_tokens(model)
    assert len(sample.media) == 1 and np.count_nonzero(sample.tokens == known.image) == 7
    assert np.count_nonzero(sample.loss_mask & (sample.tokens == known.image)) == 1


@pytest.mark.parametrize("algorithm", ["dpo", "reward_model"])
@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "<image>a b", "chosen": "c", "rejected": "d"},
        {
            "chosen": [*user("<image>a b"), {"role": "assistant", "content": "c"}],
            "rejected": [
                *user([{"type": "image"}, {"type": "text", "text": "a b"}]),
                {"role": "assistant", "content": "d"},
            ],
        },
        {
            "prompt": user("<image>a b"),
            "chosen": [{"role": "assistant", "content": "c"}],
            "rejected": [{"role": "assistant", "content": "d"}],
        },
    ],
)
def test_both_of_a_pair_have_the_images_which_are_held_once(model, algorithm, row):
    pair, held = encoded(model, {**row, "images": [ONE]}, algorithm=algorithm)
    assert isinstance(pair, Pair) and held == [ONE]
    assert pair.first.media is pair.second.media
    for sample in pair.sequences:
        looked_at(sample.media, sample.tokens, model)


def test_a_pair_over_two_images_is_none(model):
    row = {
        "chosen": [*user([image_url(DATA_URI)]), {"role": "assistant", "content": "c"}],
        "rejected": [*user([{"type": "image", "image": TWO}]), {"role": "assistant", "content": "d"}],
    }
    with pytest.raises(BadRow, match="differ before their last turn"):
        encoded(model, row, algorithm="dpo")


def test_a_labelled_response_stands_beside_that_to_another_image(model):
    rows = [
        {"prompt": "<image>a", "image": ONE, "response": "b", "label": True},
        {"prompt": "<image>a", "image": ONE, "response": "c", "label": False},
        {"prompt": "<image>a", "image": TWO, "response": "d", "label": False},
    ]
    source, store = Rows(rows), ListStore()
    encode = row_encoder(config_of(model, "kto"), load_tokenizer(model), source, store)
    pair = encode(rows[0], 0, 0)
    assert store.held == [ONE] and pair.first.media == pair.second.media
    other, _ = encoded(model, {**rows[2], "image": ONE}, algorithm="sft")
    assert pair.second.tokens.tolist() == other.tokens.tolist()
    looked_at(pair.second.media, pair.second.tokens, model)


# --- bounds


def test_an_image_is_decoded_once_and_only_looked_at_so_often_without_a_store(model, monkeypatch):
    decoded: list[int] = []
    monkeypatch.setattr(ImageReader, "check", lambda self, image: decoded.append(len(image)))
    monkeypatch.setattr(data_images, "LOOKED", 3)
    rows = [{"prompt": "<image>a", "image": picture(8, 8, seed=n)} for n in range(5)]
    for store, expected in ((ListStore(), 5), (None, 3)):
        decoded.clear()
        encode = row_encoder(config_of(model), load_tokenizer(model), Rows(rows), store)
        for _ in range(2):
            for n, row in enumerate(rows):
                encode(row, n, n)
        assert len(decoded) == expected


def test_a_torn_image_is_skipped_and_counted_where_it_is_drawn(model):
    rows = [{"prompt": "<image>a", "image": ONE}, {"prompt": "<image>a", "image": TWO[:-30]}]
    source = Rows(rows)
    encode = row_encoder(config_of(model), load_tokenizer(model), source, ListStore())
    loader = Loader(source, encode, seed=0, shuffle=False, index=0, count=1, bad_rows="skip")
    loader.begin_step()
    drawn = [loader.draw() for _ in range(4)]
    assert all(isinstance(prompt, Prompt) for prompt in drawn) and loader.bad_rows == 3
    assert "rows.jsonl:2: column 'image': the image cannot be decoded" in loader.bad.reasons[0]


def test_without_images_a_model_that_sees_reads_text_as_any_other(model, tmp_path):
    seeing_tokenizer().save_pretrained(tmp_path)
    for row in ({"prompt": "a b"}, {"prompt": user("a b")}, {"prompt": user([{"type": "text", "text": "a b"}])}):
        one, other = encoded(model, row)[0], encoded(str(tmp_path), row)[0]
        assert one.tokens.tolist() == other.tokens.tolist() and one.media == ()


def test_the_reader_has_the_grid_that_the_prompt_was_given(model):
    """A limit of the data is known to the controller alone: what reads the image is told its size."""
    prompt, held = encoded(model, {"prompt": "<image>a", "image": picture(60, 60)}, max_pixels=400)
    (image,) = prompt.media
    assert ImageReader(model).read(as_array(held[0]), image.patches).shape[0] == int(np.prod(image.patches))
    assert ImageReader(model).size(as_array(held[0])) != image.patches


def test_the_template_of_these_tests_writes_parts():
    assert PARTS.count(PAD) == 1
    assert DataConfig(path="x").media_key is None

"""The example's files: a model that sees, pictures, and rows of which prompts and demonstrations are made."""

from __future__ import annotations

import importlib.util
import io
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image
from test_data import ListStore, looked_at
from transformers import AutoModelForImageTextToText

from yatt.config.load import load_config
from yatt.data.encoders import row_encoder
from yatt.data.prompts import load_tokenizer
from yatt.data.rows import open_files
from yatt.vision.images import ImageReader

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "examples" / "vision"


@pytest.fixture(scope="module")
def squares() -> ModuleType:
    path = list(sys.path)
    spec = importlib.util.spec_from_file_location("squares", FOLDER / "squares.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.path[:] = path
    return module


@pytest.fixture(scope="module")
def work(squares, tmp_path_factory):
    out = tmp_path_factory.mktemp("vision") / "work"
    few = dict(DEMONSTRATIONS=12, TRAIN_PROMPTS=10, EVAL_PROMPTS=8)
    before = {name: getattr(squares, name) for name in few}
    for name, count in few.items():
        setattr(squares, name, count)
    assert squares.prepare(0, out) and not squares.prepare(0, out)
    for name, count in before.items():
        setattr(squares, name, count)
    return out


def test_the_left_square_has_the_colour_of_the_answer(squares):
    random = np.random.default_rng(3)
    for _ in range(50):
        image, colour = squares.picture(random)
        coloured = np.abs(image.astype(int) - 240).max(axis=2) > 60
        column = int(np.flatnonzero(coloured.any(axis=0))[0])
        row = int(np.flatnonzero(coloured[:, column])[0])
        shade = image[row, column].astype(int)
        nearest = min(squares.COLOURS, key=lambda name: np.abs(shade - squares.COLOURS[name]).sum())
        assert nearest == colour and image.shape == (24, 24, 3)


def test_transformers_loads_the_model(work):
    model = AutoModelForImageTextToText.from_pretrained(work / "model")
    assert 0.6e6 < sum(weights.numel() for weights in model.parameters()) < 0.8e6


@pytest.mark.parametrize(("settings", "file"), [("sft", "demonstrations"), ("grpo", "train"), ("grpo", "eval")])
def test_rows_are_read_as_the_settings_say(squares, work, settings, file):
    model, path = str(work / "model"), str(work / f"{file}.parquet")
    config = load_config(str(FOLDER / f"{settings}.yaml"), [f"model.path={model}", f"data.path={path}"])
    source, store, words = open_files(path, "data.path"), ListStore(), load_tokenizer(model)
    encode = row_encoder(config, words, source, store)
    for number in range(len(source)):
        item = encode(source.row(number), number, number)
        looked_at(item.media, item.tokens, model)
        said = words.decode(item.tokens[26:].tolist())
        if settings == "sft":
            assert said == source.row(number)["response"] + "<|im_end|>" and item.loss_mask.sum() == 2
        else:
            assert said == "" and item.answer in squares.COLOURS
    pixels = np.asarray(Image.open(io.BytesIO(store.held[0])))
    patches = ImageReader(model).read(np.frombuffer(store.held[0], np.uint8))
    assert patches.shape == (36, 3 * 2 * 4 * 4) and np.isin(patches, pixels).all()

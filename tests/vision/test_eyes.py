"""The images of a rank's samples: each distinct one is read once, and what travels is what was said of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.vision.cases import make_samples
from tests.vision.models import IMAGE, MERGE, save_seeing
from yatt.errors import BackendError
from yatt.training.batch import pack
from yatt.training.images import Eyes
from yatt.types import Denominator
from yatt.vision.images import ImageReader

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_seeing(tmp_path_factory.mktemp("eyes") / "model", "qwen3_vl")


def test_an_image_is_read_once_in_a_step_and_shown_wherever_it_stands(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, given = Counter[int](), ImageReader.read

    def counted(self: ImageReader, image: np.ndarray, *more: object) -> np.ndarray:
        read[id(image)] += 1
        return given(self, image, *more)

    monkeypatch.setattr(ImageReader, "read", counted)
    samples, eyes = make_samples(folder, 0), Eyes(folder, merge=MERGE, reads=True)
    parts = [pack(some, Denominator(tokens=1, sequences=1), CPU, 8, eyes) for some in (samples[:4], samples[4:])]
    assert set(read.values()) == {1} and len(read) == 4
    first = parts[0].sight
    assert first is not None and first.images is not None
    # The square of two siblings, the wide one and the odd one: each once, in the tower's order.
    sizes = [samples[i].media[k].patches for i, k in ((0, 0), (3, 0), (3, 1))]
    assert first.images.sizes.tolist() == [list(size) for size in sizes]
    assert len(first.images.normalised()) == sum(rows * columns for _, rows, columns in sizes)
    shown = [image for sample in samples[:4] for image in sample.media]
    assert len(first.images.places) == len(first.images.rows) == sum(image.tokens for image in shown)
    assert parts[0].tokens.shape[1] % 8 == 0 and first.positions.shape == (3, parts[0].tokens.shape[1])
    assert set(parts[0].tokens[0, first.images.places].tolist()) == {IMAGE}
    square = samples[0].media[0].tokens
    assert first.images.rows[:square].tolist() == first.images.rows[square : 2 * square].tolist()
    # The response's own image token is no place of an image.
    assert (parts[0].tokens[0] == IMAGE).sum() == len(first.images.places) + 2


def test_patches_are_normalised_as_the_reader_does(folder: str) -> None:
    samples, reader = make_samples(folder, 0)[4:5], ImageReader(folder)
    sight = pack(samples, Denominator(tokens=1, sequences=1), CPU, 1, Eyes(folder, merge=MERGE, reads=True)).sight
    assert sight is not None and sight.images is not None
    (image,) = samples[0].media
    expected = reader.normalised(reader.read(image.handle))
    assert np.abs(sight.images.normalised().numpy() - expected).max() <= 1e-6


def test_a_rank_without_a_tower_reads_nothing(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageReader, "read", lambda *given: pytest.fail("an image was read"))
    sight = pack(
        make_samples(folder, 0), Denominator(tokens=1, sequences=1), CPU, 1, Eyes(folder, merge=MERGE, reads=False)
    ).sight
    assert sight is not None and sight.images is None and sight.positions.shape[0] == 3


def test_an_image_that_is_not_what_was_said_of_it(folder: str) -> None:
    sample = make_samples(folder, 0)[4]
    (image,) = sample.media
    eyes = Eyes(folder, merge=MERGE, reads=True)
    with pytest.raises(BackendError, match="tokens were said of it"):
        wrong = replace(sample, media=(replace(image, tokens=image.tokens - 1),))
        pack([wrong], Denominator(tokens=1, sequences=1), CPU, 1, eyes)
    with pytest.raises(BackendError, match=r"ends beyond its \d+ tokens"):
        cut = replace(sample, tokens=sample.tokens[: image.start + 2], loss_mask=sample.loss_mask[: image.start + 2])
        pack([replace(cut, rollout_logprobs=None)], Denominator(tokens=1, sequences=1), CPU, 1, eyes)

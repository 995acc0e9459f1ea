"""A prompt's images in `samples/` and in the report: small, within the file, and nothing but images."""

from __future__ import annotations

import base64
import io
import json

import numpy as np
import pytest
from pictures import as_array, picture
from PIL import Image

from yatt.cluster import media, samplelog
from yatt.cluster.media import RayMediaStore
from yatt.cluster.samplelog import SampleLog
from yatt.faces.trajectories import first_and_last
from yatt.types import Group, Media, Prompt, Trajectory


@pytest.fixture
def store(monkeypatch):
    """Objects of a store without Ray."""
    objects: list[list[np.ndarray]] = []
    monkeypatch.setattr(media.ray, "put", lambda value: objects.append(value) or len(objects) - 1)
    monkeypatch.setattr(media.ray, "get", objects.__getitem__)
    return RayMediaStore(together=True)


def group(images: tuple[Media, ...]) -> Group:
    tokens = np.arange(3, dtype=np.int32)
    prompt = Prompt(uid=0, text="look", tokens=tokens[:2], media=images)
    drawn = Trajectory(
        prompt=prompt,
        sibling=0,
        tokens=tokens,
        loss_mask=tokens > 1,
        rollout_logprobs=np.zeros(3, np.float32),
        spans=(),
        finish="stop",
        text="seen",
    )
    return Group(prompt=prompt, trajectories=(drawn,))


@pytest.mark.parametrize("sent", [False, True])
def test_samples_and_report_have_thumbnails_of_the_first_images(tmp_path, store, sent, monkeypatch):
    monkeypatch.setattr(samplelog, "IMAGES", 2)
    files = [picture(300, 200), picture(40, 400, seed=1, kind="JPEG"), picture()]
    held = store.hold([Media(handle=as_array(data), nbytes=len(data)) for data in files])
    if sent:
        media.address([image.handle for image in held])
    SampleLog(tmp_path, 0, 1).groups(1, [group(held)])
    (row,) = [json.loads(line) for line in (tmp_path / "step-1.c0.jsonl").read_text().splitlines()]
    sizes = [Image.open(io.BytesIO(base64.b64decode(one.partition(",")[2]))).size for one in row["images"]]
    assert sizes == [(64, 96), (96, 10)]
    page = first_and_last(tmp_path, "step")
    assert page.count("<img ") == 2 and all(one in page for one in row["images"])


def test_an_image_that_cannot_be_shown_ends_nothing(tmp_path, store, caplog):
    torn = picture()[:-30]
    held = store.hold([Media(handle=as_array(torn), nbytes=len(torn))])
    SampleLog(tmp_path, 0, 1).groups(1, [group(held)])
    assert "cannot be shown" in caplog.text and json.loads((tmp_path / "step-1.c0.jsonl").read_text())["images"] == []


def test_a_report_shows_no_address_that_is_no_small_image(tmp_path):
    hostile = [
        "https://host/a.png",
        'data:image/png;base64,AAAA"><script>alert(1)</script>',
        "data:image/svg+xml;base64,AAAA",
        "data:text/html;base64,AAAA",
        "data:image/png;base64," + "A" * 60_000,
        "data:image/png;base64,AAAA\n",
        3,
    ]
    row = {"uid": 0, "sibling": 0, "prompt": "<img src=x onerror=y>", "response": "r", "reward": 1.0, "images": hostile}
    (tmp_path / "step-1.c0.jsonl").write_text(json.dumps(row) + "\n" + json.dumps({**row, "uid": 1, "images": 3}))
    page = first_and_last(tmp_path, "step")
    assert "<img " not in page and "script" not in page and "host" not in page

"""Weights in transit: what was written is what is read, and nothing else is ever read."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from yatt.config.facts import tensor_shapes
from yatt.errors import BackendError
from yatt.types import WeightManifest
from yatt.weights import check_names, read, shards, verify, writer_for
from yatt.weights.flat import remove_stale

KINDS = ("shm", "disk")


def tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "embed": torch.randn(7, 3, generator=generator),
        "bias": torch.randn(5, generator=generator).bfloat16(),
        "scale": torch.randn((), generator=generator),
        "transposed": torch.randn(4, 6, generator=generator).T,
        "empty": torch.empty(0, 3),
    }


@pytest.fixture
def writer(request, tmp_path):
    writer = writer_for(request.param, tmp_path, "t")
    yield writer
    writer.close()


def check_equal(manifest: WeightManifest, expected: dict[str, torch.Tensor]) -> None:
    found = {name: tensor.clone() for name, tensor in read(manifest)}
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape
        assert torch.equal(found[name], tensor)


@pytest.mark.parametrize("writer", KINDS, indirect=True)
def test_round_trip_of_several_versions(writer):
    for version in range(4):
        manifest = writer.write(tensors(version).items(), version)
        assert manifest.version == version
        check_equal(manifest, tensors(version))


@pytest.mark.parametrize("writer", KINDS, indirect=True)
def test_the_version_before_stays_readable(writer):
    first = writer.write(tensors(1).items(), 1)
    writer.write(tensors(2).items(), 2)
    check_equal(first, tensors(1))


@pytest.mark.parametrize("writer", KINDS, indirect=True)
def test_equal_weights_have_equal_checksums_and_others_do_not(writer):
    a, b, c = (writer.write(tensors(seed).items(), 0).checksum for seed in (1, 1, 2))
    assert a == b != c


@pytest.mark.parametrize("writer", KINDS, indirect=True)
def test_a_wrong_checksum_is_refused_before_the_first_tensor(writer):
    manifest = dataclasses.replace(writer.write(tensors().items(), 5), checksum="00")
    with pytest.raises(BackendError, match=r"version 5.*checksum"):
        read(manifest)


def test_a_changed_byte_is_noticed(tmp_path):
    writer = writer_for("shm", tmp_path, "t")
    manifest = writer.write(tensors().items(), 0)
    with open(manifest.path, "r+b") as file:
        file.seek(manifest.entries[0].nbytes - 1)
        file.write(b"\xff")
    with pytest.raises(BackendError, match="changed or half-written"):
        verify(manifest)
    writer.close()


def test_a_truncated_or_missing_file_is_named(tmp_path):
    writer = writer_for("shm", tmp_path, "t")
    manifest = writer.write(tensors().items(), 0)
    os.truncate(manifest.path, 10)
    with pytest.raises(BackendError, match=rf"{manifest.path} has 10 bytes.*truncated"):
        verify(manifest)
    writer.close()
    with pytest.raises(BackendError, match=manifest.path):
        verify(manifest)


def test_a_missing_tensor_is_named(tmp_path):
    writer = writer_for("disk", tmp_path, "t")
    manifest = writer.write(tensors().items(), 0)
    extra = dataclasses.replace(manifest.entries[0], name="ghost")
    with pytest.raises(BackendError, match="ghost is missing"):
        verify(dataclasses.replace(manifest, entries=(*manifest.entries, extra)))


def test_later_versions_must_have_the_first_one_s_layout(tmp_path):
    writer = writer_for("shm", tmp_path, "t")
    writer.write(tensors().items(), 0)
    with pytest.raises(BackendError, match=r"name='other'.* where the first version had .*name='embed'"):
        writer.write([("other", torch.zeros(7, 3))], 1)
    with pytest.raises(BackendError, match=r"version 1 has None where the first version had .*name='bias'"):
        writer.write(list(tensors().items())[:1], 1)
    writer.close()


def test_a_reader_s_scribbles_reach_nobody(tmp_path):
    writer = writer_for("shm", tmp_path, "t")
    manifest = writer.write(tensors().items(), 0)
    for _, tensor in read(manifest):
        tensor.zero_()
    check_equal(manifest, tensors())
    writer.close()


def test_a_version_on_disk_is_complete_or_absent_and_old_ones_go(tmp_path):
    writer = writer_for("disk", tmp_path, "t")

    def broken():
        yield "embed", torch.zeros(3)
        raise OSError("no space left")

    with pytest.raises(BackendError, match=r"t-v0.*no space left"):
        writer.write(broken(), 0)
    assert list(tmp_path.iterdir()) == []
    for version in (1, 2, 3):
        writer.write(tensors().items(), version)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t-v2", "t-v3"]
    writer.close()
    assert list(tmp_path.iterdir()) == []


def test_only_files_of_dead_writers_are_removed(tmp_path):
    code = (
        "import os, sys; from yatt.weights import writer_for; w = writer_for('shm', sys.argv[1], 'dead'); os._exit(0)"
    )
    root = Path(__file__).parent.parent
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=120, cwd=root)
    writer = writer_for("shm", tmp_path, "alive")
    assert {path.name.split("-")[1] for path in tmp_path.iterdir()} == {"alive"}
    assert remove_stale(tmp_path) == []
    writer.close()
    assert list(tmp_path.iterdir()) == []


def test_names_and_shapes_are_those_of_the_model(tmp_path):
    writer = writer_for("disk", tmp_path, "t")
    manifest = writer.write([("a", torch.zeros(2, 3)), ("b", torch.zeros(4))], 0)
    expected = tensor_shapes(manifest.path)
    assert expected == {"a": (2, 3), "b": (4,)}
    check_names(manifest, expected, tied=False)
    check_names(manifest, expected | {"lm_head.weight": (9, 9)}, tied=True)
    with pytest.raises(BackendError, match=r"lm_head\.weight is missing, in the model it is \(9, 9\)"):
        check_names(manifest, expected | {"lm_head.weight": (9, 9)}, tied=False)
    with pytest.raises(BackendError, match=r"b is \(4,\), in the model it is missing"):
        check_names(manifest, {"a": (2, 3)}, tied=False)
    with pytest.raises(BackendError, match=r"a is \(2, 3\), in the model it is \(3, 2\)"):
        check_names(manifest, {"a": (3, 2), "b": (4,)}, tied=False)


def test_the_disk_transport_needs_a_directory():
    with pytest.raises(BackendError, match=r"weights\.dir"):
        writer_for("disk", None, "t")


def test_shards_hold_at_most_their_bytes_and_are_named_when_all_are_complete(tmp_path, monkeypatch):
    """Three tensors of 400 bytes, a tensor of 1200 and one of 40, in files of at most 800 bytes."""
    monkeypatch.setattr(shards, "SHARD_BYTES", 800)
    sizes = {"a": 100, "b": 100, "c": 100, "large": 300, "d": 10}
    seen = []

    def stream():
        for name, size in sizes.items():
            seen.append({path.name for path in tmp_path.iterdir() if path.suffix == ".safetensors"})
            yield name, torch.full((size,), float(size))

    old = [tmp_path / name for name in ("model.safetensors", "model.safetensors.index.json")]
    for path in old:
        path.write_bytes(b"an older model")
    old_umask = os.umask(0o077)
    try:
        shards.write_shards(tmp_path, stream())
    finally:
        os.umask(old_umask)
    assert all(names == {"model.safetensors"} for names in seen), "none has its name before all are there"
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    files = [f"model-{i}-of-00004.safetensors" for i in ("00001", "00002", "00003", "00004")]
    assert index["weight_map"] == dict(zip(sizes, (files[0], files[0], *files[1:]), strict=True))
    assert index["metadata"]["total_size"] == 4 * 610
    assert {path.name for path in tmp_path.iterdir()} == {*files, "model.safetensors.index.json"}
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o644}
    monkeypatch.undo()
    shards.write_shards(tmp_path, [("a", torch.ones(3))])
    assert not old[1].exists() and load_file(old[0])["a"].tolist() == [1.0, 1.0, 1.0]


def test_a_stream_that_breaks_leaves_no_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_BYTES", 8)

    def broken():
        yield "a", torch.zeros(2)
        yield "b", torch.zeros(2)
        raise RuntimeError("a rank died")

    with pytest.raises(RuntimeError, match="a rank died"):
        shards.write_shards(tmp_path, broken())
    assert list(tmp_path.iterdir()) == []


def test_versions_of_several_files_are_read_back(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_BYTES", 100)
    writer = writer_for("disk", tmp_path, "t")
    manifest = writer.write(tensors(3).items(), 3)
    assert len(list(Path(manifest.path).glob("*.safetensors"))) > 1
    check_equal(manifest, tensors(3))
    extra = dataclasses.replace(manifest.entries[0], name="ghost")
    with pytest.raises(BackendError, match="ghost is missing"):
        verify(dataclasses.replace(manifest, entries=(*manifest.entries, extra)))


def test_a_tensor_that_the_stream_writes_again_is_kept_as_it_was(tmp_path):
    buffer = torch.zeros(2)

    def stream():
        for value in (1.0, 2.0):
            yield f"w{value:.0f}", buffer.fill_(value)

    shards.write_shards(tmp_path, stream())
    assert {name: t.tolist() for name, t in load_file(tmp_path / "model.safetensors").items()} == {
        "w1": [1.0, 1.0],
        "w2": [2.0, 2.0],
    }

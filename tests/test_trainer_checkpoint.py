"""Checkpoints of the Megatron trainer, and the Hugging Face folders made of it."""

from __future__ import annotations

import json
import math
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.megatron_cases import config, make_samples, shares, worst
from tests.megatron_pool import play
from tests.tiny_models import save_tiny
from yatt.checksums import Damaged
from yatt.config.schema import Config
from yatt.training import export
from yatt.training.identity import check_shards
from yatt.training.megatron.optimizer_state import boxes
from yatt.training.shard_files import Box, Shards
from yatt.weights import shards

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny(tmp_path_factory.mktemp("model"), "qwen3", spread=2.0)


def batches(replicas: int, first: int, count: int) -> list[tuple[str, Any]]:
    return [("update", shares(make_samples(seed), replicas)) for seed in range(first, first + count)]


@pytest.fixture(scope="module")
def saved(folder: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[Any]]:
    """A checkpoint of two data-parallel ranks after two updates, and what they did next: two reports, weights."""
    path = str(tmp_path_factory.mktemp("checkpoint") / "step-2")
    script = [*batches(2, 0, 2), ("call", "save", path), *batches(2, 2, 2), ("export",)]
    return path, play(2, config(folder), script)[0][-3:]


def test_same_layout_goes_on_bit_for_bit(folder: str, saved: tuple[str, list[Any]]) -> None:
    path, (third, fourth, weights) = saved
    *reports, found = play(2, config(folder), [("call", "load", path), *batches(2, 2, 2), ("export",)])[0][1:]
    for report, expected in zip(reports, (third, fourth), strict=True):
        assert (report.loss, report.grad_norm, report.learning_rate) == (
            expected.loss,
            expected.grad_norm,
            expected.learning_rate,
        )
    assert all(np.array_equal(found[name], weights[name]) for name in weights)


@pytest.mark.parametrize(("world", "train"), [(1, {}), (2, {"tp": 2}), (4, {"pp": 2})])
def test_another_layout_goes_on_alike(
    folder: str, saved: tuple[str, list[Any]], world: int, train: dict[str, Any]
) -> None:
    path, (third, fourth, weights) = saved
    replicas = world // (train.get("tp", 1) * train.get("pp", 1))
    script = [("call", "load", path), *batches(replicas, 2, 2), ("export",)]
    *reports, found = play(world, config(folder, **train), script)[0][1:]
    for report, expected in zip(reports, (third, fourth), strict=True):
        assert report.loss == pytest.approx(expected.loss, abs=1e-6)
        assert report.grad_norm == pytest.approx(expected.grad_norm, rel=1e-4)
        assert report.learning_rate == expected.learning_rate
    assert worst(found, weights) <= 1e-5


def test_two_stages_of_two_shards_can_be_read_by_one(folder: str, tmp_path: Path) -> None:
    path = str(tmp_path / "c")
    train = {"tp": 2, "pp": 2}
    script = [*batches(1, 0, 1), ("call", "save", path), *batches(1, 1, 1), ("export",)]
    weights = play(4, config(folder, **train), script)[0][-1]
    found = play(1, config(folder), [("call", "load", path), *batches(1, 1, 1), ("export",)])[0][-1]
    assert worst(found, weights) <= 1e-5


def test_ranks_of_one_machine_listen_on_loopback_alone(folder: str) -> None:
    script = [*batches(2, 0, 1), ("listeners",)]
    found = {ip.removeprefix("::ffff:") for results in play(2, config(folder), script) for ip in results[-1]}
    assert found == {"127.0.0.1"}


def test_a_checkpoint_can_precede_the_first_update(folder: str, tmp_path: Path) -> None:
    path = str(tmp_path / "c")
    fresh = play(1, config(folder), [("call", "save", path), *batches(1, 0, 1), ("export",)])[0][-1]
    script = [*batches(1, 5, 1), ("call", "load", path), *batches(1, 0, 1), ("export",)]
    loaded = play(1, config(folder), script)[0][-1]
    assert all(np.array_equal(fresh[name], loaded[name]) for name in fresh)


def test_bad_checkpoints_are_refused(folder: str, saved: tuple[str, list[Any]], tmp_path: Path) -> None:
    path, _ = saved
    other = save_tiny(tmp_path / "other", "qwen3", intermediate_size=96)
    result = play(1, config(other), [("call", "load", path)])[0][-1]
    assert result[:2] == ("error", "CheckpointError")
    assert "intermediate_size=128 there, 96 in model.path" in result[2]

    for damage, said in (
        (zeroed, "shard-0.safetensors has changed since it was written: its checksum is another"),
        (removed, "shard-0.safetensors is missing"),
    ):
        bad = tmp_path / damage.__name__
        shutil.copytree(path, bad)
        damage(bad / "shard-0.safetensors")
        kind, name, message = play(1, config(folder), [("call", "load", str(bad))])[0][-1]
        assert (kind, name) == ("error", "CheckpointError")
        assert message == f"checkpoint {bad} is broken: {said}; use an earlier checkpoint"
    kind, name, message = play(1, config(folder), [("call", "load", str(tmp_path / "no"))])[0][-1]
    assert (kind, name) == ("error", "CheckpointError") and "no such folder" in message


def zeroed(file: Path) -> None:
    """A page in the middle."""
    data = bytearray(file.read_bytes())
    middle = len(data) // 2 // 4096 * 4096
    data[middle : middle + 4096] = bytes(len(data[middle : middle + 4096]))
    file.write_bytes(data)


def flipped(file: Path) -> None:
    """A single bit."""
    data = bytearray(file.read_bytes())
    data[len(data) // 3] ^= 4
    file.write_bytes(data)


def truncated(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def removed(file: Path) -> None:
    file.unlink()


def emptied(file: Path) -> None:
    file.write_bytes(b"")


def replaced(file: Path) -> None:
    file.write_text("{}")


@pytest.mark.parametrize("damage", [zeroed, flipped, truncated, removed, emptied, replaced])
@pytest.mark.parametrize("name", ["trainer.json", "shard-0.json", "shard-1.json", "shard-1.safetensors"])
def test_whatever_is_not_what_was_written_is_refused(
    saved: tuple[str, list[Any]], tmp_path: Path, damage: Callable[[Path], None], name: str
) -> None:
    bad = tmp_path / "c"
    shutil.copytree(saved[0], bad)
    check_shards(bad, deep=True)
    damage(bad / name)
    with pytest.raises(Damaged) as caught:
        check_shards(bad, deep=True)
    assert name in str(caught.value)


class Marker:
    """Unpickled, it makes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.file),)


def boxes_of(path: str) -> list[Box]:
    """Room for everything that a checkpoint of float32 numbers has."""
    found = {}
    for file in Path(path).glob("shard-*.json"):
        for place in json.loads(file.read_text())["tensors"].values():
            if place["of"] != "rng":
                whole = tuple(place["whole"])
                found[place["of"]] = Box(place["of"], whole, (0,) * len(whole), torch.empty(whole))
    return list(found.values())


def test_nothing_in_a_checkpoint_is_code(folder: str, saved: tuple[str, list[Any]], tmp_path: Path) -> None:
    """Pickles under every name that torch and Megatron would load, and in place of every file of our own."""
    path, out, marker = tmp_path / "c", tmp_path / "out", tmp_path / "marker"
    shutil.copytree(saved[0], path)
    own = [file.name for file in path.iterdir()]
    hostile = pickle.dumps(Marker(marker))
    pickle.loads(hostile)
    assert marker.is_dir(), "the pickle is one that acts"
    marker.rmdir()
    for name in (".metadata", "common.pt", "metadata.json", "__0_0.distcp", "rng.pt"):
        (path / name).write_bytes(hostile)
    play(1, config(folder), [("call", "load", str(path))])
    play(1, config(folder), [("export_checkpoint", str(path), str(out))])
    assert (out / "model.safetensors").is_file()
    for name in own:
        bad = tmp_path / "bad"
        shutil.copytree(saved[0], bad)
        (bad / name).write_bytes(hostile)
        with pytest.raises(Damaged):
            check_shards(bad, deep=True)
        with pytest.raises(Damaged):
            Shards(bad).fill(boxes_of(saved[0]))
        shutil.rmtree(bad)
    assert not marker.exists()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_checkpoint_has_the_states_of_when_it_was_begun(folder: str, tmp_path: Path, dtype: Any) -> None:
    """Two updates come before it is waited for. Of a float32 model the main weights are not written twice."""
    begun, whole, settings = str(tmp_path / "begun"), str(tmp_path / "whole"), config(folder)
    settings["model"]["dtype"] = dtype
    script = [*batches(2, 0, 1), ("call", "save", whole), ("call", "begin_save", begun), *batches(2, 1, 2)]
    first, *_ = play(2, settings, [*script, ("call", "end_save"), ("export",)])
    for name in ("shard-0.safetensors", "shard-1.safetensors"):
        assert (Path(begun) / name).read_bytes() == (Path(whole) / name).read_bytes()
    described = json.loads((Path(whole) / "shard-0.json").read_text())["tensors"].values()
    assert any(place["of"].startswith("optimizer.param.") for place in described) is (dtype == "bfloat16")
    again = play(2, settings, [("call", "load", begun), *batches(2, 1, 2), ("export",)])[0]
    assert [report.loss for report in again[1:3]] == [report.loss for report in first[3:5]]
    assert all(np.array_equal(first[-1][name], again[-1][name]) for name in again[-1])


def test_a_full_disk_stops_the_save_and_not_the_training(folder: str, tmp_path: Path) -> None:
    path = str(tmp_path / "c")
    for rank in (0, 1):
        script = [
            *batches(1, 0, 1),
            ("save_failing", path, rank, 20_000),
            *batches(1, 1, 1),
            ("call", "load", path),
        ]
        for results in play(2, config(folder, tp=2), script):
            name, message = results[1]
            assert name == "BackendError" and path in message and "could not be written" in message
            assert results[2].trained_tokens > 0
            assert results[3][:2] == ("error", "CheckpointError")
    blocked = tmp_path / "file"
    blocked.write_text("")
    for results in play(2, config(folder), [("save_failing", str(blocked / "c"), 0, 1 << 30)]):
        assert results[0][0] == "BackendError"
    first, second = play(2, config(folder, tp=2), [("call", "save_folder", str(blocked / "c"))])
    assert first[0][:2] == ("error", "BackendError") and second == [None], "and rank 1 is not left waiting"


@pytest.mark.parametrize(("architecture", "tie"), [("qwen3", True), ("llama", False)])
def test_folders_load_in_transformers(architecture: Any, tie: bool, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model", architecture, tie=tie, spread=2.0)
    checkpoint, direct, exported = (str(tmp_path / name) for name in ("checkpoint", "direct", "exported"))
    script = [*batches(1, 0, 1), ("call", "save", checkpoint), ("call", "save_folder", direct), ("export",)]
    weights = play(2, config(folder, tp=2), script)[0][-1]
    play(1, config(folder), [("export_checkpoint", checkpoint, exported)])
    for out in (direct, exported):
        model = AutoModelForCausalLM.from_pretrained(out)
        assert model.dtype == torch.float32
        loaded = model.state_dict()
        assert all(np.array_equal(loaded[name].numpy(), weights[name]) for name in weights)
        assert AutoTokenizer.from_pretrained(out)("1+1") == AutoTokenizer.from_pretrained(folder)("1+1")


def test_large_folders_are_sharded(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    weights = {name: value for name, value in model.state_dict().items() if name != "lm_head.weight"}
    monkeypatch.setattr(shards, "SHARD_BYTES", 100_000)
    out = tmp_path / "out"
    export.write_folder(iter(weights.items()), Config(**config(folder)), str(out), writer=True)
    total = sum(4 * value.numel() for value in weights.values())
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == total
    files = sorted(out.glob("model-*.safetensors"))
    assert len(files) >= total // 100_000 and {file.name for file in files} == set(index["weight_map"].values())
    assert all(
        torch.equal(value, AutoModelForCausalLM.from_pretrained(out).state_dict()[n]) for n, value in weights.items()
    )


@pytest.mark.parametrize("shape", [(7,), (5, 4), (3, 4, 2)])
def test_boxes_cover_a_range_once_and_in_order(shape: tuple[int, ...]) -> None:
    numbers = np.arange(math.prod(shape)).reshape(shape)
    for start in range(numbers.size):
        for stop in range(start + 1, numbers.size + 1):
            cut = list(boxes(shape, start, stop))
            inside = [
                numbers[tuple(slice(o, o + s) for o, s in zip(offset, sizes, strict=True))].ravel()
                for offset, sizes in cut
            ]
            assert np.concatenate(inside).tolist() == list(range(start, stop)), (start, stop)
            assert len(cut) <= 2 * len(shape) - 1


def test_boxes_by_hand() -> None:
    """Of 4 rows of 3: the end of the first, two whole ones, the beginning of the last."""
    assert list(boxes((4, 3), 1, 11)) == [((0, 1), (1, 2)), ((1, 0), (2, 3)), ((3, 0), (1, 2))]

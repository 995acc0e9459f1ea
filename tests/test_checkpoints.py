"""Checkpoints of a run as the driver has them: good or refused, here and where they are copied to."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import fsspec
import pytest
from typer.testing import CliRunner

from yatt.checksums import write_json
from yatt.cli import app
from yatt.config.load import load_config
from yatt.errors import CheckpointError, ConfigError
from yatt.faces.checkpoints import Checkpoints, newest_good, read_checkpoint
from yatt.faces.export import find_checkpoint
from yatt.faces.remote import Remote
from yatt.faces.rundir import RunDirectory
from yatt.faces.start import ready

SHARD = bytes(range(256)) * 64


def config(folder: Path, *words: str):
    place = ["model.path=m", "data.path=d", "train.steps=9", "train.batch_size=1", f"run.dir={folder}"]
    return load_config(None, [*place, "resume=auto", *words])


async def write(folder: Path):
    """What ranks and controllers write: two models with a shard each."""
    for part in (folder / "trainer", folder / "trainer" / "critic"):
        part.mkdir()
        (part / "shard-0.safetensors").write_bytes(SHARD)
        checksum = "c96b04ebefa8f6dc"
        write_json(part / "shard-0.json", {"bytes": len(SHARD), "checksum": checksum, "tensors": {}})
        write_json(part / "trainer.json", {"shards": 1, "model": {}, "state": {}})
    (folder / "controllers" / "controller-0.jsonl").write_text('{"uid": 1}\n')
    return {"source": {"next": 1}}


async def saved(settings, *steps: int) -> Checkpoints:
    checkpoints = Checkpoints(RunDirectory(Path(settings.run.dir, settings.run.name)), settings)
    for step in steps:
        await checkpoints.save(step, write)
    await checkpoints.copied()
    return checkpoints


@pytest.fixture
def run(tmp_path) -> RunDirectory:
    """Two good checkpoints."""
    asyncio.run(saved(config(tmp_path), 6, 8))
    return RunDirectory(tmp_path / "run")


FILES = [
    *("complete.json", "state.json", "config.yaml", "controllers/controller-0.jsonl"),
    *(f"trainer/{part}{name}" for part in ("", "critic/") for name in ("trainer.json", "shard-0.json")),
    *("trainer/shard-0.safetensors", "trainer/critic/shard-0.safetensors"),
]


def flip(data: bytes) -> bytes:
    return data[:-2] + bytes([data[-2] ^ 1]) + data[-1:]


DAMAGE = {
    "a page of zeros": lambda data: bytes(min(4096, len(data))) + data[4096:],
    "a flipped bit": flip,
    "truncated": lambda data: data[:-1],
    "longer": lambda data: data + b"x",
    "empty": lambda data: b"",
    "{}": lambda data: b"{}",
    "no text": lambda data: b"\xff\xfe",
    "missing": None,
}


@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize("name", FILES)
def test_a_broken_one_is_passed_over_or_refused_by_name(run, tmp_path, name, how):
    assert sorted(FILES) == sorted(str(f.relative_to(run.path / "checkpoints/step-8")) for f in files_of(run, "step-8"))
    file = run.checkpoints_folder / "step-8" / name
    if DAMAGE[how] is None:
        file.unlink()
    else:
        file.write_bytes(DAMAGE[how](file.read_bytes()))
    choice = newest_good(run)
    assert choice.resume.step == 6 and [folder.name for folder in choice.passed] == ["step-8"]
    (line,) = choice.lines
    assert line.startswith(f"{run.checkpoints_folder}/step-8 is passed over: {name} ") and "\n" not in line
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(run.checkpoints_folder / "step-8", "resume=")
    said = str(caught.value)
    assert said.startswith(f"resume={run.checkpoints_folder}/step-8 is broken: {name} ") and "\n" not in said
    assert said.endswith(f"; use resume={run.checkpoints_folder}/step-6")
    assert find_checkpoint(run.path).step == 6
    own = config(tmp_path, f"resume={run.checkpoints_folder}/step-8")
    with pytest.raises(CheckpointError, match=r"; use resume=auto, which takes step-6$"):
        Checkpoints(run, own).choose()


def files_of(run, name):
    return [file for file in (run.checkpoints_folder / name).rglob("*") if file.is_file()]


def test_good_ones_are_taken_and_what_is_none_is_not_looked_at(run, tmp_path):
    assert newest_good(run).resume.step == 8 and newest_good(run).passed == {}
    assert newest_good(RunDirectory(tmp_path / "none")).resume is None
    (run.checkpoints_folder / "step-9").mkdir()
    (run.checkpoints_folder / ".step-10.part").mkdir()
    (run.checkpoints_folder / "step-12.broken").mkdir()
    assert newest_good(run).resume.step == 8


def test_a_run_does_not_begin_anew_over_broken_ones(run, tmp_path):
    for step in (6, 8):
        (run.checkpoints_folder / f"step-{step}" / "state.json").write_text("{}")
    with pytest.raises(CheckpointError) as caught:
        ready(config(tmp_path))
    first, *lines = str(caught.value).splitlines()
    assert first == f"{run.checkpoints_folder}: no checkpoint is good; bring one back, or start a new run"
    assert [line.partition(" is passed over: state.json ")[0][-6:] for line in lines] == ["step-8", "step-6"]
    with pytest.raises(CheckpointError, match="no other there is good"):
        read_checkpoint(run.checkpoints_folder / "step-8")


def test_one_of_an_older_version_is_said_to_be_so(run):
    (run.checkpoints_folder / "step-8" / "complete.json").write_text('{"step": 8, "contents": {}}')
    with pytest.raises(CheckpointError, match="has no checksum: it is damaged, or left by an older version"):
        read_checkpoint(run.checkpoints_folder / "step-8")


def test_what_was_passed_over_keeps_its_bytes_and_is_no_checkpoint_any_more(run, tmp_path):
    shard = run.checkpoints_folder / "step-8" / "trainer" / "shard-0.safetensors"
    shard.write_bytes(bytes(len(SHARD)))
    checkpoints = Checkpoints(run, config(tmp_path))
    assert checkpoints.choose(deep=False).resume.step == 8, "a quick look is at sizes"
    (run.checkpoints_folder / ".step-7.part").mkdir()
    choice = checkpoints.choose()
    checkpoints.sweep(choice.passed)
    assert sorted(os.listdir(run.checkpoints_folder)) == ["step-6", "step-8.broken"]
    asyncio.run(saved(config(tmp_path), 8))
    assert newest_good(run).resume.step == 8 and newest_good(run).passed == {}


def test_the_command_says_it_in_lines(run, tmp_path):
    for step in (6, 8):
        (run.checkpoints_folder / f"step-{step}" / "complete.json").write_text("")
    result = CliRunner().invoke(app, ["export", str(run.path), str(tmp_path / "out")])
    assert isinstance(result.exception, CheckpointError) and not (tmp_path / "out").exists()


# --- elsewhere -------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["memory", "file"])
def there(request, tmp_path):
    """An address, its file system, and the folder of the run there."""
    url = {"memory": f"memory://{tmp_path.name}/c", "file": f"file://{tmp_path}/far/c"}[request.param]
    files, root = fsspec.core.url_to_fs(url)
    return url, files, f"{root}/run"


async def test_each_is_copied_and_old_ones_are_removed_there_too(tmp_path, there):
    url, files, root = there
    await saved(config(tmp_path, f"checkpoint.remote={url}", "checkpoint.keep=2"), 2, 4, 6)
    assert Remote(url, "run").steps() == [4, 6]
    here = tmp_path / "run" / "checkpoints" / "step-6"
    names = [str(file.relative_to(here)) for file in here.rglob("*") if file.is_file()]
    assert all(files.cat(f"{root}/step-6/{name}") == (here / name).read_bytes() for name in names)


def test_a_new_machine_fetches_the_newest_good_one(tmp_path, there):
    url, files, root = there
    words = (f"checkpoint.remote={url}", "checkpoint.keep=3")
    asyncio.run(saved(config(tmp_path, *words), 2, 4, 6))
    new = config(tmp_path / "new", *words)
    (tmp_path / "new/run/checkpoints").mkdir(parents=True)
    checkpoints, warnings = Checkpoints(RunDirectory(tmp_path / "new/run"), new), []
    checkpoints.warn = warnings.append
    assert (
        Checkpoints(RunDirectory(tmp_path / "new/run"), config(tmp_path / "new", *words, "resume=never")).fetch()
        is None
    )
    with files.open(f"{root}/step-6/state.json", "wb") as out:
        out.write(b"{}")
    files.rm(f"{root}/step-4/complete.json")
    assert checkpoints.fetch() == tmp_path / "new/run/checkpoints/step-2"
    assert warnings == [f"{url}/run/step-6 is passed over: state.json has 2 bytes, not {size(tmp_path, 6)}"]
    assert checkpoints.choose().resume.step == 2 and checkpoints.fetch() is None
    assert sorted(os.listdir(tmp_path / "new/run/checkpoints")) == ["step-2"]


def size(tmp_path, step):
    return (tmp_path / f"run/checkpoints/step-{step}/state.json").stat().st_size


def test_a_broken_one_here_is_mended_from_there(tmp_path, there):
    words = (f"checkpoint.remote={there[0]}",)
    checkpoints = asyncio.run(saved(config(tmp_path, *words), 2, 4))
    assert checkpoints.fetch() is None
    (tmp_path / "run/checkpoints/step-4/state.json").write_text("{}")
    assert checkpoints.fetch() == tmp_path / "run/checkpoints/step-4"
    assert checkpoints.choose()[0].step == 4 and checkpoints.choose().passed == {}


async def test_a_copy_that_fails_is_a_warning_and_is_no_copy(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # fsspec takes such an address for a path from here
    settings = config(tmp_path, f"checkpoint.remote=file://user:hunter2@{tmp_path}/far")
    files = fsspec.filesystem("file")
    put = type(files).put_file

    def full(self, source, target, **options):
        if target.endswith("state.json"):
            raise OSError(28, "No space left on file://user:hunter2@x")
        put(self, source, target, **options)

    monkeypatch.setattr(type(files), "put_file", full)
    checkpoints = Checkpoints(RunDirectory(tmp_path / "run"), settings)
    checkpoints.warn = (warnings := []).append
    await checkpoints.save(2, write)
    await checkpoints.copied()
    (warning,) = warnings
    assert "No space left" in warning and "hunter2" not in warning and "the run goes on" in warning
    assert checkpoints._remote.steps() == [] and checkpoints.choose().resume.step == 2


def test_an_address_that_nothing_reaches_is_refused_before_a_run(tmp_path):
    with pytest.raises(ConfigError, match=r"checkpoint.remote=nowhere://x: Protocol not known: nowhere; use a scheme"):
        ready(config(tmp_path, "checkpoint.remote=nowhere://x"))
    with pytest.raises(ConfigError) as caught:
        ready(config(tmp_path, "checkpoint.remote=nowhere://me:hunter2@x"))
    assert "hunter2" not in str(caught.value)

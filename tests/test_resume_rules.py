"""What a run may go on from: its own checkpoint, settings that a checkpoint can follow, the same models and rows."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path

import pytest
from tiny_models import save_tiny

from yatt.config.load import describe, load_config, save_config
from yatt.config.resume import FIXED, FROZEN, content_mistakes, resume_mistakes
from yatt.config.schema import Config
from yatt.data.rows import open_files
from yatt.errors import BackendError, ConfigError, ProcessDied
from yatt.faces.checkpoints import Checkpoints, read_checkpoint
from yatt.faces.contents import contents, of_folder, of_rows
from yatt.faces.rundir import RunDirectory
from yatt.faces.start import ready
from yatt.faces.train import CheckpointingCrew

WORDS = ("train.steps=4", "train.batch_size=2", "data.path=rows.jsonl", "reward.function=exact_match")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture
def here(model, tmp_path, monkeypatch):
    """A working directory with a model and 3000 rows."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(model, "model")
    write_rows(range(3000))
    return tmp_path


def write_rows(numbers):
    Path("rows.jsonl").write_text("".join(json.dumps({"prompt": f"{n}+1="}) + "\n" for n in numbers))


def config(*words: str) -> Config:
    return load_config(None, ["model.path=model", *WORDS, *words])


def saved(settings: Config, step: int = 2, state=None, carried=(), told=True) -> Path:
    """A checkpoint of a run under these settings, but for what ranks write."""
    run = RunDirectory(Path(settings.run.dir, settings.run.name))
    checkpoints = Checkpoints(run, settings)
    checkpoints.contents = contents(settings) if told else {}

    async def write(folder):
        for controller, uids in enumerate(carried):
            lines = "".join(json.dumps({"uid": uid, "trajectories": []}) + "\n" for uid in uids)
            (folder / "controllers" / f"controller-{controller}.jsonl").write_text(lines)
        return state or {}

    return asyncio.run(checkpoints.save(step, write))


def refused(settings: Config) -> str:
    with pytest.raises(ConfigError) as caught:
        ready(settings)
    return str(caught.value)


def test_the_table_has_settings_only():
    assert {*FIXED, *FROZEN} <= {setting.name.partition("[]")[0] for setting in describe()}


@pytest.mark.parametrize(
    ("word", "said"),
    [
        (
            "run.seed=1",
            "run.seed=1 but the checkpoint was made with 0: the order of the rows comes from it; go on with 0",
        ),
        (
            "data.shuffle=false",
            "data.shuffle=false but the checkpoint was made with true: the order of the rows comes ",
        ),
        (
            "model.dtype=float32",
            "model.dtype=float32 but the checkpoint was made with bfloat16: its weights are of that",
        ),
        (
            "algorithm.name=dpo",
            "algorithm.name=dpo learns from other rows than grpo, which made the checkpoint; go on w",
        ),
        (
            "algorithm.name=ppo",
            "algorithm.name=ppo has another critic than grpo, which made the checkpoint; go on with ",
        ),
        (
            "data.tasks=[{name: leg_counting}]",
            "data.tasks=[{name: leg_counting, ...}] but the checkpoint was made with []",
        ),
    ],
)
def test_what_a_checkpoint_cannot_follow_is_refused(here, word, said):
    saved(config())
    assert refused(config("resume=auto", word)).startswith(said)


@pytest.mark.parametrize(
    "word",
    [
        "algorithm.name=dapo", "algorithm.kl.coefficient=0.1", "train.optimizer.betas=[0.1,0.5]", "train.steps=9",
        "train.batch_size=8", "rollout.n=2", "train.updates_per_step=2", "cluster.controllers=2", "data.size=7",
    ],
)  # fmt: skip
def test_what_it_can_follow_is_taken(here, word):
    saved(config())
    ready(config("resume=auto", word))


def test_ppo_keeps_the_steps_in_which_only_the_critic_learns():
    then, now = (config("algorithm.name=ppo", f"critic.warmup_steps={steps}") for steps in (1, 2))
    (line,) = resume_mistakes(now, then)
    assert line.startswith("critic.warmup_steps=2 but the checkpoint was made with 1: the schedule of the policy's")


def test_settings_are_compared_whatever_folder_they_are_given_from(here, monkeypatch):
    saved(config())
    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")
    moved = load_config(
        None, ["model.path=../model", *WORDS, "data.path=../rows.jsonl", "run.dir=../runs", "resume=auto"]
    )
    checkpoint = read_checkpoint(here / "runs/run/checkpoints/step-2")
    ready(moved)
    checkpoint.check(moved, contents(moved))


# --- the same models and rows ----------------------------------------------------------------------------------------


def changed(settings: Config) -> list[str]:
    checkpoint = read_checkpoint(Path("runs/run/checkpoints/step-2"))
    then = load_config(str(checkpoint.folder / "config.yaml"), [])
    return list(content_mistakes(settings, then, contents(settings), checkpoint.contents))


def test_other_rows_of_the_same_number_are_refused(here):
    saved(config())
    assert changed(config()) == []
    write_rows(range(1, 3001))
    (line,) = changed(config())
    assert line.startswith("data.path=rows.jsonl: its contents") and "(3000 rows, " in line
    write_rows(range(2999))
    assert "now 2999 rows, " in changed(config())[0]
    with pytest.raises(ConfigError, match="start a new run"):
        read_checkpoint(Path("runs/run/checkpoints/step-2")).check(config(), contents(config()))


def test_another_model_of_the_same_sizes_is_refused_and_the_same_elsewhere_is_not(here, model, tmp_path):
    saved(config())
    shutil.copytree(model, "copy")
    assert changed(config("model.path=copy")) == []
    save_tiny(tmp_path / "other", seed=7)
    (line,) = changed(config("model.path=other"))
    assert (
        line.startswith("model.path=other: its contents are not those of ") and "/model, with which the check" in line
    )
    shutil.rmtree("model")
    shutil.copytree("other", "model")
    (line,) = changed(config())
    assert line.startswith("model.path=model: its contents ")


def test_another_tokenizer_is_another_model(here):
    saved(config())
    file = Path("model/tokenizer.json")
    file.write_text(file.read_text().replace("<bos>", "<box>"))
    assert len(changed(config())) == 1


def test_a_reference_may_be_replaced_by_name_and_not_behind_it(here, model, tmp_path):
    save_tiny(tmp_path / "one", seed=1)
    save_tiny(tmp_path / "two", seed=2)
    kl = ("algorithm.kl.coefficient=0.1", f"model.reference={tmp_path}/one")
    saved(config(*kl))
    assert changed(config(*kl)) == []
    assert changed(config(*kl, f"model.reference={tmp_path}/two")) == []
    shutil.rmtree("one")
    shutil.copytree("two", "one")
    (line,) = changed(config(*kl))
    assert line.startswith(f"model.reference={tmp_path}/one: its contents have changed since the checkpoint was made (")


def test_a_critic_stays_what_it_began_as(here, tmp_path):
    save_tiny(tmp_path / "scorer", seed=3)
    saved(config("algorithm.name=ppo"))
    (line,) = changed(config("algorithm.name=ppo", f"critic.path={tmp_path}/scorer"))
    assert line.startswith(f"critic.path={tmp_path}/scorer: its contents are not those of ")


def test_contents_that_a_checkpoint_says_nothing_of(here):
    saved(config(), told=False)
    write_rows(range(5))
    assert changed(config()) == []


def test_every_part_of_a_file_that_is_looked_at_counts(tmp_path, monkeypatch):
    monkeypatch.setattr("yatt.faces.contents.PART", 4)
    monkeypatch.setattr("yatt.faces.contents.PARTS", 3)
    file = tmp_path / "a.safetensors"

    def told(data: bytes) -> str:
        file.write_bytes(data)
        return of_folder(tmp_path)

    plain = told(bytes(100))  # looked at: 0 to 3, 48 to 51, 96 to 99
    for place, seen in ((0, True), (3, True), (4, False), (48, True), (51, True), (52, False), (99, True)):
        data = bytearray(100)
        data[place] = 1
        assert (told(bytes(data)) != plain) is seen, place
    assert told(bytes(101)) != plain
    small = told(bytes(10))
    assert all(told(bytes(n) + b"1" + bytes(9 - n)) != small for n in range(10))


def test_rows_that_cannot_be_read_or_hold_bytes_have_contents(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"a": 1}\nnot json\n')
    assert of_rows(open_files(str(file), "data.path")) == of_rows(open_files(str(file), "data.path"))

    class Rows:
        def __init__(self, *images):
            self.images = images

        def __len__(self):
            return len(self.images)

        def row(self, index):
            return {"image": self.images[index], "kind": object()}

    assert of_rows(Rows(b"1", b"2")) == of_rows(Rows(b"1", b"2")) != of_rows(Rows(b"1", b"3"))


# --- which run a folder holds ----------------------------------------------------------------------------------------


def test_two_runs_never_share_a_folder(here):
    one = saved(config(), 2)
    assert refused(config()) == (
        "run.name=run: runs/run holds a run already; resume=auto goes on with it, --overwrite begins anew, another "
        "run.name keeps both"
    )
    saved(config(), 4)
    assert refused(config(f"resume={one}")).startswith(
        "run.name=run: runs/run holds a run already, up to step-4: going on from step-2 would leave two runs in one "
    )
    other = saved(config("run.name=other"), 2)
    assert f"and resume={other} is another's" in refused(config(f"resume={other}"))
    ready(config("resume=runs/run/checkpoints/step-4"))
    ready(config(f"resume={one}", "run.name=branch"))
    ready(config("run.name=new"))


def test_names_and_places_that_no_file_can_have(here):
    Path("file").write_text("")
    assert refused(config("run.dir=file")) == f"run.dir=file: {here}/file is no folder; name another run.dir"
    assert refused(config("run.dir=file/deeper")).startswith(f"run.dir=file/deeper: {here}/file is no folder")
    long = "d" * 256
    assert refused(config(f"run.dir={long}")).endswith("dddd... has 256 bytes; a name there has at most 255")
    deep = "/".join(["d" * 250] * 16)
    assert "paths of its files have up to " in refused(config(f"run.dir={deep}"))
    umlauts = "ü" * 128
    assert "has 256 bytes" in refused(config(f"run.dir={umlauts}"))
    ready(config(f"run.name={'n' * 200}"))
    assert not Path("runs").exists()


# --- a save that kills -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dead", [True, False])
def test_a_save_that_killed_a_rank_is_told_as_a_death(dead):
    """What fails first is another rank, which waited for the dead one: that is no reason to go on."""

    class Failing:
        async def save(self, step, write):
            raise BackendError("gloo: connection closed by peer")

    class Crew(CheckpointingCrew):
        def __init__(self):
            self._checkpoints = Failing()

        async def roll_call(self):
            if dead:
                raise ProcessDied("rank 1 died")

    with pytest.raises(ProcessDied if dead else BackendError) as caught:
        asyncio.run(Crew().save(2))
    assert isinstance(caught.value, ProcessDied) is dead


# --- groups carried over ---------------------------------------------------------------------------------------------


def test_groups_drawn_under_other_settings_are_drawn_anew(here):
    folder = saved(config(), state={"source": {"next": 9, "holes": [3]}}, carried=([5, 1], [4]))
    checkpoint = read_checkpoint(folder)
    for word in ("train.optimizer.betas=[0.5,0.5]", f"model.path={here}/model", f"data.path={here}/rows.jsonl"):
        assert checkpoint.begun(config(word)) == (checkpoint.state, checkpoint.controllers), word
    for word in (
        "rollout.temperature=0.5",
        "data.system_prompt=Be brief.",
        "reward.timeout=3",
        "model.context_length=99",
    ):
        state, controllers = checkpoint.begun(config(word))
        assert state["source"] == {"next": 9, "holes": [1, 3, 4, 5]}, word
        assert not list(Path(controllers).glob("controller-*.jsonl"))
    assert checkpoint.state["source"]["holes"] == [3]


def test_the_config_of_a_run_that_has_moved(here):
    saved(config("run.name=old"))
    save_config(config("run.name=old"), "runs/old/config.yaml")
    Path("runs/old").rename("runs/new")
    file = Path("runs/new/config.yaml")
    with pytest.raises(ConfigError) as caught:
        ready(load_config(str(file), ["resume=auto"]), file, ["resume=auto"])
    assert str(caught.value) == (
        f"resume=auto: runs/new/config.yaml is of the run in {here}/runs/new, but its run.dir and run.name are those "
        f"of {here}/runs/old; if it has moved, add run.dir={here}/runs run.name=new"
    )
    words = ["resume=auto", f"run.dir={here}/runs", "run.name=new"]
    assert ready(load_config(str(file), words), file, words).path == here / "runs/new"
    words = ["resume=auto", "run.name=newest"]
    ready(load_config(str(file), words), file, words)

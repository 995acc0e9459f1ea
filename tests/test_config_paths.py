"""Where a path starts: at the folder of the file that has it, or where the command is given."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from yatt.config.load import describe, load_config, save_config
from yatt.config.paths import PATHS
from yatt.errors import ConfigError
from yatt.faces.rundir import RunDirectory

NEEDED = {"model": {"path": "m"}, "train": {"steps": 1, "batch_size": 1}}
PATH_WORDS = ("folder", "file", "jsonl", "file.py", "path")
NOT_PATHS = {
    "data.media_key",  # a column, in whose rows paths stand
    "model.dtype", "checkpoint.export", "critic.learning_rate", "log.trackers", "run.name",
}  # fmt: skip


def config(folder: Path, **sections: object) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "c.yaml").write_text(yaml.safe_dump(NEEDED | sections))
    return str(folder / "c.yaml")


EVERY = {
    "run": {"dir": "out"},
    "model": {"path": "m", "reference": "r", "teacher": "../t"},
    "data": {"path": ["a.jsonl", "more/*.jsonl"]},
    "algorithm": {"advantage": "own.py:adv", "loss": "own.py:loss"},
    "critic": {"path": "./c"},
    "rollout": {"filter": "own.py:drop"},
    "reward": {
        "function": "pkg.module:f",
        "functions": {"x": {"function": "r.py:f"}, "y": {"function": "exact_match"}},
        "models": {"j": {"path": "j", "parser": "own.py:parse"}, "k": {"path": "/k", "parser": "verdict:yes=1"}},
    },
    "weights": {"dir": "w"},
    "evaluate": {"path": "e.jsonl"},
    "plan": {"calibration": "cal.json"},
    "resume": "old/step-2",
}


def values(file: str, *words: str) -> list[object]:
    found = load_config(file, list(words))
    reward = found.reward
    return [
        *(found.run.dir, found.model.path, found.model.reference, found.model.teacher, found.data.path),
        *(found.algorithm.advantage, found.algorithm.loss, found.critic.path, found.rollout.filter, reward.function),
        *(one.function for one in reward.functions.values()),
        *(text for judge in reward.models.values() for text in (judge.path, judge.parser)),
        *(found.weights.dir, found.evaluate.path, found.plan.calibration, found.resume),
    ]


def test_every_path_of_a_file_starts_at_its_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config(tmp_path / "at" / "run", **EVERY)
    here, at = [["a.jsonl", "more/*.jsonl"], "at/run/"], "at/run/"
    assert values("at/run/c.yaml") == [
        *(f"{at}out", f"{at}m", f"{at}r", "at/t", [f"{at}{name}" for name in here[0]]),
        *(f"{at}own.py:adv", f"{at}own.py:loss", f"{at}c", f"{at}own.py:drop", "pkg.module:f"),
        *(f"{at}r.py:f", "exact_match"),
        *(f"{at}j", f"{at}own.py:parse", "/k", "verdict:yes=1"),
        *(f"{at}w", f"{at}e.jsonl", f"{at}cal.json", f"{at}old/step-2"),
    ]
    monkeypatch.chdir(tmp_path / "at" / "run")
    assert values("c.yaml")[1:4] == ["m", "r", "../t"]


def test_the_words_start_where_the_command_is_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config(tmp_path / "run")
    words = ["model.path=x", "reward.functions.f.function=r.py:g", "data.path=[a, /b]", "resume=auto"]
    found = load_config("run/c.yaml", words)
    assert (found.model.path, found.reward.functions["f"].function) == ("x", "r.py:g")
    assert (found.data.path, found.resume, found.run.dir) == (["a", "/b"], "auto", "runs")


def test_home_and_variables_are_filled_in(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home-of-me")
    monkeypatch.setenv("DATA", "/data")
    monkeypatch.setenv("NAME", "x")
    monkeypatch.delenv("NOPE", raising=False)
    file = config(tmp_path, data={"path": ["${DATA}/a", "~/b", "$NAME/c", "d$$e"]}, reward={"function": "$DATA/r.py:f"})
    found = load_config(file, ["model.path=~/m", "evaluate.path=$DATA/e"])
    assert found.data.path == ["/data/a", "/home-of-me/b", f"{tmp_path}/x/c", f"{tmp_path}/d$e"]
    assert (found.reward.function, found.model.path, found.evaluate.path) == (
        "/data/r.py:f",
        "/home-of-me/m",
        "/data/e",
    )
    with pytest.raises(ConfigError) as caught:
        load_config(config(tmp_path, data={"path": "${NOPE}/a"}), [])
    assert str(caught.value) == (
        f"{tmp_path}/c.yaml: data.path=${{NOPE}}/a: the environment has no NOPE; export it, or write $$ for a $"
    )


def test_what_is_passed_through_stays(tmp_path):
    rest = {"functions": {"f": {"function": "exact_match", "arguments": {"path": "x", "home": "~", "v": "$X"}}}}
    found = load_config(config(tmp_path, reward=rest), [])
    assert found.reward.functions["f"].arguments == {"path": "x", "home": "~", "v": "$X"}


def test_a_folder_with_the_letters_of_a_pattern(tmp_path, monkeypatch):
    folder = tmp_path / "run[1]"
    file = config(folder, data={"path": ["a.jsonl", "[ab]*.jsonl"]}, model={"path": "m*"})
    (folder / "a.jsonl").write_text('{"prompt": "1"}\n')
    found = load_config(file, [])
    assert found.data.path == [f"{folder}/a.jsonl", f"{tmp_path}/run[[]1]/[ab]*.jsonl"]
    assert found.model.path == f"{folder}/m*"


def test_a_link_is_followed_before_two_dots(tmp_path):
    real, link = tmp_path / "deep" / "real", tmp_path / "link"
    config(real, model={"path": "../m"})
    link.symlink_to(real)
    assert Path(load_config(str(link / "c.yaml"), []).model.path).resolve() == tmp_path / "deep" / "m"
    assert load_config(str(real / "c.yaml"), []).model.path == f"{tmp_path}/deep/m"


def test_a_saved_config_means_the_same_from_anywhere(tmp_path, monkeypatch):
    start = tmp_path / "st$art"
    config(start / "run", **EVERY)
    monkeypatch.chdir(start)
    first = load_config("run/c.yaml", [])
    save_config(first, "saved.yaml")
    monkeypatch.chdir("/")
    again = values(str(start / "saved.yaml"))
    monkeypatch.chdir(start)
    for here, elsewhere in zip(values("run/c.yaml"), again, strict=True):
        for one, other in zip(*(x if isinstance(x, list) else [x] for x in (here, elsewhere)), strict=True):
            assert other == (str(start / one) if one.startswith("run/") or one == "t" else one)
    assert load_config(str(start / "saved.yaml"), []).run.dir == str(start / "run/out")


def test_the_default_folder_of_runs_is_where_the_run_was_started(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config(tmp_path / "run")
    save_config(load_config("run/c.yaml", []), "saved.yaml")
    assert yaml.safe_load(Path("saved.yaml").read_text())["run"]["dir"] == f"{tmp_path}/runs"


def test_what_an_older_run_left_starts_where_the_command_is_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = RunDirectory("runs/old").create()
    run.append_metrics({"step": 1})
    run.config.write_text(yaml.safe_dump(NEEDED | {"run": {"dir": "runs", "name": "old"}}))
    found = load_config("runs/old/config.yaml", [])
    assert (found.model.path, found.run.dir) == ("m", "runs")
    checkpoint = Path("runs/old/checkpoints/step-1")
    checkpoint.mkdir()
    (checkpoint / "complete.json").write_text("{}")
    (checkpoint / "config.yaml").write_text(run.config.read_text())
    assert load_config(str(checkpoint / "config.yaml"), []).model.path == "m"


def test_no_path_is_forgotten():
    """Whatever speaks of a file or folder is in the table, or in the list above."""
    names = {setting.name for setting in describe()}
    assert set(PATHS) - {"environment"} <= names  # short for environment.function
    spoken = {
        s.name for s in describe() if any(w in PATH_WORDS for w in s.description.lower().replace(":", " ").split())
    }
    assert spoken - NOT_PATHS <= set(PATHS)

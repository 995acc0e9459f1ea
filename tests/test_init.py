"""`yatt init` writes a folder that loads, explains every setting, and judges its own data rightly. A few seconds."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from tiny_models import save_tiny

from yatt.config.load import describe, load_config
from yatt.config.rules import check
from yatt.config.schema import Config, ModelConfig, TrainConfig
from yatt.errors import ConfigError
from yatt.faces.init import config_text, init


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def made(model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work") / "my sums"
    init(folder, model=model)
    return folder


def rows(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def reward_module(folder: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("made_reward", folder / "reward.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_folder_loads_and_passes_every_rule(made: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made)
    config = load_config("config.yaml", [])
    assert check(config) == []
    assert config.run.name == "my-sums" and config.model.path == str(Path(model).resolve())
    assert (config.model.context_length, config.rollout.max_tokens) == (512, 256)  # the tiny model has 512 positions


def test_it_can_be_trained_from_where_it_was_made(made: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the README says: the data, the reward and the held-out rows are the folder's."""
    monkeypatch.chdir(made.parent)
    config = load_config("my sums/config.yaml", ["reward.timeout=5"])
    assert check(config) == []
    assert (config.data.path, config.evaluate.path) == ("my sums/data/train.jsonl", "my sums/data/eval.jsonl")
    assert (config.reward.function, config.run.dir) == ("my sums/reward.py:reward", "runs")


def test_what_it_prints_is_what_can_be_run(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["bin/yatt", "init"])
    init(Path("-é sums."), model=model)
    said = capsys.readouterr().out.splitlines()[-1].strip()
    assert said == "bin/yatt train './-é sums./config.yaml'"
    assert f"    {tmp_path}/bin/yatt train config.yaml " in (tmp_path / "-é sums." / "README.md").read_text()
    assert load_config("./-é sums./config.yaml", []).run.name == "sums"


def test_every_setting_is_named_with_its_default(made: Path) -> None:
    text = (made / "config.yaml").read_text()
    for setting in describe():
        key = re.split(r"\.(?!NAME)", setting.name)[-1]
        assert re.search(rf"^\s*(# )?(\S*\.)?{re.escape(key)}: ", text, re.M), setting.name


def test_uncommenting_everything_gives_the_defaults() -> None:
    """A reader may uncomment any line: each is valid where it stands and says the true default."""
    text = config_text({"model.path": "m", "train.steps": 1, "train.batch_size": 2})
    lines = [line for line in text.splitlines()[1:] if "[]." not in line and ".NAME." not in line]
    values = yaml.safe_load("\n".join(re.sub(r"^( *)# ", r"\1", line) for line in lines))
    plain = Config(model=ModelConfig(path="m"), train=TrainConfig(steps=1, batch_size=2)).model_dump(mode="json")
    assert plain["data"].pop("tasks") == [] and plain["reward"].pop("functions") == {}
    assert plain["reward"].pop("models") == {}
    assert Config.model_validate(values) == Config.model_validate(plain)


def test_data_is_what_the_reward_expects(made: Path) -> None:
    train, held_out = rows(made / "data/train.jsonl"), rows(made / "data/eval.jsonl")
    assert (len(train), len(held_out)) == (200, 40)
    assert len({row["prompt"] for row in (*train, *held_out)}) == 240
    reward = reward_module(made).reward
    for row in (*train, *held_out):
        assert reward(f"because ... <answer>{row['answer']}</answer>", row["answer"])["reward"] == 1.0
        assert reward(f"<answer>{int(row['answer']) + 1}</answer>", row["answer"]) == {"reward": 0.0, "formatted": 1.0}
        assert reward(row["answer"], row["answer"]) == {"reward": 0.0, "formatted": 0.0}


def test_answers_are_right(made: Path) -> None:
    """Each question's answer, worked out anew from its numbers and the verb in it."""
    verbs = {"buys": int.__add__, "gave": int.__sub__, "fills": int.__mul__, "shares": int.__floordiv__}
    seen = set()
    for row in rows(made / "data/train.jsonl"):
        first, second = map(int, re.findall(r"\d+", row["prompt"]))
        verb = next(verb for verb in verbs if f" {verb} " in row["prompt"])
        assert int(row["answer"]) == verbs[verb](first, second), row
        seen.add(verb)
    assert seen == set(verbs)


def test_a_folder_with_something_in_it_is_refused_and_left_alone(model: str, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is not an empty folder; name a new one"):
        init(tmp_path, model=model)
    with pytest.raises(ConfigError, match="is not an empty folder"):
        init(tmp_path / "mine.txt", model=model)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_model_that_cannot_be_trained_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--model=.*missing: no such folder"):
        init(tmp_path / "new", model=str(tmp_path / "missing"))
    assert not (tmp_path / "new").exists()

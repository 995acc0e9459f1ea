"""Settings that nobody gave: chosen by the model, the rows and the machine, and all of them together are a run that the
rules let through."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_models import save_tiny

from yatt.cli import _file_of
from yatt.config.load import load_config
from yatt.config.rules import check
from yatt.data.encoders import row_encoder
from yatt.data.prompts import load_tokenizer
from yatt.data.source import open_source
from yatt.errors import ConfigError
from yatt.faces.choose import Choice


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without a GPU, with 16 GB for a slot."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("yatt.faces.choose.local_gpus", lambda: 0)
    monkeypatch.setattr("yatt.faces.choose.slot_memory", lambda gpus, slots: 16e9)


def write(name: str, rows: list[dict[str, Any]]) -> str:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"data.path={name}"


def gsm(count: int = 60, question: str = "What is {n}+{n}?") -> str:
    rows = [{"question": question.format(n=n), "answer": f"Add.\n#### {2 * n}"} for n in range(count)]
    return write("gsm.jsonl", rows)


def chosen(model: str, *words: str) -> dict[str, Any]:
    """What is chosen beneath the words; the whole is checked as a run is."""
    choice = Choice()
    config = load_config(None, [f"model.path={model}", *words], choose=choice)
    assert check(config) == []
    return choice.values


def test_rows_of_gsm8k_need_nothing_else(model: str) -> None:
    """The tiny model has 512 positions: half are the response's."""
    assert chosen(model, gsm(), "reward.function=math_verify") == {
        "run.name": "grpo-1",
        "algorithm.name": "grpo",
        "train.steps": 100,
        "model.dtype": "float32",
        "train.optimizer.learning_rate": 1e-6,
        "data.prompt_key": "question",
        "data.answer_after": "####",
        "model.context_length": 512,
        "rollout.max_tokens": 256,
        "train.batch_size": 8,
        "rollout.n": 8,
        "rollout.filter": "all_equal",
        "train.tokens_per_micro_batch": 8192,
        "checkpoint.every": 20,
    }


def test_every_row_fits_what_was_chosen(model: str) -> None:
    """Prompts of up to some 400 tokens leave the rest of 512 to the response."""
    data = gsm(question="What is " + "1+" * 190 + "{n}?")
    config = load_config(None, [f"model.path={model}", data, "reward.function=math_verify"], choose=Choice())
    assert config.model.context_length == 512 and 50 < config.rollout.max_tokens < 140
    source = open_source(config.data, 0)
    encode = row_encoder(config, load_tokenizer(model), source)
    assert [encode(source.row(row), row, row).answer for row in range(3)] == ["0", "2", "4"]


def test_held_out_rows_fit_too(model: str) -> None:
    held_out = write("held.jsonl", [{"question": "1+" * 190 + "1=", "answer": "#### 191"}])
    values = chosen(model, gsm(), "reward.function=math_verify", held_out.replace("data.", "evaluate."))
    assert values["rollout.max_tokens"] < 140 and values["evaluate.every"] == 10


def test_what_was_given_stays(model: str) -> None:
    words = (
        gsm(),
        "reward.function=math_verify",
        "train.steps=20",
        "rollout.n=4",
        "run.name=mine",
        "rollout.max_tokens=9",
    )
    values = chosen(model, *words, "data.answer_after=##", "train.updates_per_step=3", "algorithm.name=rloo")
    assert not {"train.steps", "rollout.n", "run.name", "rollout.max_tokens", "data.answer_after"} & values.keys()
    assert values["train.batch_size"] == 6  # a multiple of the updates


def test_few_rows_are_a_small_batch(model: str) -> None:
    assert chosen(model, gsm(3), "reward.function=math_verify")["train.batch_size"] == 3


def test_columns_of_an_own_reward_are_left_to_it(model: str) -> None:
    """A built-in compares with an answer; a function of the user's may want the column as metadata."""
    rows = [{"problem": "1+1=", "solution": "2"}] * 9
    Path("own.py").write_text("def judged(response, metadata):\n    return 1.0\n")
    assert "data.answer_key" not in chosen(model, write("a.jsonl", rows), "reward.function=own.py:judged")
    assert chosen(model, "data.path=a.jsonl", "reward.function=exact_match")["data.answer_key"] == "solution"


def test_names_are_nobodys_yet(model: str, tmp_path: Path) -> None:
    (tmp_path / "runs" / "grpo-1").mkdir(parents=True)
    assert chosen(model, gsm(), "reward.function=math_verify")["run.name"] == "grpo-2"
    with pytest.raises(ConfigError, match=r"^resume=auto goes on with a run; say which by run.name, or"):
        chosen(model, gsm(), "reward.function=math_verify", "resume=auto")


def test_other_algorithms(model: str) -> None:
    sft = write("sft.jsonl", [{"question": "1+1=", "output": "x" * 100}] * 40)
    values = chosen(model, sft, "algorithm.name=sft", "cluster.slots=2")
    assert values["data.prompt_key"] == "question" and values["data.response_key"] == "output"
    assert 128 <= values["model.context_length"] <= 256 and values["train.batch_size"] == 8
    assert values["train.optimizer.learning_rate"] == 1e-5 and "rollout.n" not in values
    pairs = write("dpo.jsonl", [{"prompt": "1+1=", "chosen": "2", "rejected": "y" * 80}] * 40)
    values = chosen(model, pairs, "algorithm.name=dpo")
    assert values["train.tokens_per_micro_batch"] >= 2 * values["model.context_length"]
    assert "rollout.filter" not in chosen(model, gsm(), "reward.function=math_verify", "algorithm.name=ppo")


def test_memory_bounds_a_micro_batch(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token's logits and their gradient, of 64 words in float32, are 512 bytes: 2 MB hold a tenth of 20 MB."""
    vocabulary = json.loads((Path(model) / "config.json").read_text())["vocab_size"]
    monkeypatch.setattr("yatt.faces.choose.slot_memory", lambda gpus, slots: 10 * 4096.0 * vocabulary * 8)
    values = Choice()({"model": {"path": model}, "reward": {"function": "math_verify"}, "data": {"path": gsm()[10:]}})
    assert values["train"]["tokens_per_micro_batch"] == 4096


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("model.path=none",), "model.path=none: no such folder; name a Hugging Face model folder"),
        (("data.path=none.jsonl",), "data.path='none.jsonl': no such file or folder"),
        (("algorithm.name=grop",), "algorithm.name='grop' is not one of"),
        (("train.steps=x",), "train.steps='x' is not a whole number >= 1"),
    ],
)
def test_what_cannot_be_chosen_for(model: str, words: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(None, [f"model.path={model}", gsm(), "reward.function=math_verify", *words], choose=Choice())
    assert message in str(error.value)


def test_nothing_but_the_model_is_missing() -> None:
    with pytest.raises(ConfigError) as error:
        load_config(None, [gsm()], choose=Choice())
    assert "model.path is not set and has no default; set model.path=VALUE (text)" in str(error.value).splitlines()


def test_a_config_is_told_from_settings(tmp_path: Path) -> None:
    assert _file_of(["a.yaml", "b=1"]) == ("a.yaml", ["b=1"])
    assert _file_of(["model.path=M", "b=1"]) == (None, ["model.path=M", "b=1"])
    (tmp_path / "a=b.yaml").touch()
    assert _file_of(["a=b.yaml"]) == ("a=b.yaml", [])
    with pytest.raises(ConfigError, match=r"^give a config, or settings such as model.path=DIR data.path=FILE"):
        _file_of(None)


def test_what_was_chosen_is_said(model: str) -> None:
    choice = Choice()
    load_config(None, [f"model.path={model}", gsm(), "reward.function=math_verify"], choose=choice)
    head, *lines = "\n".join(choice.lines()).splitlines()
    assert head.startswith("chosen, by the model, the data and this machine (any can be given; longest prompt about ")
    assert "data.answer_after='####'" in " ".join(lines) and max(map(len, lines)) <= 100
    words = [word for word in " ".join(lines).split() if not word.startswith("data.answer_after")]
    assert load_config(None, [f"model.path={model}", *words]).run.name == "grpo-1"

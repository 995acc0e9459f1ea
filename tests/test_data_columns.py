"""A column that a setting names and no row has is refused before anything starts; one that some rows lack is shown."""

import json

import pytest
import yaml
from tiny_models import save_tiny

from yatt.config.load import load_config, save_config
from yatt.data.check import check_data
from yatt.errors import ConfigError

ROWS = [{"prompt": f"{i}+1=", "answer": str(i + 1), "level": i, "rm": {"ground_truth": str(i + 1)}} for i in range(4)]
HAS = "(it has 'prompt', 'answer', 'level', 'rm.ground_truth')"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def checked(model, tmp_path):
    """Checks rows, held-out rows among them where they are given, under these settings."""

    def run(rows, *words, held=None):
        base = [f"model.path={model}", "train.steps=1", "train.batch_size=1", "model.context_length=120"]
        base += ["rollout.max_tokens=8", f"data.path={tmp_path}/train.jsonl"]
        for name, content in (("train", rows), ("held", held)):
            if content is not None:
                (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
        if held is not None:
            base.append(f"evaluate.path={tmp_path}/held.jsonl")
        run.config = load_config(None, [*base, *words])
        return [line.replace(str(tmp_path), "") for line in check_data(run.config)]

    return run


REFUSED = [
    (
        "data.answer_key=anwser",
        f"data.answer_key=anwser: no column 'anwser' in the training data {HAS}; did you mean answer?",
    ),
    (
        "data.answer_key=rm.ground_trut",
        f"data.answer_key=rm.ground_trut: no column 'rm.ground_trut' in the training data {HAS}; did you mean "
        "rm.ground_truth?",
    ),
    ("data.answer_key=xyz", f"data.answer_key=xyz: no column 'xyz' in the training data {HAS}; did you mean answer?"),
    (
        "data.prompt_key=question",
        f"data.prompt_key=question: no column 'question' in the training data {HAS}; did you ",
    ),
    (
        "data.metadata_keys=[level,lvl]",
        f"data.metadata_keys=lvl: no column 'lvl' in the training data {HAS}; did you mean ",
    ),
    ("data.system_key=sys", f"data.system_key=sys: no column 'sys' in the training data {HAS}; name one of these"),
]


@pytest.mark.parametrize(("word", "said"), REFUSED)
@pytest.mark.parametrize("bad_rows", ["fail", "skip"])
def test_a_column_that_no_row_has(checked, word, said, bad_rows):
    with pytest.raises(ConfigError) as caught:
        checked(ROWS, word, f"data.bad_rows={bad_rows}")
    assert str(caught.value).startswith(said) and "\n" not in str(caught.value) and caught.value.exit_status == 2


def test_columns_of_the_held_out_rows(checked):
    with pytest.raises(
        ConfigError, match=r"^data\.answer_key=level: no column 'level' in the evaluation data \(it has "
    ):
        checked(ROWS, "data.answer_key=level", held=[{"prompt": "1", "answer": "2"}])


@pytest.mark.parametrize(
    ("rows", "words", "said"),
    [
        (
            [{"prompt": "1", "chosen": "2", "rejected": "3", "margn": 1}],
            ["algorithm.name=reward_model", "data.margin_key=margin"],
            "data.margin_key=margin: no column 'margin' in the training data (it has 'prompt', 'chosen', 'rejected', "
            "'margn'); did you mean margn?",
        ),
        (
            [{"prompt": str(i), "response": "2", "label": 1} for i in range(2)],
            ["algorithm.name=kto", "data.label_key=lable"],
            "data.label_key=lable: no column 'lable' in the training data (it has 'prompt', 'response', 'label'); did ",
        ),
        (
            [{"prompt": "1", "response": "2"}],
            ["algorithm.name=sft", "data.response_key=respons"],
            "data.response_key=respons: no column 'respons' in the training data (it has 'prompt', 'response'); did ",
        ),
        (
            [{"prompt": "1", "chosen": "2", "rejected": "3"}],
            ["algorithm.name=dpo", "data.chosen_key=better"],
            "data.chosen_key=better: no column 'better' in the training data (it has 'prompt', 'chosen', 'rejected'); ",
        ),
        (
            [{"prompt": "1", "gold": None}],
            ["data.answer_key=gold"],
            "data.answer_key=gold: this column is empty in every row of the training data; name another",
        ),
    ],
)
def test_columns_of_other_rows(checked, rows, words, said):
    with pytest.raises(ConfigError) as caught:
        checked(rows, *words)
    assert str(caught.value).startswith(said)


def test_columns_that_are_there_are_not_spoken_of(checked):
    assert checked(ROWS, "data.answer_key=rm.ground_truth", "data.metadata_keys=[rm.ground_truth,level]") == []
    assert checked([{"prompt": "1"}, {"prompt": "2"}]) == []


def test_a_default_written_out_by_a_saved_config_refuses_nothing(checked, tmp_path):
    assert checked([{"prompt": "1"}]) == []
    save_config(checked.config, tmp_path / "config.yaml")
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["data"]["answer_key"] == "answer"
    again = load_config(str(tmp_path / "config.yaml"), [])
    assert again.data == checked.config.data and check_data(again) == []


def test_rows_some_of_which_have_no_answer(checked):
    rows = [*ROWS, {"prompt": "1"}, {"prompt": "2", "answer": None}]
    said = (
        "training data: 2 of 6 rows have no answer in column 'answer', the first /train.jsonl:5; their rewards get none"
    )
    assert checked(rows) == [said] == checked(rows, "reward.function=exact_match")


def test_an_answer_in_another_column_is_pointed_at(checked):
    rows = [{"prompt": "1", "reward_model": {"ground_truth": "2"}}]
    assert checked(rows) == [
        "training data: no row has a column 'answer', so rewards get no answer; set "
        "data.answer_key=reward_model.ground_truth if that is it"
    ]


@pytest.mark.parametrize("reward", ["exact_match", "math_verify"])
def test_a_built_in_reward_without_answers(checked, reward):
    with pytest.raises(ConfigError) as caught:
        checked([{"prompt": "1", "solution": "2"}], f"reward.function={reward}")
    assert str(caught.value) == (
        f"reward.function={reward} needs an answer: no column 'answer' in the training data (it has 'prompt', "
        "'solution'); set data.answer_key=solution"
    )
    with pytest.raises(
        ConfigError, match=r"^reward\.functions\.a\.function=exact_match needs an answer: .*in the eval"
    ):
        checked(ROWS, "reward.functions.a.function=exact_match", held=[{"prompt": "1"}])


GSM = [{"question": "1+1", "answer": f"1+1 is <<1+1=2>>2.\n#### {i}"} for i in range(2)]


def test_worked_solutions_for_a_reward_that_compares_whole_answers(checked):
    words = ["data.prompt_key=question", "reward.functions.a.function=exact_match"]
    with pytest.raises(ConfigError) as caught:
        checked(GSM, *words)
    assert str(caught.value) == (
        "reward.functions.a.function=exact_match compares with the whole answer, and column 'answer' of the training "
        "data ends with '#### 0'; set data.answer_after='####'"
    )
    assert checked(GSM, *words, 'data.answer_after="####"') == []
    assert checked(GSM, *words, "reward.functions.a.arguments={extract: number}") == []
    assert checked(GSM, "data.prompt_key=question") == []  # a function of the user's may read all of it


def test_columns_that_other_trainers_read(checked):
    rows = [
        {"prompt": "1", "answer": "2", "tools": [], "images": ["a.png"]},
        {"prompt": "1", "answer": "2", "tools": [{"a": 1}]},
    ]
    assert checked(rows) == ["training data: no prompt is made of 'tools', 'images'; other trainers read such columns"]


def test_accuracies_by_a_dotted_column(checked):
    held = [{"prompt": "1", "answer": "2", "extra": {"source": name}} for name in "ab"]
    assert checked(ROWS, "evaluate.by=extra.source", held=held) == []
    with pytest.raises(
        ConfigError, match=r"^evaluate\.by=extra\.sorce: no held-out row has this column .*did you mean "
    ):
        checked(ROWS, "evaluate.by=extra.sorce", held=held)

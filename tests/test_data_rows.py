"""Rows from files, folders and tasks: read as written, and bad ones named by place."""

import json

import pytest
import reasoning_gym
from datasets import Dataset, DatasetDict

from yatt.config.load import load_config
from yatt.config.schema import DataConfig
from yatt.data.loader import check_rows
from yatt.data.rows import BadRow, FirstRows, JoinedRows, open_files
from yatt.data.source import open_evaluation, open_source
from yatt.errors import ConfigError, DataError

ROWS = [{"prompt": f"{i}+{i}", "answer": 2 * i, "chat": [{"role": "user", "content": "é"}]} for i in range(5)]


def rows(source):
    return [source.row(i) for i in range(len(source))]


def lines(path, content):
    path.write_bytes(b"".join(json.dumps(row).encode() + b"\n" for row in content))
    return str(path)


def test_jsonl(tmp_path):
    source = open_files(lines(tmp_path / "a.jsonl", ROWS), "data.path")
    assert rows(source) == ROWS
    assert source.row(3) == ROWS[3] == source.row(3)
    assert source.origin(3) == f"{tmp_path}/a.jsonl:4"


def test_jsonl_lines_are_counted_as_an_editor_does(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_bytes(
        b'\xef\xbb\xbf{"prompt": "a"}\r\n\n  \n{"prompt": "b"}'
    )  # a byte-order mark, blanks, no last newline
    source = open_files(str(file), "data.path")
    assert rows(source) == [{"prompt": "a"}, {"prompt": "b"}]
    assert [source.origin(i) for i in range(2)] == [f"{file}:1", f"{file}:4"]


def test_bad_lines_are_named_by_file_and_line(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"prompt": "a"}\n{"prompt": \n[1]\n{"prompt": "\xff"}\n')
    source = open_files(str(file), "data.path")
    for index, said in ((1, "not JSON: Expecting value"), (2, "holds a list; each line must be"), (3, "not UTF-8")):
        with pytest.raises(BadRow, match=said):
            source.row(index)
    with pytest.raises(DataError) as caught:
        check_rows(source, lambda row, uid, index: row, "fail")
    assert str(caught.value).startswith(f"3 bad row(s) of 4 looked at: {file}:2: not JSON: Expecting value")
    assert f"; {file}:3: holds a list" in str(caught.value)
    assert caught.value.exit_status == 2


def test_parquet_and_datasets_folders_hold_the_same_rows(tmp_path):
    table = Dataset.from_list(ROWS)
    table.to_parquet(tmp_path / "a.parquet")
    table.save_to_disk(tmp_path / "folder")
    for name in ("a.parquet", "folder"):
        source = open_files(str(tmp_path / name), "data.path")
        assert rows(source) == ROWS
        assert source.origin(0) == f"{tmp_path}/{name}:1"


def test_files_are_joined_in_the_order_named_and_patterns_sorted(tmp_path):
    for name, part in (("b1", ROWS[2:3]), ("b0", ROWS[:2]), ("a", ROWS[3:])):
        lines(tmp_path / f"{name}.jsonl", part)
    source = open_files([f"{tmp_path}/b*.jsonl", f"{tmp_path}/a.jsonl"], "data.path")
    assert isinstance(source, JoinedRows)
    assert rows(source) == ROWS
    assert [source.origin(i).rpartition("/")[2] for i in range(5)] == [
        "b0.jsonl:1",
        "b0.jsonl:2",
        "b1.jsonl:1",
        "a.jsonl:1",
        "a.jsonl:2",
    ]


def test_what_cannot_be_opened(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "torn.parquet").write_bytes(b"PAR1 and no more")
    (tmp_path / "a.txt").write_text("prompt\n")
    (tmp_path / "a.csv").write_text("prompt\n")
    (tmp_path / "plain").mkdir()
    DatasetDict(train=Dataset.from_list(ROWS)).save_to_disk(tmp_path / "splits")
    for name, said in (
        ("empty.jsonl", "holds no rows; it needs at least one"),
        ("torn.parquet", "cannot be read: "),
        ("a.txt", "has no known format; use .jsonl, .json, .csv or .tsv (also with .gz, .zst or .bz2), .parquet or a "),
        ("a.csv", "holds no rows; it needs at least one"),
        ("plain", "cannot be read: it is a folder but none of `datasets`' save_to_disk; name files, such as"),
        ("splits", f"cannot be read: it has several splits; name one of {tmp_path}/splits/train"),
        ("no*.jsonl", ": no such file or folder"),
    ):
        with pytest.raises(DataError) as caught:
            open_files(str(tmp_path / name), "evaluate.path")
        message = str(caught.value)
        assert message.startswith(f"evaluate.path='{tmp_path}/{name}'") and said in message and "\n" not in message


def test_first_rows(tmp_path):
    source = open_files(lines(tmp_path / "a.jsonl", ROWS), "data.path")
    assert rows(FirstRows(source, 2)) == ROWS[:2]
    assert rows(FirstRows(source, 9)) == ROWS


TASKS = [{"name": "chain_sum", "weight": 3, "config": {"max_terms": 2}}, {"name": "leg_counting"}]


def test_tasks_are_rows_their_own_verifier_accepts():
    source = open_source(DataConfig(tasks=TASKS, size=200, prompt_key="q", answer_key="a"), seed=5)
    names = []
    for row in rows(source):
        made = row["reasoning_gym"]
        names.append(made["task"])
        verify = reasoning_gym.get_score_answer_fn(made["task"])
        assert verify(row["a"], made["entry"]) == 1.0 and row["q"] == made["entry"]["question"]
        assert json.loads(json.dumps(made))["entry"]["answer"] == row["a"]
    # Weights 3 : 1 over 200 rows: 150 expected, standard deviation sqrt(200 x 3/4 x 1/4) = 6.1.
    assert 125 <= names.count("chain_sum") <= 175
    assert source.origin(0) == f"{names[0]}:1"


def test_tasks_follow_the_seed_and_evaluation_is_apart():
    def config(seed):
        words = ["model.path=m", "train.steps=1", "train.batch_size=1", "data.tasks=[{name: chain_sum}]"]
        return load_config(None, [*words, "data.size=50", "evaluate.size=50", f"run.seed={seed}"])

    def questions(source):
        return [row["prompt"] for row in rows(source)]

    def training(seed):
        return questions(open_source(config(seed).data, seed))

    assert training(1) == training(1) != training(2)
    assert len(set(training(1)) & set(questions(open_evaluation(config(1))))) < 5


def test_evaluation_rows_of_files(tmp_path):
    words = ["model.path=m", "train.steps=1", "train.batch_size=1", f"data.path={tmp_path}/a.jsonl"]
    assert open_evaluation(load_config(None, words)) is None
    words.append(f"evaluate.path={lines(tmp_path / 'e.jsonl', ROWS)}")
    assert rows(open_evaluation(load_config(None, words))) == ROWS
    assert rows(open_evaluation(load_config(None, [*words, "evaluate.size=3"]))) == ROWS[:3]


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ({"name": "chain_sums"}, "data.tasks: 'chain_sums' is no reasoning-gym task; did you mean 'chain_sum'?"),
        ({"name": "chain_sum", "config": {"min_terms": -1}}, "data.tasks: the config of 'chain_sum' is refused: "),
        ({"name": "chain_sum", "config": {"terms": 1}}, "data.tasks: the config of 'chain_sum' is refused: "),
    ],
)
def test_tasks_that_are_refused(task, said):
    with pytest.raises(ConfigError) as caught:
        open_source(DataConfig(tasks=[task]), 0)
    assert str(caught.value).startswith(said)

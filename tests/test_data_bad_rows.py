"""One bad row never ends a run: whatever a reader, a tokenizer or a template raises names the row and is skipped where
that is asked for; and what UTF-8 cannot hold ends no log."""

import decimal
import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from tiny_models import tiny_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers

from yatt.cluster.samplelog import SampleLog
from yatt.config.schema import DataConfig
from yatt.config.sources import source_of
from yatt.data.demonstrations import DemonstrationEncoder
from yatt.data.loader import Loader, check_rows, good_rows, share_of_rows
from yatt.data.preferences import LabelEncoder, PairEncoder
from yatt.data.prompts import PromptEncoder
from yatt.data.rows import BadRow, open_files
from yatt.errors import ConfigError, DataError
from yatt.faces.rundir import replace_text
from yatt.faces.trajectories import first_and_last
from yatt.reward.mixed import mix
from yatt.types import Completion, Group, Prompt, SampleKey, Score, Trajectory

HALF = "\ud83d"  # of an emoji: no UTF-8 text has it


def strict():
    """Digits, signs and `a` only; any other character is an error."""
    tokenizer = tiny_tokenizer()
    backend = Tokenizer(models.WordLevel({token: i for i, token in enumerate(("<pad>", "<eos>", *"0123456789+=a"))}))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.decoder = tokenizer.backend_tokenizer.decoder
    return type(tokenizer)(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>")


def prompts(tokenizer=None, **data):
    return PromptEncoder(tokenizer or strict(), DataConfig(**data), 40, 8)


def lines(path, *rows):
    path.write_bytes(b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows))
    return open_files(str(path), "data.path")


def deep(levels):
    return b'{"prompt": "1", "x": ' + b"[" * levels + b"]" * levels + b"}"


UNREADABLE = [
    ({"prompt": "1" + HALF}, "holds a lone surrogate ('\\ud83d'), half a character"),
    ({"prompt": "1", "answer": HALF}, "column 'answer' holds a lone surrogate ('\\ud83d')"),
    ({"prompt": "1AB"}, "the tokenizer has no token for 'A' and others"),
    (deep(100_000), "not readable: it is nested deeper than 100 levels"),
    (deep(200), "not readable: it is nested deeper than 100 levels"),
    (b'{"prompt": ' + b"9" * 5000 + b"}", "not JSON: Exceeds the limit"),
    (b'{"prompt": "1\x00"}', "not JSON: Invalid control character"),
    ({"prompt": "1\x00"}, "the tokenizer has no token for '\\x00'"),
    (b"null", "holds a NoneType; each line must be a JSON object"),
    ({"prompt": [{"role": "user", "content": None}]}, "message 1 has no text under 'role' and 'content'"),
]


@pytest.mark.parametrize(("row", "said"), UNREADABLE, ids=range(len(UNREADABLE)))
def test_a_row_that_cannot_be_read_is_named_and_skipped(tmp_path, row, said, caplog):
    source, place = lines(tmp_path / "a.jsonl", {"prompt": "1"}, row), f"{tmp_path}/a.jsonl:2"
    with pytest.raises(DataError) as caught:
        check_rows(source, prompts(), "fail")
    assert str(caught.value).startswith(f"1 bad row(s) of 2 looked at: {place}: {said}")
    assert "\n" not in str(caught.value) and str(caught.value).encode()
    assert check_rows(source, prompts(), "skip").count == 1
    assert [prompt.question for prompt in share_of_rows(source, prompts(), 0, 1, "skip")] == ["1"]
    assert [prompt.question for prompt in good_rows(source, prompts(), 0, 1)] == ["1"]

    def loader(bad_rows):
        return Loader(source, prompts(), seed=0, shuffle=False, index=0, count=1, bad_rows=bad_rows)

    running = loader("skip")
    assert [running.draw().question for _ in range(3)] == ["1", "1", "1"] and running.bad_rows == 2
    assert any(message.startswith(f"skipped bad row 1: {place}: {said}") for message in caplog.messages)
    running = loader("fail")
    running.draw()
    with pytest.raises(DataError, match="1 bad row"):
        running.draw()
    with pytest.raises(BadRow):
        running.again(1)


def test_in_demonstrations_pairs_and_labels_too():
    tokenizer, data = strict(), DataConfig()
    demonstration, pair = DemonstrationEncoder(tokenizer, data, 40), PairEncoder(tokenizer, data, 40)
    for bad, said in ((HALF, "lone surrogate"), ("A", "no token for 'A'")):
        with pytest.raises(BadRow, match=said):
            demonstration({"prompt": "1", "response": bad}, 0, 0)
        for one in ("chosen", "rejected"):
            with pytest.raises(BadRow, match=said):
                pair({"prompt": "1", "chosen": "2", "rejected": "3", one: bad}, 0, 0)

    class Rows(list):
        def row(self, index):
            return self[index]

    rows = Rows({"prompt": str(i), "response": "A" if i == 1 else "2", "label": True} for i in range(3))
    label = LabelEncoder(tokenizer, data, 40, rows)
    both = label(rows[0], 0, 0).sequences  # the next row cannot be used: the one after
    assert [tokenizer.decode(one.tokens) for one in both] == ["02<eos>", "02<eos>"]
    with pytest.raises(BadRow, match="no token for 'A'"):
        label(rows[1], 1, 1)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ raise_exception('not\n so') }}", "not so"),
        ("{{ messages[0].content.nothing.here }}", "has no attribute 'nothing'"),
        ("{{ 1 // 0 }}", "integer division or modulo by zero"),
        ("{{ messages[9:][0]['x'] }}", "list object has no element 0"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "recursion"),
        ("{{ (messages | length) + 'x' }}", "unsupported operand type"),
        ("{% if %}", "Expected an expression"),
    ],
)
def test_whatever_a_template_raises_is_a_bad_row(template, said):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(BadRow, match="the chat template refuses the messages: ") as caught:
        prompts(tokenizer)({"prompt": "1"}, 0, 0)
    assert said in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(BadRow, match="the chat template refuses"):
        DemonstrationEncoder(tokenizer, DataConfig(), 40)({"prompt": "1", "response": "2"}, 0, 0)


def test_whatever_an_encoder_or_a_source_raises_is_a_bad_row_and_wrong_settings_are_not():
    class Source:
        def __len__(self):
            return 3

        def row(self, index):
            if index == 1:
                raise OSError(5, "Input/output error")
            return {"n": index}

        def origin(self, index):
            return f"rows:{index + 1}"

    def encode(row, uid, index):
        return 1 / row["n"]

    bad = check_rows(Source(), encode, "skip")
    assert bad.count == 2
    assert bad.reasons[0].startswith("rows:1: ZeroDivisionError: division by zero (test_data_bad_rows.py, line ")
    assert bad.reasons[1].startswith("rows:2: OSError: [Errno 5] Input/output error")

    def misled(row, uid, index):
        raise ConfigError("a setting")

    with pytest.raises(ConfigError, match="a setting"):
        check_rows(Source(), misled, "skip")


def test_a_file_that_shrinks_while_it_is_read(tmp_path):
    source = lines(tmp_path / "a.jsonl", *({"prompt": str(i)} for i in range(3)))
    with open(tmp_path / "a.jsonl", "r+b") as file:
        file.truncate(len(b'{"prompt": "0"}\n{"pro'))
    assert source.row(0) == {"prompt": "0"}
    for row, said in ((1, "not JSON: "), (2, "is gone: the file has become shorter since it was opened")):
        with pytest.raises(BadRow, match=said):
            source.row(row)


def test_equal_reasons_are_told_once(tmp_path):
    rows = [{"prompt": "A"}] * 8 + [{"prompt": "B"}, {"prompt": "1"}]
    with pytest.raises(DataError) as caught:
        check_rows(lines(tmp_path / "a.jsonl", *rows), prompts(), "fail")
    at = f"{tmp_path}/a.jsonl"
    assert str(caught.value) == (
        f"9 bad row(s) of 10 looked at: {at}:1: the tokenizer has no token for 'A' (also {at}:2, {at}:3, {at}:4, "
        f"{at}:5 and 3 more); {at}:9: the tokenizer has no token for 'B'. Mend them or set data.bad_rows=skip"
    )


# --- the same row, whatever its file ---------------------------------------------------------------------------------

TOLD = (
    "{% if tools is defined and tools %}T{% endif %}{% for m in messages %}{{ m.role }}"
    "{% if 'name' in m %}({{ m.name }}){% endif %}{% if 'tool_calls' in m %}{% for c in m.tool_calls %}"
    "[{{ c.name }} {{ c.arguments | tojson }}]{% endfor %}{% endif %}:{{ m.content }};{% endfor %}"
)
CHATS = [
    {"prompt": [{"role": "user", "content": "1"}], "answer": "1", "level": 3},
    {"prompt": [{"role": "user", "content": "1", "name": "bob"}], "answer": "2", "source": {"id": 1}},
    {
        "prompt": [
            {"role": "user", "content": "2"},
            {"role": "assistant", "tool_calls": [{"name": "add", "arguments": {"a": 1}}]},
            {"role": "tool", "content": "3"},
        ],
        "source": {"set": "x"},
        "tags": ["a", None],
    },
    {
        "prompt": [
            {"role": "user", "content": "2"},
            {"role": "assistant", "content": "so", "tool_calls": [{"name": "neg", "arguments": {"b": [2]}}]},
            {"role": "tool", "content": "3"},
        ]
    },
]


def table(path, rows):
    columns = {name: [row.get(name) for row in rows] for name in dict.fromkeys(name for row in rows for name in row)}
    pyarrow.parquet.write_table(pyarrow.table(columns), path)


def test_a_table_gives_the_prompts_and_the_metadata_of_json_lines(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TOLD
    table(tmp_path / "a.parquet", CHATS)
    encode = PromptEncoder(tokenizer, DataConfig(), 200, 8)
    made = []
    for source in (lines(tmp_path / "a.jsonl", *CHATS), open_files(str(tmp_path / "a.parquet"), "data.path")):
        rows = [encode(source.row(i), i, i) for i in range(len(CHATS))]
        made.append([(p.text, p.tokens.tolist(), p.question, p.answer, p.metadata) for p in rows])
    assert made[0] == made[1]
    texts, metadata = [row[0] for row in made[1]], [row[4] for row in made[1]]
    assert texts[:3] == ["user:1;", "user(bob):1;", 'user:2;assistant[add {"a": 1}]:;tool:3;']
    assert metadata == [{"level": 3}, {"source": {"id": 1}}, {"source": {"set": "x"}, "tags": ["a", None]}, {}]


def test_a_null_column_is_no_column(tmp_path):
    rows = [
        {"prompt": "1", "response": "2"},
        {"messages": [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}]},
    ]
    table(tmp_path / "a.parquet", rows)
    source = open_files(str(tmp_path / "a.parquet"), "data.path")
    encode = DemonstrationEncoder(tiny_tokenizer(), DataConfig(), 40)
    first, second = (encode(source.row(i), i, i) for i in range(2))
    assert first.tokens.tolist() == second.tokens.tolist()


def test_what_a_table_holds_beside_text_reaches_the_reward_as_it_is(tmp_path):
    content = pyarrow.table(
        {"prompt": ["1"], "price": [decimal.Decimal("1.5")], "raw": [b"\xff"], "deep": [[{"a": None, "b": 1}]]}
    )
    pyarrow.parquet.write_table(content, tmp_path / "a.parquet")
    row = open_files(str(tmp_path / "a.parquet"), "data.path").row(0)
    metadata = prompts()(row, 0, 0).metadata
    assert metadata == {"price": decimal.Decimal("1.5"), "raw": b"\xff", "deep": [{"b": 1}]}


# --- logs ------------------------------------------------------------------------------------------------------------


def trajectory(**prompt):
    asked = Prompt(uid=0, text="1", tokens=np.array([1], np.int32), **prompt)
    completion = Completion(
        key=SampleKey(0, 0),
        tokens=np.array([2], np.int32),
        rollout_logprobs=np.zeros(1, np.float32),
        spans=(),
        finish="stop",
    )
    return Trajectory.single_turn(asked, completion, "2")


def test_no_text_of_a_users_ends_a_log(tmp_path):
    one = trajectory(answer=HALF)
    one = one.judged(Score(status="failed", detail=f"no {HALF}", parts={f"{HALF}p": 1.0}))
    (tmp_path / "samples").mkdir()
    log = SampleLog(tmp_path / "samples", 0, 4)
    log.groups(1, [Group(prompt=one.prompt, trajectories=(), failures=(one,))])
    log.evaluation(1, [one])
    (written,) = (json.loads(line) for line in (tmp_path / "samples/step-1.c0.jsonl").read_text("utf-8").splitlines())
    assert (written["answer"], written["detail"], written["parts"]) == (HALF, f"no {HALF}", {f"{HALF}p": 1.0})
    replace_text(tmp_path / "report.html", first_and_last(tmp_path / "samples", "step"))
    assert r"answer: \ud83d" in (tmp_path / "report.html").read_text("utf-8")


def test_a_log_that_cannot_be_written_is_warned_about(tmp_path, caplog):
    SampleLog(tmp_path / "none", 0, 4).evaluation(1, [trajectory()])
    assert "eval-1.c0.jsonl cannot be written: No such file or directory; the run goes on" in caplog.text


def test_what_a_reward_says_is_text():
    told = mix([1.0], [Score(status="failed", detail=f"no {HALF}", parts={HALF: 1.0})])
    assert (told.detail, dict(told.parts)) == (r"no \ud83d", {r"\ud83d": 1.0})
    assert source_of({"set": f"é{HALF}"}, "set") == r"é\ud83d"

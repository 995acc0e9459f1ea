"""CSV, JSON lists and compressed files: the same rows as JSON Lines, each named by its place."""

import bz2
import gzip
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from datasets import Dataset

from yatt.data.loader import check_rows
from yatt.data.rows import BadRow, open_files
from yatt.errors import DataError

ROWS = [{"prompt": "1+1", "answer": "2"}, {"prompt": 'a "b",\nc', "answer": None}, {"prompt": "é", "answer": "4"}]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
LIST = json.dumps(ROWS).encode()
CSV = 'prompt,answer\n1+1,2\n\n"a ""b"",\nc",\né,4\n'.encode()
BOM = b"\xef\xbb\xbf"
WORDS = {"data.jsonl": LINES, "data.json": LIST, "data.csv": CSV}


def rows(source):
    return [source.row(i) for i in range(len(source))]


def opened(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    return open_files(str(tmp_path / name), "data.path")


def places(source):
    return [int(source.origin(i).rpartition(":")[2]) for i in range(len(source))]


FILES = [
    ("a.json", LIST, [1, 2, 3]),
    ("a.json", json.dumps(ROWS, indent=2).encode(), [1, 2, 3]),
    ("a.json", BOM + b"\n" + LIST, [1, 2, 3]),
    ("a.json", json.dumps({"data": ROWS}).encode(), [1, 2, 3]),
    ("a.json", json.dumps({"version": 1, "data": ROWS}, indent=1).encode(), [1, 2, 3]),
    ("a.json", LINES, [1, 2, 3]),
    ("a.json", LINES.splitlines()[0] + b"\n\n" + b"\n".join(LINES.splitlines()[1:]), [1, 3, 4]),
    ("a.jsonl", LIST, [1, 2, 3]),  # the wrong suffix
    ("a.csv", CSV, [2, 4, 6]),
    ("a.csv", BOM + CSV.replace(b"\n", b"\r\n").replace(b",\r\nc", b",\nc"), [2, 4, 6]),
    ("a.csv", CSV.replace(b",", b";").replace(b'"";', b'"",'), [2, 4, 6]),  # as Excel writes it in many countries
    ("a.tsv", CSV.replace(b",", b"\t").replace(b'""\t', b'"",'), [2, 4, 6]),
    ("a.CSV", b"\n" + CSV, [3, 5, 7]),
    (
        "a.csv",
        b",".join([b"", CSV]).replace(b"\n1+1", b"\n0,1+1").replace(b'\n"a', b'\n1,"a').replace(b"\n\xc3", b"\n2,\xc3"),
        [2, 4, 6],
    ),
]


@pytest.mark.parametrize(("name", "content", "numbers"), FILES)
def test_every_format_holds_the_same_rows(tmp_path, name, content, numbers):
    source = opened(tmp_path, name, content)
    assert rows(source) == ROWS and source.row(1) == ROWS[1]
    assert places(source) == numbers and source.origin(0).startswith(f"{tmp_path}/{name}:")


def zstd(content):
    return pa.compress(content, codec="zstd", asbytes=True)


PACKINGS = [(".gz", gzip.compress), (".zst", zstd), (".bz2", bz2.compress)]


@pytest.mark.parametrize(("suffix", "pack"), PACKINGS)
@pytest.mark.parametrize("name", WORDS)
def test_compressed_files(tmp_path, suffix, pack, name):
    source = opened(tmp_path, name + suffix, pack(WORDS[name]))
    assert rows(source) == ROWS
    assert source.origin(0) == f"{tmp_path}/{name}{suffix}:{2 if name == 'data.csv' else 1}"


def test_a_gzip_file_of_several_parts(tmp_path):
    first, *rest = LINES.splitlines(keepends=True)
    assert rows(opened(tmp_path, "a.jsonl.gz", gzip.compress(first) + gzip.compress(b"".join(rest)))) == ROWS


def test_mixed_formats_are_joined(tmp_path):
    for name, content in WORDS.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "data.jsonl.gz").write_bytes(gzip.compress(LINES))
    (tmp_path / "data.none.jsonl").write_bytes(b"")
    Dataset.from_list(ROWS).to_parquet(tmp_path / "data.parquet")
    source = open_files(f"{tmp_path}/data*", "data.path")
    assert rows(source) == ROWS * 5
    assert [source.origin(i).rpartition("/")[2] for i in (0, 3, 6, 9, 12)] == [
        "data.csv:2",
        "data.json:1",
        "data.jsonl:1",
        "data.jsonl.gz:1",
        "data.parquet:1",
    ]


BAD = [
    (b"a,b\n1,2\n3\n4,5\n", 1, "has 1 cells under 2 columns"),
    (b"a,b\n1,2\n3,4,5\n", 1, "has 3 cells under 2 columns"),
    (b'a,b\n1,2\n"3"x,4\n5,6\n', 1, "not CSV: ',' expected after '\"'"),
    (b'a,b\n1,2\n"3,4\n5,6\n', 1, "not CSV: unexpected end of data"),
    (b"a,b\n1,\xff\n3,4\n", 0, "not UTF-8 text"),
]


@pytest.mark.parametrize(("content", "index", "reason"), BAD)
def test_a_bad_line_of_csv_is_one_bad_row(tmp_path, content, index, reason):
    source = opened(tmp_path, "a.csv", content)
    bad = check_rows(source, lambda row, uid, number: row, "skip")
    assert bad.reasons == [f"{source.origin(index)}: {reason}"]
    assert source.row(1 - index) == ({"a": "1", "b": "2"} if index else {"a": "3", "b": "4"})


def test_an_item_that_is_no_object_is_a_bad_row(tmp_path):
    source = opened(tmp_path, "a.json", b'[{"prompt": "1"}, [1]]')
    with pytest.raises(BadRow, match="holds a list; each item must be a JSON object"):
        source.row(1)


REFUSED = [
    ("a.csv", b"", "holds no rows; it needs at least one"),
    ("a.csv", b"prompt,answer\n", "holds no rows; it needs at least one"),
    ("a.csv", b"a,a\n1,2\n", "cannot be read: two of its columns are called 'a'"),
    ("a.csv", "prompt,answer\n1,2\n".encode("utf-16"), "cannot be read: it is UTF-16 text; save it as UTF-8"),
    (
        "a.csv",
        b"prompt\xff,answer\n1,2\n",
        "cannot be read: its first line, the names of the columns, is not UTF-8 text",
    ),
    ("a.json", b"[]", "holds no rows; it needs at least one"),
    ("a.json", b"", "holds no rows; it needs at least one"),
    (
        "a.json",
        b'{\n"prompt": {"0": "1"}\n}',
        "cannot be read: it is one object without a list of objects under 'data', ",
    ),
    ("a.json", b'[{"prompt": "1"},\n', "cannot be read: not JSON: "),
    ("a.jsonl.gz", gzip.compress(LINES)[:-9], "cannot be read: Truncated compressed stream"),
    ("a.jsonl.gz", LINES, "cannot be read: zlib inflate failed"),
    ("a.jsonl.zst", zstd(LINES)[:-3], "cannot be read: "),
    (
        "a.gz",
        gzip.compress(LINES),
        "has no known format; use .jsonl, .json, .csv or .tsv (also with .gz, .zst or .bz2)",
    ),
    ("a.parquet.gz", gzip.compress(LINES), "has no known format; use "),
    ("a.zip", LINES, "has no known format; use "),
]


@pytest.mark.parametrize(
    ("name", "content", "said"), REFUSED, ids=[f"{name} {i}" for i, (name, *_) in enumerate(REFUSED)]
)
def test_files_that_cannot_be_read(tmp_path, name, content, said):
    with pytest.raises(DataError) as caught:
        opened(tmp_path, name, content)
    message = str(caught.value)
    assert message.startswith(f"data.path='{tmp_path}/{name}'") and said in message and "\n" not in message


def test_a_folder_of_files_says_how_to_name_them(tmp_path):
    (tmp_path / "hub" / "data").mkdir(parents=True)
    (tmp_path / "hub" / "infos.json").write_text("{}")
    (tmp_path / "hub" / "data" / "train.parquet").write_bytes(b"")
    with pytest.raises(DataError) as caught:
        open_files(str(tmp_path / "hub"), "data.path")
    assert str(caught.value).endswith(f"name files, such as {tmp_path}/hub/data/*.parquet")


def test_a_folder_that_was_saved_with_a_format_has_all_its_columns(tmp_path):
    table = Dataset.from_list([{"prompt": [{"role": "user", "content": "1"}], "answer": 2, "level": 3}])
    table.set_format("numpy", columns=["answer"])
    table.save_to_disk(tmp_path / "folder")
    (row,) = rows(open_files(str(tmp_path / "folder"), "data.path"))
    assert row == {"prompt": [{"role": "user", "content": "1"}], "answer": 2, "level": 3}
    assert type(row["answer"]) is int


def test_short_floats_keep_their_digits(tmp_path):
    table = pa.table({"answer": pa.array([0.1, None, 1e-7], pa.float32()), "long": pa.array([0.1, 2.0, 3.0])})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    found = rows(open_files(str(tmp_path / "a.parquet"), "data.path"))
    assert (
        [row["answer"] for row in found] == [0.1, None, 1e-7] != [float(np.float32(0.1)), None, float(np.float32(1e-7))]
    )
    assert [row["long"] for row in found] == [0.1, 2.0, 3.0]

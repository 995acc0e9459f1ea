"""Answers as the text that rewards compare with."""

import json
from decimal import Decimal

import numpy as np
import pytest
from tiny_models import tiny_tokenizer

from yatt.config.schema import DataConfig
from yatt.data.answers import answer_text
from yatt.data.prompts import PromptEncoder
from yatt.data.rows import BadRow


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ("0.00001", "0.00001"),
        ("-2.5e-7", "-0.00000025"),
        ("1e22", "1" + "0" * 22),
        ("1e23", "1" + "0" * 23),  # the float itself is 8388608 less
        ("42.0", "42"),
        ("100.0", "100"),
        ("-0.0", "0"),
        ("0", "0"),
        ("0.1", "0.1"),
        ("1.50", "1.5"),
        ("12345678901234567890123", "12345678901234567890123"),
        ("-7", "-7"),
        ("true", "True"),
        ("false", "False"),
        ("null", None),
        ('"042.0"', "042.0"),  # text stays as it is
        ('"1e-5"', "1e-5"),
        ('" a "', " a "),
    ],
)
def test_json_answers(written, text):
    row = {"prompt": "1", "answer": json.loads(written)}
    assert PromptEncoder(tiny_tokenizer(), DataConfig(), 64, 4)(row, 0, 0).answer == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (np.int64(3), "3"),
        (np.float64(3.0), "3"),
        (np.float32(0.1), "0.1"),
        (np.bool_(True), "True"),
        (np.str_("a"), "a"),
        (Decimal("42.00"), "42"),
        (Decimal("0.50"), "0.5"),
        (Decimal("1E+3"), "1000"),
        (Decimal("123456789012345678901234567890.125"), "123456789012345678901234567890.125"),
    ],
)
def test_answers_of_tables(value, text):
    assert answer_text(value, "answer") == text


def test_an_answer_of_more_digits_than_python_prints():
    assert answer_text(10**5000, "answer") == "1" + "0" * 5000


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (float("nan"), "column 'a' holds nan; an answer is text or a finite number; give null for none"),
        (float("-inf"), "column 'a' holds -inf; an answer is text or a finite number"),
        (np.float32("nan"), "column 'a' holds nan; an answer is text or a finite number"),
        (Decimal("NaN"), "column 'a' holds NaN; an answer is text or a finite number"),
        ([1, 2], "column 'a' holds a list; it must be text or a number; name a part of it, as in data.answer_key=a.0"),
        ([], "column 'a' holds a list; it must be text or a number"),
        (
            {"b": 1},
            "column 'a' holds a dict; it must be text or a number; name a part of it, as in data.answer_key=a.b",
        ),
        (b"2", "column 'a' holds a bytes; it must be text or a number"),
    ],
)
def test_answers_that_are_none(value, said):
    with pytest.raises(BadRow) as caught:
        answer_text(value, "a")
    assert str(caught.value).startswith(said)


def test_the_answer_behind_a_mark():
    worked = "2+2 is <<2+2=4>>4. #### no\n#### 1,004 \n"
    assert answer_text(worked, "a", "####") == "1,004"
    assert answer_text("So. The answer is: x", "a", "The answer is:") == "x"
    assert answer_text(None, "a", "####") is None and answer_text(4.0, "a", "####") == "4"
    for text in ("4", "2 ####  "):
        with pytest.raises(BadRow, match=r"column 'a' has nothing behind '####'; see data.answer_after"):
            answer_text(text, "a", "####")

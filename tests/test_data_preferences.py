"""Pairs and labelled responses, token by token, on a tokenizer of one token per character (`<eos>` is 1)."""

import numpy as np
import pytest
from tiny_models import tiny_tokenizer

from yatt.config.load import load_config
from yatt.config.schema import DataConfig
from yatt.data.encoders import held_out_rows, row_encoder
from yatt.data.preferences import TRIES, LabelEncoder, PairEncoder
from yatt.data.rows import BadRow
from yatt.errors import DataError
from yatt.types import SampleKey

TOKENIZER = tiny_tokenizer()
USER, GOOD, BAD = ({"role": r, "content": c} for r, c in (("user", "1+1"), ("assistant", "2"), ("assistant", "33")))


class Rows:
    """A source of these rows; where one is a text, it cannot be read."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def row(self, index):
        if isinstance(self.rows[index], str):
            raise BadRow(self.rows[index])
        return self.rows[index]

    def origin(self, index):
        return f"rows:{index + 1}"


def shown(sample):
    """The two sequences as text, and with a `.` for each token without loss; <eos> as $."""
    texts = [["$" if t == 1 else TOKENIZER.decode([t]) for t in one.tokens.tolist()] for one in sample.sequences]
    masked = [
        [c if m else "." for c, m in zip(text, one.loss_mask, strict=True)]
        for text, one in zip(texts, sample.sequences, strict=True)
    ]
    return tuple("".join(part) for part in (*texts, *masked))


def pair(row, length=60, **data):
    return PairEncoder(TOKENIZER, DataConfig(**data), length)(row, 7, 3)


CHAT = ("user: 1+1\nassistant: 2$", "user: 1+1\nassistant: 33$", "." * 21 + "2$", "." * 21 + "33$")


def test_a_pair_is_the_chosen_sequence_and_then_the_rejected_one():
    sample = pair({"prompt": "1+1", "chosen": "2", "rejected": "33"}, chat_template="never")
    assert shown(sample) == ("1+12$", "1+133$", "...2$", "...33$")
    # Trained are 2 $ and 3 3 $; of the second sequence no token is without its prompt.
    assert (sample.key, sample.trained_tokens) == (SampleKey(7, 0), 5)
    for one, length in zip(sample.sequences, (5, 6), strict=True):
        assert (one.key, len(one.tokens), one.reward, one.rollout_logprobs) == (sample.key, length, 0.0, None)
        assert one.tokens.dtype == np.int32 and one.loss_mask.dtype == bool


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "1+1", "chosen": "2", "rejected": "33"},
        {"prompt": [USER], "chosen": "2", "rejected": "33"},
        {"prompt": "1+1", "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
        {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"prompt": "not looked at", "chosen": [USER, GOOD], "rejected": [USER, BAD]},
    ],
)
def test_every_form_of_a_pair_is_the_same(row):
    assert shown(pair(row)) == CHAT


def test_of_a_pair_of_talks_only_the_last_turns_are_trained():
    sample = pair({"chosen": [USER, GOOD, USER, BAD], "rejected": [USER, GOOD, USER, GOOD]}, 100)
    assert shown(sample)[2:] == ("." * 44 + "33$", "." * 44 + "2$")


def test_other_columns_and_margins():
    row = {"q": "1", "better": "2", "worse": "3", "by": 2}
    keys = {"prompt_key": "q", "chosen_key": "better", "rejected_key": "worse"}
    assert pair(row, **keys).first.reward == 0.0
    assert pair(row, **keys, margin_key="by").first.reward == 2.0
    assert pair({**row, "by": "-0.5"}, **keys, margin_key="by").first.reward == -0.5  # a file of text has no numbers


GOOD_ROW = {"prompt": "1+1", "chosen": "2", "rejected": "33"}


@pytest.mark.parametrize(
    ("changes", "data", "said"),
    [
        ({"rejected": "2"}, {}, "chosen and rejected are the same; there is nothing to prefer"),
        ({"rejected": None}, {}, "no column 'rejected' (it has 'prompt', 'chosen', 'rejected'); see data.rejected_key"),
        ({"chosen": ""}, {}, "the chosen response is empty"),
        ({"chosen": 2}, {}, "column 'chosen' holds a int; it must be text or chat messages"),
        ({"prompt": None}, {}, "no column 'prompt' (it has 'prompt', 'chosen', 'rejected'); see data.prompt_key"),
        (
            {},
            {"chosen_key": "better"},
            "no column 'better' (it has 'prompt', 'chosen', 'rejected'); set data.chosen_key=chosen",
        ),
        ({}, {"margin_key": "m"}, "column 'm' holds None; a margin is a number; see data.margin_key"),
        ({"m": "much"}, {"margin_key": "m"}, "column 'm' holds 'much'; a margin is a number; see data.margin_key"),
        ({"m": True}, {"margin_key": "m"}, "column 'm' holds True; a margin is a number; see data.margin_key"),
        ({"m": "inf"}, {"margin_key": "m"}, "column 'm' holds 'inf'; a margin is a number; see data.margin_key"),
        ({"m": float("nan")}, {"margin_key": "m"}, "column 'm' holds nan; a margin is a number"),
        ({"chosen": [USER, GOOD], "rejected": [USER, GOOD]}, {}, "chosen and rejected are the same; there is nothing"),
        (
            {"chosen": [USER, GOOD], "rejected": [{**USER, "content": "1"}, BAD]},
            {},
            "chosen and rejected differ before their last turn; give both the same prompt",
        ),
        (
            {"chosen": "1", "rejected": [USER, BAD]},
            {},
            "one of chosen and rejected is text and the other chat messages",
        ),
        ({"chosen": [USER], "rejected": [USER, BAD]}, {}, "the messages of 'chosen' do not end with the assistant's"),
        (
            {"prompt": None, "chosen": [GOOD], "rejected": [BAD]},
            {},
            "'chosen' has no prompt before the assistant's turn, and there is no prompt column",
        ),
        (
            {"rejected": "3" * 40},
            {},
            "prompt and rejected response have 62 tokens; the most is model.context_length=60",
        ),
    ],
)
def test_bad_pairs(changes, data, said):
    with pytest.raises(BadRow) as caught:
        pair(GOOD_ROW | changes, **data)
    assert str(caught.value).startswith(said)


def labels(rows, index=0, length=20):
    source = Rows(rows)
    return LabelEncoder(TOKENIZER, DataConfig(chat_template="never"), length, source)(source.row(index), 7, index)


def labelled(prompt, response, label=True):
    return {"prompt": prompt, "response": response, "label": label}


def test_a_labelled_response_goes_with_the_next_rows_response():
    rows = [labelled("1+1", "2"), labelled("4", "5", False), labelled("6", "789")]
    assert shown(labels(rows)) == ("1+12$", "1+15$", "...2$", "...5$")
    assert shown(labels(rows, 1)) == ("45$", "4789$", ".5$", ".789$")
    assert shown(labels(rows, 2)) == ("6789$", "62$", ".789$", ".2$")  # after the last comes the first
    assert [[one.reward for one in labels(rows, i).sequences] for i in range(3)] == [[1.0] * 2, [-1.0] * 2, [1.0] * 2]
    assert (labels(rows).key, labels(rows).trained_tokens) == (SampleKey(7, 0), 4)


def test_rows_that_cannot_serve_as_the_other_one_are_passed_over():
    rows = [
        labelled("1", "2"),
        "torn",
        {"prompt": "x"},
        labelled("1", "3"),
        labelled("4", "5" * 30),
        labelled("6", "7"),
    ]
    assert shown(labels(rows))[1] == "17$"
    with pytest.raises(BadRow) as caught:
        labels([labelled("1", "2"), labelled("1", "3"), labelled("1", "4")])
    assert str(caught.value) == (
        "none of the next 2 rows has a response to go with another prompt: all have the same prompt"
    )
    with pytest.raises(BadRow, match=f"none of the next {TRIES} rows has a response to go with another prompt: torn"):
        labels([labelled("1", "2"), *["torn"] * TRIES, labelled("6", "7")])


@pytest.mark.parametrize(
    ("label", "reward"),
    [
        (True, 1.0),
        (1, 1.0),
        (False, -1.0),
        (0, -1.0),
        (-1, -1.0),
        (1.0, 1.0),
        ("True", 1.0),
        ("false", -1.0),
        ("1", 1.0),
        ("0.0", -1.0),
        (" -1 ", -1.0),
    ],
)
def test_labels(label, reward):
    assert labels([labelled("1", "2", label), labelled("3", "4")]).first.reward == reward


@pytest.mark.parametrize("label", ["good", "", None, 2, [1], {"a": 1}, 0.5, float("nan"), "2"])
def test_bad_labels(label):
    with pytest.raises(BadRow, match=r"column 'label' holds .*; a label is true or false, 1 or 0, or 1 or -1"):
        labels([labelled("1", "2", label), labelled("3", "4")])


def test_one_labelled_row_alone_is_refused():
    with pytest.raises(DataError, match="rows:1 is the only row; a labelled response needs another row's beside it"):
        labels([labelled("1", "2")])


def test_the_algorithm_says_what_rows_become(tmp_path):
    rows = {
        "grpo": '{"prompt": "1"}',
        "sft": '{"prompt": "1", "response": "2"}',
        "reward_model": '{"prompt": "1", "chosen": "2", "rejected": "3"}',
        "kto": '{"prompt": "1", "response": "2", "label": true}\n{"prompt": "3", "response": "4", "label": false}',
    }
    found = {}
    for name, text in rows.items():
        (tmp_path / f"{name}.jsonl").write_text(text + "\n")
        words = ["model.path=m", "train.steps=1", "train.batch_size=1", f"algorithm.name={name}"]
        config = load_config(None, [*words, f"evaluate.path={tmp_path}/{name}.jsonl", "model.context_length=1200"])
        found[name] = held_out_rows(config, TOKENIZER, index=0, count=1)
        assert row_encoder(config, TOKENIZER, Rows([{}, {}])) is not None
    assert [len(made) for made in found.values()] == [1, 1, 1, 2]
    # "user: 1" and a line break, "assistant: ": 19 tokens; the answer and its end two more.
    (asked, *_), (demonstrated, *_), *paired = found.values()
    assert [len(asked.tokens), len(demonstrated.tokens)] == [19, 21]
    assert [[len(one.tokens) for one in made[0].sequences] for made in paired] == [[21, 21]] * 2

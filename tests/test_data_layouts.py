"""The layouts of other trainers, each with the settings that docs/rows.md gives it: what the policy reads, token by
token, on a tokenizer of one token per character (`<eos>` is 1)."""

import json

import numpy as np
import pytest
from tiny_models import tiny_tokenizer

from yatt.config.columns import find_column
from yatt.config.schema import DataConfig
from yatt.data.demonstrations import DemonstrationEncoder
from yatt.data.preferences import LabelEncoder, PairEncoder
from yatt.data.prompts import PromptEncoder
from yatt.data.rows import BadRow

TOKENIZER = tiny_tokenizer()
CONTEXT = 300


def turn(role, content):
    return {"role": role, "content": content}


def said(who, value):
    return {"from": who, "value": value}


ASK, TWO, THREE = turn("user", "1+1"), turn("assistant", "2"), turn("assistant", "3")
HH = "\n\nHuman: 1+1\n\nAssistant:"
FULL = {"data.chat_template": "never"}  # text stands as it is
READ = "user: 1+1\nassistant: "
SYSTEM = "system: add\n" + READ


def data_of(settings):
    return DataConfig(**{name.removeprefix("data."): value for name, value in settings.items()})


def text_of(tokens):
    return "".join("$" if token == 1 else TOKENIZER.decode([token]) for token in tokens)


PROMPTS = {
    "a prompt that is text": ({"prompt": "1+1", "answer": "2"}, {}, READ, "2"),
    "a prompt that is messages": ({"prompt": [ASK], "answer": 2}, {}, READ, "2"),
    "a numpy array of messages": ({"prompt": np.array([ASK]), "answer": np.int64(2)}, {}, READ, "2"),
    "messages": ({"messages": [ASK], "answer": "2"}, {"data.prompt_key": "messages"}, READ, "2"),
    "messages with the answer's turn": ({"messages": [ASK, TWO]}, {"data.prompt_key": "messages"}, READ, None),
    "messages as JSON text": ({"prompt": json.dumps([turn("system", "add"), ASK])}, {}, SYSTEM, None),
    "messages as Python shows them": ({"prompt": str([ASK])}, {}, READ, None),
    "messages of parts": ({"prompt": [turn("user", [{"type": "text", "text": "1+"}, {"text": "1"}])]}, {}, READ, None),
    "input and output": (
        {"input": "1+1", "output": "2"},
        {"data.prompt_key": "input", "data.answer_key": "output"},
        READ,
        "2",
    ),
    "Alpaca": (
        {"instruction": "add", "input": "1+1", "output": "2"},
        {"data.prompt_key": "instruction", "data.answer_key": "output"},
        "user: add\n1+1\nassistant: ",
        "2",
    ),
    "Alpaca without input": ({"instruction": "1+1", "input": ""}, {"data.prompt_key": "instruction"}, READ, None),
    "GSM8K": (
        {"question": "1+1", "answer": "1+1 is <<1+1=2>>2.\n#### 1,002"},
        {"data.prompt_key": "question", "data.answer_after": "####"},
        READ,
        "1,002",
    ),
    "verl": (
        {
            "data_source": "sums",
            "prompt": [turn("system", "add"), ASK],
            "reward_model": {"style": "rule", "ground_truth": "2"},
            "extra_info": {"index": 0},
        },
        {"data.answer_key": "reward_model.ground_truth"},
        SYSTEM,
        "2",
    ),
    "OpenRLHF": ({"context_messages": [ASK], "label": "2"}, {"data.prompt_key": "context_messages"}, READ, None),
    "ShareGPT": (
        {"conversations": [said("system", "add"), said("human", "1+1"), said("gpt", "2")]},
        {"data.prompt_key": "conversations"},
        SYSTEM,
        None,
    ),
    "a system column": ({"prompt": "1+1", "system": "add"}, {}, SYSTEM, None),
    "a system column of another name": ({"prompt": [ASK], "sp": "add"}, {"data.system_key": "sp"}, SYSTEM, None),
    "a system column left out": ({"prompt": "1+1", "system": "add"}, {"data.system_key": None}, READ, None),
    "a system message said twice": ({"prompt": [turn("system", "add"), ASK], "system": "add"}, {}, SYSTEM, None),
    "HH prompt": ({"prompt": HH}, {}, READ, None),
    "HH prompt as it stands": ({"prompt": HH}, FULL, HH, None),
}


@pytest.mark.parametrize("layout", PROMPTS)
def test_prompts(layout):
    row, settings, text, answer = PROMPTS[layout]
    assert len(settings) <= 2
    before = json.dumps(row, default=str)
    prompt = PromptEncoder(TOKENIZER, data_of(settings), CONTEXT, 8)(row, 0, 0)
    assert (prompt.text, prompt.answer) == (text, answer)
    assert prompt.question == (HH if settings is FULL else prompt.text.split("user: ")[1].split("\nassistant: ")[0])
    assert json.dumps(row, default=str) == before, "the row was changed"


DEMONSTRATIONS = {
    "prompt and response": ({"prompt": "1+1", "response": "2"}, {}, READ, "2$"),
    "messages": ({"messages": [ASK, TWO]}, {}, READ, "2$"),
    "messages beside a prompt": ({"prompt": "other", "prompt_id": "7", "messages": [ASK, TWO]}, {}, READ, "2$"),
    "messages beside a null response": ({"messages": [ASK, TWO], "response": None}, {}, READ, "2$"),
    "prompt as messages": ({"prompt": [ASK, TWO]}, {}, READ, "2$"),
    "input and output": (
        {"input": "1+1", "output": "2"},
        {"data.prompt_key": "input", "data.response_key": "output"},
        READ,
        "2$",
    ),
    "Alpaca": (
        {"instruction": "add", "input": "1+1", "output": "2"},
        {"data.prompt_key": "instruction", "data.response_key": "output"},
        "user: add\n1+1\nassistant: ",
        "2$",
    ),
    "Alpaca with system": (
        {"instruction": "1+1", "input": None, "output": "2", "system": "add"},
        {"data.prompt_key": "instruction", "data.response_key": "output"},
        SYSTEM,
        "2$",
    ),
    "GSM8K": (
        {"question": "1+1", "answer": "2\n#### 2"},
        {"data.prompt_key": "question", "data.response_key": "answer"},
        READ,
        "2\n#### 2$",
    ),
    "ShareGPT": ({"conversations": [said("human", "1+1"), said("gpt", "2")]}, {}, READ, "2$"),
    "ShareGPT with system": (
        {"conversations": [said("human", "1+1"), said("gpt", "2")], "system": "add"},
        {},
        SYSTEM,
        "2$",
    ),
    "TRL plain": ({"prompt": "1+1", "completion": "2"}, {"data.response_key": "completion"}, READ, "2$"),
    "TRL conversational": ({"prompt": [ASK], "completion": [TWO]}, {"data.response_key": "completion"}, READ, "2$"),
    "TRL in a file of text": (
        {"prompt": json.dumps([ASK]), "completion": json.dumps([TWO])},
        {"data.response_key": "completion"},
        READ,
        "2$",
    ),
    "HH": ({"chosen": HH + " 2", "rejected": HH + " 3"}, {"data.prompt_key": "chosen"}, READ, "2$"),
    "HH as it stands": ({"chosen": HH + " 2"}, FULL | {"data.prompt_key": "chosen"}, HH, " 2$"),
    "nested": (
        {"extra": {"q": "1+1", "a": "2"}},
        {"data.prompt_key": "extra.q", "data.response_key": "extra.a"},
        READ,
        "2$",
    ),
}


@pytest.mark.parametrize("layout", DEMONSTRATIONS)
def test_demonstrations(layout):
    row, settings, prompt, response = DEMONSTRATIONS[layout]
    assert len(settings) <= 2
    sample = DemonstrationEncoder(TOKENIZER, data_of(settings), CONTEXT)(row, 0, 0)
    assert text_of(sample.tokens[~sample.loss_mask]) == prompt
    assert text_of(sample.tokens[sample.loss_mask]) == response


WHOLE = {"chosen": [ASK, TWO], "rejected": [ASK, THREE]}
PAIRS = {
    "plain": ({"prompt": "1+1", "chosen": "2", "rejected": "3"}, {}, READ),
    "UltraFeedback": ({"prompt": "1+1", "prompt_id": "7", "messages": [ASK, TWO], **WHOLE}, {}, READ),
    "TRL without a prompt": (WHOLE, {}, READ),
    "TRL with a prompt": ({"prompt": [ASK], "chosen": [TWO], "rejected": [THREE]}, {}, READ),
    "whole talks with a system column": ({**WHOLE, "system": "add"}, {}, SYSTEM),
    "Alpaca": (
        {"instruction": "add", "input": "1+1", "chosen": "2", "rejected": "3"},
        {"data.prompt_key": "instruction"},
        "user: add\n1+1\nassistant: ",
    ),
    "ShareGPT": (
        {"conversations": [said("human", "1+1")], "chosen": said("gpt", "2"), "rejected": said("gpt", "3")},
        {},
        READ,
    ),
    "OpenRLHF": ({"question": "1+1", "chosen": "2", "rejected": "3"}, {"data.prompt_key": "question"}, READ),
    "talks as JSON text": ({name: json.dumps(talk) for name, talk in WHOLE.items()}, {}, READ),
    "HH": ({"chosen": HH + " 2", "rejected": HH + " 3"}, {}, READ),
    "HH with a prompt": ({"prompt": HH, "chosen": "2", "rejected": "3"}, {}, READ),
    "nested": (
        {"pair": {"good": "2", "bad": "3"}, "prompt": "1+1"},
        {"data.chosen_key": "pair.good", "data.rejected_key": "pair.bad"},
        READ,
    ),
}


@pytest.mark.parametrize("layout", PAIRS)
def test_pairs(layout):
    row, settings, prompt = PAIRS[layout]
    assert len(settings) <= 2
    sample = PairEncoder(TOKENIZER, data_of(settings), CONTEXT)(row, 0, 0)
    assert text_of(sample.first.tokens) == prompt + "2$"
    assert text_of(sample.second.tokens) == prompt + "3$"


def test_an_hh_pair_without_a_template_stands_as_it_is():
    talk = "\n\nHuman: a\n\nAssistant: b" + HH
    sample = PairEncoder(TOKENIZER, data_of(FULL), CONTEXT)({"chosen": talk + " 2", "rejected": talk + " 3"}, 0, 0)
    assert [text_of(one.tokens) for one in sample.sequences] == [talk + " 2$", talk + " 3$"]
    assert [text_of(one.tokens[one.loss_mask]) for one in sample.sequences] == [" 2$", " 3$"]


def test_turns_after_a_prompt_column_go_on_from_it():
    row = {"prompt": [ASK], "chosen": [TWO, ASK, TWO], "rejected": [TWO, ASK, THREE]}
    sample = PairEncoder(TOKENIZER, DataConfig(), CONTEXT)(row, 0, 0)
    assert text_of(sample.first.tokens) == "user: 1+1\nassistant: 2\nuser: 1+1\nassistant: 2$"


class Rows(list):
    def row(self, index):
        return self[index]

    def origin(self, index):
        return f"rows:{index + 1}"


OTHER = {"prompt": [turn("user", "4")], "completion": [turn("assistant", "5")], "label": False}
LABELS = {
    "plain": ([{"prompt": "1+1", "response": "2", "label": True}, {"prompt": "4", "response": "5", "label": 0}], {}),
    "TRL": ([{"prompt": [ASK], "completion": [TWO], "label": True}, OTHER], {"data.response_key": "completion"}),
    "messages": ([{"messages": [ASK, TWO], "label": 1}, {"messages": [turn("user", "4"), turn("assistant", "5")]}], {}),
    "ShareGPT": (
        [
            {"conversations": [said("human", "1+1"), said("gpt", "2")], "kto_tag": True},
            {"conversations": [said("human", "4"), said("gpt", "5")], "kto_tag": False},
        ],
        {"data.label_key": "kto_tag"},
    ),
    "nested label": (
        [
            {"prompt": "1+1", "response": "2", "meta": {"label": "True"}},
            {"prompt": "4", "response": "5", "meta": {"label": "False"}},
        ],
        {"data.label_key": "meta.label"},
    ),
}


@pytest.mark.parametrize("layout", LABELS)
def test_labels(layout):
    rows, settings = LABELS[layout]
    sample = LabelEncoder(TOKENIZER, data_of(settings), CONTEXT, Rows(rows))(rows[0], 0, 0)
    assert [text_of(one.tokens) for one in sample.sequences] == [READ + "2$", READ + "5$"]
    assert sample.first.reward == sample.second.reward == 1.0


PROPOSED = [
    (
        "prompts",
        {"instruction": "1", "input": "2", "output": "3"},
        "data.prompt_key=instruction data.answer_key=output",
    ),
    ("prompts", {"question": "1", "answer": "2"}, "data.prompt_key=question"),
    ("prompts", {"conversations": []}, "data.prompt_key=conversations"),
    ("prompts", {"q": "1"}, None),
    (
        "prompts",
        {"problem": "1", "reward_model": {"ground_truth": "2"}},
        "data.prompt_key=problem data.answer_key=reward_model.ground_truth",
    ),
    ("demonstrations", {"instruction": "1", "output": "2"}, "data.prompt_key=instruction data.response_key=output"),
    ("demonstrations", {"input": "1", "output": "2"}, "data.prompt_key=input data.response_key=output"),
    ("demonstrations", {"question": "1", "answer": "2"}, "data.prompt_key=question data.response_key=answer"),
    ("demonstrations", {"prompt": "1", "completion": "2"}, "data.response_key=completion"),
    ("demonstrations", {"promt": "1", "response": "2"}, "data.prompt_key=promt"),
    ("pairs", {"question": "1", "chosen": "2", "rejected": "3"}, "data.prompt_key=question"),
    ("pairs", {"prompt": "1", "better": "2", "worse": "3"}, "data.chosen_key=better data.rejected_key=worse"),
]


@pytest.mark.parametrize(("kind", "row", "settings"), PROPOSED)
def test_an_error_says_which_settings_would_do(kind, row, settings):
    makers = {
        "prompts": lambda t, d, n: PromptEncoder(t, d, n, 8),
        "demonstrations": DemonstrationEncoder,
        "pairs": PairEncoder,
    }
    with pytest.raises(BadRow) as caught:
        makers[kind](TOKENIZER, DataConfig(), CONTEXT)(row, 0, 0)
    start, _, advice = str(caught.value).partition("; ")
    assert start.startswith("no column ") and all(repr(name) in start for name in row)
    assert advice == ("see data.prompt_key" if settings is None else f"set {settings}")
    if settings is not None and kind != "prompts":
        words = dict(word.split("=") for word in settings.split())
        assert makers[kind](TOKENIZER, data_of(words), CONTEXT)(row, 0, 0) is not None


BAD = [
    (
        {"prompt": '[{"role": "user", "content": "1'},
        {},
        "column 'prompt' looks like chat messages as text, but is not JSON",
    ),
    (
        {"prompt": [said("alien", "1")]},
        {},
        "column 'prompt' has a turn from 'alien'; it must be one of human, user, gpt",
    ),
    ({"prompt": [said("human", None)]}, {}, "message 1 has no text under 'role' and 'content'"),
    ({"prompt": [ASK, TWO]}, {}, "the last message is the assistant's; a prompt ends with what it responds to"),
    (
        {"prompt": [turn("system", "mul"), ASK], "system": "add"},
        {},
        "column 'system' is another system message than the one the chat begins with; set data.system_key=null to ",
    ),
    ({"prompt": "1", "system": "add"}, FULL, "column 'system' holds a system message, but no chat template is in use"),
    ({"prompt": 3}, {}, "the prompt is int 3; it must be text or chat messages"),
]


@pytest.mark.parametrize(("row", "settings", "reason"), BAD)
def test_rows_of_no_layout(row, settings, reason):
    with pytest.raises(BadRow) as caught:
        PromptEncoder(TOKENIZER, data_of(settings), CONTEXT, 8)(row, 0, 0)
    assert str(caught.value).startswith(reason)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (
            {"prompt": [ASK], "response": [TWO, ASK, TWO]},
            "column 'response' holds 3 messages; give the assistant's one",
        ),
        ({"prompt": [ASK], "response": [ASK]}, "column 'response' holds 1 messages; give the assistant's one"),
        ({"prompt": "1", "response": {"text": "2"}}, "column 'response' holds a dict; it must be text"),
    ],
)
def test_responses_that_are_none(row, reason):
    with pytest.raises(BadRow) as caught:
        DemonstrationEncoder(TOKENIZER, DataConfig(), CONTEXT)(row, 0, 0)
    assert str(caught.value).startswith(reason)


@pytest.mark.parametrize(
    ("chosen", "rejected", "reason"),
    [
        (HH + " 2", "\n\nHuman: 2\n\nAssistant: 3", "chosen and rejected differ before their last turn"),
        (HH + " 2\n\nHuman: x", HH + " 3\n\nHuman: x", "the text does not end with the assistant's turn"),
    ],
)
def test_hh_pairs_that_are_none(chosen, rejected, reason):
    row = {"chosen": chosen, "rejected": rejected}
    with pytest.raises(BadRow) as caught:
        PairEncoder(TOKENIZER, data_of(FULL), CONTEXT)(row, 0, 0)
    assert str(caught.value).startswith(reason)
    with pytest.raises(BadRow):
        PairEncoder(TOKENIZER, DataConfig(), CONTEXT)(row, 0, 0)


def test_a_text_that_only_mentions_speakers_is_text():
    for text in ("Human: 1", "Say Assistant: 1", "1\n\nHuman: 2\n\nAssistant: 3", "[1, 2]", '[{"a": 1}]'):
        prompt = PromptEncoder(TOKENIZER, DataConfig(), CONTEXT, 8)({"prompt": text}, 0, 0)
        assert prompt.text == f"user: {text}\nassistant: "


@pytest.mark.parametrize(
    ("row", "name", "value"),
    [
        ({"a": 1}, "a", 1),
        ({"a": {"b": {"c": 1}}}, "a.b.c", 1),
        ({"a.b": 1, "a": {"b": 2}}, "a.b", 1),  # the column's own name first
        ({"a.b": {"c": 1}}, "a.b.c", 1),
        ({"a": {"b.c": 1}}, "a.b.c", 1),
        ({"a": [5, {"b": 6}]}, "a.1.b", 6),
        ({"a": [5]}, "a.1", "none"),
        ({"a": '{"b": 1}'}, "a.b", 1),
        ({"a": "{torn"}, "a.b", "none"),
        ({"a": None}, "a.b", "none"),
        ({"a": None}, "a", None),
        ({"a": "text"}, "a.0", "none"),
        ({}, "a", "none"),
        ({}, ".", "none"),
    ],
)
def test_dotted_names(row, name, value):
    assert find_column(row, name, "none") == value


def test_metadata_by_dotted_names_and_all_of_it():
    row = {"prompt": "1", "extra": {"level": 3, "by": "x"}, "a.b": 4}
    encode = lambda **data: PromptEncoder(TOKENIZER, DataConfig(**data), CONTEXT, 8)(row, 0, 0).metadata  # noqa: E731
    assert encode(metadata_keys=["extra.level", "a.b"]) == {"extra.level": 3, "a.b": 4}
    assert encode() == {"extra": {"level": 3, "by": "x"}, "a.b": 4}
    assert encode(answer_key="extra.level") == encode()

"""Templates, lengths and masks, checked by hand on a tokenizer of one token per character (`<eos>` is 1, `<bos>` 2)."""

import json

import numpy as np
import pytest
from tiny_models import save_tiny, tiny_tokenizer
from tokenizers.processors import TemplateProcessing

from yatt.config.load import load_config
from yatt.config.schema import DataConfig
from yatt.data.check import check_data
from yatt.data.encoders import held_out_rows
from yatt.data.prompts import PromptEncoder, load_tokenizer
from yatt.data.rows import BadRow
from yatt.errors import ConfigError, DataError

CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}, {"role": "user", "content": "1+1"}]


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def plain():
    """Without a template; text begins with <bos>."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    return tokenizer


def encode(tokenizer, row, context=100, most=50, **data):
    return PromptEncoder(tokenizer, DataConfig(**data), context, most)(row, 7, 3)


def ids(tokenizer, text):
    return [tokenizer.convert_tokens_to_ids(character) for character in text]


def test_text_goes_through_the_template(tokenizer):
    prompt = encode(tokenizer, {"prompt": "1+1", "answer": "2"})
    assert prompt.text == "user: 1+1\nassistant: " and prompt.question == "1+1"
    assert prompt.tokens.tolist() == ids(tokenizer, prompt.text) and prompt.tokens.dtype == np.int32
    assert (prompt.uid, prompt.answer, prompt.metadata, prompt.media) == (7, "2", {}, ())


def test_messages_go_through_the_template(tokenizer):
    prompt = encode(tokenizer, {"prompt": CHAT})
    assert prompt.text == "user: hi\nassistant: yo\nuser: 1+1\nassistant: "
    assert prompt.question == "user: hi\n\nassistant: yo\n\nuser: 1+1"


def test_the_system_prompt_opens_chats_that_have_none(tokenizer):
    assert encode(tokenizer, {"prompt": "1"}, system_prompt="add").text == "system: add\nuser: 1\nassistant: "
    own = [{"role": "system", "content": "mul"}, {"role": "user", "content": "1"}]
    prompt = encode(tokenizer, {"prompt": own}, system_prompt="add")
    assert prompt.text == "system: mul\nuser: 1\nassistant: " and prompt.question == "1"


def test_text_without_a_template_stands_as_it_is(tokenizer, plain):
    assert encode(tokenizer, {"prompt": "1+1"}, chat_template="never").tokens.tolist() == ids(tokenizer, "1+1")
    prompt = encode(plain, {"prompt": "1+1"})
    assert prompt.text == "1+1"
    assert prompt.tokens.tolist() == [2, *ids(plain, "1+1")]  # the tokenizer's own <bos>


def test_a_system_prompt_without_a_template_is_refused(tokenizer, plain):
    with pytest.raises(ConfigError, match="would go unused, for the tokenizer has no chat template; unset it"):
        encode(plain, {"prompt": "1"}, system_prompt="add")
    with pytest.raises(ConfigError, match=r"would go unused, for data\.chat_template=never; unset it"):
        encode(tokenizer, {"prompt": "1"}, system_prompt="add", chat_template="never")


def test_answers_and_metadata(tokenizer):
    row = {"prompt": "1", "answer": 2, "level": 3, "tags": ["a"]}
    assert encode(tokenizer, row).answer == "2"
    assert encode(tokenizer, row).metadata == {"level": 3, "tags": ["a"]}
    assert encode(tokenizer, row, metadata_keys=["level"]).metadata == {"level": 3}
    assert encode(tokenizer, row, answer_key="level").metadata == {"answer": 2, "tags": ["a"]}
    assert encode(tokenizer, {"prompt": "1"}).answer is None


BAD = [
    ({"text": "1"}, {}, "no column 'prompt' (it has 'text'); set data.prompt_key=text"),
    ({"prompt": ""}, {}, "the prompt is empty"),
    ({"prompt": 3}, {}, "the prompt is int 3; it must be text or chat messages"),
    ({"prompt": None}, {}, "the prompt is NoneType None; it must be text or chat messages"),
    ({"prompt": []}, {}, "the prompt is list []; it must be text or chat messages"),
    ({"prompt": ["a"]}, {}, "message 1 has no text under 'role' and 'content'"),
    ({"prompt": [CHAT[0], {"role": "user"}]}, {}, "message 2 has no text under 'role' and 'content'"),
    ({"prompt": CHAT[:2]}, {}, "the last message is the assistant's; a prompt ends with what it responds to"),
    ({"prompt": CHAT}, {"chat_template": "never"}, "the prompt is chat messages, but no chat template is in use"),
    ({"prompt": "1", "answer": [1]}, {}, "column 'answer' holds a list; it must be text or a number"),
    ({"prompt": "1"}, {"metadata_keys": ["x"]}, "no column 'x' (it has 'prompt'); see data.metadata_keys"),
]


@pytest.mark.parametrize(("row", "data", "said"), BAD)
def test_bad_prompts(tokenizer, row, data, said):
    with pytest.raises(BadRow) as caught:
        encode(tokenizer, row, **data)
    assert str(caught.value).startswith(said)


def test_a_template_that_refuses_is_a_bad_row():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('no system role') }}"
    with pytest.raises(BadRow, match="the chat template refuses the messages: no system role"):
        encode(tokenizer, {"prompt": "1"})


def test_prompts_that_are_too_long(tokenizer):
    # "user: " is 6 tokens, "\n" 1 and "assistant: " 11: 18 around the text.
    assert len(encode(tokenizer, {"prompt": "1" * 32}, context=100, most=50).tokens) == 50
    with pytest.raises(BadRow) as caught:
        encode(tokenizer, {"prompt": "1" * 33}, context=100, most=50)
    assert str(caught.value) == (
        "the prompt has 51 tokens; the most is 50 (model.context_length=100 less 50 for the response)"
    )
    with pytest.raises(BadRow, match=r"the prompt has 21 tokens; the most is 20 \(data.max_prompt_tokens\)"):
        encode(tokenizer, {"prompt": "111"}, max_prompt_tokens=20)


def test_tokenizers_that_cannot_be_used(tmp_path):
    with pytest.raises(ConfigError, match="its tokenizer cannot be loaded: ") as caught:
        load_tokenizer(str(tmp_path))
    assert "\n" not in str(caught.value) and caught.value.exit_status == 2
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"the tokenizer has no eos_token; name one in tokenizer_config.json"):
        load_tokenizer(str(tmp_path))


def test_data_is_checked_before_a_start(tmp_path):
    model = save_tiny(tmp_path / "model")
    good, bad = [{"prompt": str(i)} for i in range(5)], [{"prompt": "9" * 50}, {}]
    for name, content in (("train", good + bad), ("held", good)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    words = [f"model.path={model}", "train.steps=1", "train.batch_size=1", "model.context_length=40"]
    words += ["rollout.max_tokens=8", f"data.path={tmp_path}/train.jsonl", f"evaluate.path={tmp_path}/held.jsonl"]
    with pytest.raises(DataError) as caught:
        check_data(load_config(None, words))
    reasons = (
        f"{tmp_path}/train.jsonl:6: the prompt has 68 tokens; the most is 32 (model.context_length=40 less 8 for the "
        f"response); {tmp_path}/train.jsonl:7: no column 'prompt' (it has none); see data.prompt_key"
    )
    assert str(caught.value) == f"2 bad row(s) of 7 looked at: {reasons}. Mend them or set data.bad_rows=skip"
    config = load_config(None, [*words, "data.bad_rows=skip"])
    assert check_data(config) == [f"training data: 2 bad row(s) will be skipped, the first: {reasons}"]
    assert [p.uid for p in held_out_rows(config, load_tokenizer(model), index=1, count=2)] == [1, 3]

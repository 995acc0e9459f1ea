"""What is imitated, token by token, on a tokenizer of one token per character (`<eos>` is 1, `<bos>` 2)."""

import numpy as np
import pytest
from tiny_models import tiny_tokenizer
from tokenizers.processors import TemplateProcessing

from yatt.config.schema import DataConfig
from yatt.data.demonstrations import DemonstrationEncoder
from yatt.data.prompts import PromptEncoder
from yatt.data.rows import BadRow
from yatt.errors import ConfigError
from yatt.types import SampleKey

CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}, {"role": "user", "content": "1+1"}]
TALK = [*CHAT, {"role": "assistant", "content": "2"}]
# A turn ends with a token of its own, here <pad>, as in many real templates; the last line is the generation prompt.
ENDED = (
    "{% for m in messages %}{{ m['role'][0] }}:{{ m['content'] }}<pad>\n{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)
MARKED = (
    "{% for m in messages %}{{ m['role'][0] }}:{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] }}<pad>{% endgeneration %}{% else %}{{ m['content'] }}<pad>{% endif %}"
    "{{ '\n' }}{% endfor %}{% if add_generation_prompt %}a:{% endif %}"
)


def tokenizer_of(template):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template or tokenizer.chat_template
    return tokenizer


def trained(tokenizer, messages, **data):
    """The whole as text, and the same with a `.` for each token without loss; <pad> and <eos> as # and $."""
    sample = DemonstrationEncoder(tokenizer, DataConfig(**data), 200)({"messages": messages}, 7, 3)
    text = ["#$"[t] if t < 2 else tokenizer.decode([t]) for t in sample.tokens.tolist()]
    return "".join(text), "".join(c if m else "." for c, m in zip(text, sample.loss_mask, strict=True))


def test_a_response_and_its_end_are_trained_and_nothing_else():
    plain = tiny_tokenizer()
    plain.chat_template = None
    plain.backend_tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    sample = DemonstrationEncoder(plain, DataConfig(), 10)({"prompt": "1+1=", "response": "<2>"}, 7, 3)
    # <bos> 1 + 1 = | < 2 > <eos>
    assert sample.tokens.tolist() == [2, *(plain.convert_tokens_to_ids(c) for c in "1+1=<2>"), 1]
    assert sample.loss_mask.tolist() == [False] * 5 + [True] * 4
    assert (sample.key, sample.trained_tokens, sample.advantage) == (SampleKey(7, 0), 4, 1.0)
    assert sample.tokens.dtype == np.int32 and sample.rollout_logprobs is None


def test_an_end_already_there_is_not_doubled():
    tokenizer = tiny_tokenizer()
    sample = DemonstrationEncoder(tokenizer, DataConfig(chat_template="never"), 10)(
        {"prompt": "1", "response": "2<eos>"}, 0, 0
    )
    assert sample.tokens.tolist() == [*(tokenizer.convert_tokens_to_ids(c) for c in "12"), 1]


@pytest.mark.parametrize("key", ["prompt", "messages"])
def test_a_talk_has_the_tokens_of_its_prompt_and_its_last_answer(key):
    tokenizer = tiny_tokenizer()
    sample = DemonstrationEncoder(tokenizer, DataConfig(), 60)({key: TALK}, 7, 3)
    head = PromptEncoder(tokenizer, DataConfig(), 60, 1).encode(CHAT)[1]
    assert sample.tokens.tolist() == [*head.tolist(), tokenizer.convert_tokens_to_ids("2"), 1]


def test_every_turn_of_the_assistants_is_trained():
    # A turn's end is trained where an engine stops at it: not at a line break, and then the last turn ends with <eos>.
    assert trained(tokenizer_of(None), TALK) == (
        "user: hi\nassistant: yo\nuser: 1+1\nassistant: 2$",
        "." * 20 + "yo" + "." * 22 + "2$",  # "user: hi", a line break and "assistant: " are 8 + 1 + 11
    )
    expected = ("u:hi#\na:yo#\nu:1+1#\na:2#", "." * 8 + "yo#" + "." * 10 + "2#")
    assert trained(tokenizer_of(ENDED), TALK) == trained(tokenizer_of(MARKED), TALK) == expected


def test_a_system_prompt_moves_the_turns():
    for template in (ENDED, MARKED):
        assert trained(tokenizer_of(template), TALK, system_prompt="be") == (
            "s:be#\nu:hi#\na:yo#\nu:1+1#\na:2#",
            "." * 14 + "yo#" + "." * 10 + "2#",
        )


def test_turns_are_found_whatever_their_text():
    turn = lambda role, content: {"role": role, "content": content}  # noqa: E731
    talk = [turn("user", "yo"), turn("assistant", "yo "), turn("user", "yo"), turn("assistant", ""), *TALK[2:]]
    assert trained(tokenizer_of(ENDED), talk) == (
        "u:yo#\na:yo #\nu:yo#\na:#\nu:1+1#\na:2#",
        "." * 8 + "yo #" + "." * 9 + "#" + "." * 10 + "2#",
    )
    cut = ENDED.replace("m['content']", "m['content'] | trim")  # as some templates do, and some add a blank
    assert trained(tokenizer_of(cut.replace(":{{", ": {{")), talk[:3] + TALK[3:]) == (
        "u: yo#\na: yo#\nu: yo#\na: 2#",
        "." * 9 + " yo#" + "." * 10 + " 2#",
    )


def test_a_prompt_with_a_response_of_its_own_is_no_talk():
    tokenizer = tokenizer_of(ENDED)
    sample = DemonstrationEncoder(tokenizer, DataConfig(), 60)({"prompt": CHAT, "response": "2"}, 0, 0)
    assert sample.trained_tokens == 2  # 2 and <eos>; "yo" is part of what was given


def test_a_template_without_an_assistant_mask_is_a_mistake_of_the_settings():
    quoted = tokenizer_of(ENDED.replace("m['content']", "'>' ~ m['content']"))
    assert trained(quoted, [TALK[2], TALK[3]])[1] == "." * 10 + "2#"  # one answer needs no mask
    with pytest.raises(ConfigError) as caught:
        trained(quoted, TALK)
    assert str(caught.value) == (
        "model.path=: its chat template has no assistant mask (message 2 does not stand as it is after what comes "
        "before it); put {% generation %} and {% endgeneration %} around the assistant's turns in it, or give talks of "
        "one answer"
    )


def test_one_talk_whose_turns_cannot_be_found_is_a_bad_row():
    # Talks of over four messages begin with their first answer, which shorter ones do not.
    odd = "{% if messages | length > 4 %}{{ messages[1]['content'] }}{% endif %}" + ENDED
    with pytest.raises(BadRow, match="the assistant's turns cannot be told from the rest: message 2 does not stand"):
        trained(tokenizer_of(odd), [*CHAT[:2], *CHAT[:2], *TALK[2:]])


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "1"}, "no column 'response' (it has 'prompt'); see data.response_key"),
        ({"prompt": "1", "response": ""}, "the response is empty"),
        ({"prompt": "1", "response": 2}, "column 'response' holds a int; it must be text"),
        ({"messages": CHAT}, "the messages do not end with the assistant's turn; there is nothing to imitate"),
        (
            {"prompt": "1", "response": "2" * 12},
            "prompt and response have 32 tokens; the most is model.context_length=30",
        ),
    ],
)
def test_bad_demonstrations(row, said):
    with pytest.raises(BadRow) as caught:
        DemonstrationEncoder(tiny_tokenizer(), DataConfig(), 30)(row, 0, 0)
    assert str(caught.value).startswith(said)

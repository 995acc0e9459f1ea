"""Token truth: what was sampled stays as it is, and what is added reads as the chat template writes it."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import numpy as np
import pytest

from tests.environments.templates import ENDS, TEMPLATES, WITH_TOOLS, tokenizer
from yatt.data.turns import ResponseText
from yatt.environments.calls import FORMATS, call_format
from yatt.environments.chat import Chat
from yatt.errors import BadRow, ConfigError

ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add two numbers.",
        "parameters": {"type": "object", "properties": {"a": {"type": "number"}, "b": {"type": "number"}}},
    },
}
WORDS = ["the", " then", " 12", "\n\n", " in", "{", "}", " er", "ß", "日本", "\t", " 1", '"', "x" * 9]


def text(rng: random.Random) -> str:
    return "".join(rng.choice(WORDS) for _ in range(rng.randrange(1, 9))).strip() or "so"


def as_sampled(made: Any, said: str, rng: random.Random, end: str | None) -> np.ndarray:
    """Tokens of a text in pieces, as a policy may sample it: other tokens than the tokenizer's, now and then."""
    ids: list[int] = []
    for piece in re.split(r"(<[^<>]+>|\[[A-Z_]+\])", said):
        cut = 0 if piece[:1] in ("<", "[") else rng.randrange(len(piece) + 1)
        for part in (piece[:cut], piece[cut:]):
            ids += made(part, add_special_tokens=False)["input_ids"]
    if end is not None:
        ids.append(made.convert_tokens_to_ids(end))
    return np.array(ids, dtype=np.int32)


def call_text(name: str, a: int, b: int) -> str:
    body = json.dumps({"name": "add", "arguments": {"a": a, "b": b}})
    return {
        "llama3": json.dumps({"name": "add", "parameters": {"a": a, "b": b}}),
        "mistral": f"[TOOL_CALLS] [{body}]",
        "glm": f"<tool_call>add\n<arg_key>a</arg_key>\n<arg_value>{a}</arg_value>\n<arg_key>b</arg_key>\n"
        f"<arg_value>{b}</arg_value>\n</tool_call>",
    }.get(name, f"<tool_call>\n{body}\n</tool_call>")


def ending(name: str, calls: bool, rng: random.Random) -> str | None:
    """The token that ends a turn, or None where it was cut off. GLM's is the mark of who speaks next."""
    if name == "glm":
        return "<|observation|>" if calls else "<|user|>"
    return rng.choice([ENDS.get(name, "<|im_end|>")] * 2 + [None])


def squeezed(said: str) -> str:
    return "".join(said.split())


def decoded(made: Any, tokens: np.ndarray) -> str:
    return str(made.decode(tokens.tolist(), skip_special_tokens=False, clean_up_tokenization_spaces=False))


@pytest.mark.parametrize("name", TEMPLATES)
def test_what_is_added_reads_as_the_template_writes_it_and_what_was_sampled_stays(name: str) -> None:
    made = tokenizer(name)
    chat = Chat(made)
    for seed in range(60):
        rng = random.Random(f"{name}/{seed}")
        messages: list[dict[str, Any]] = [{"role": "user", "content": text(rng)}]
        tools = [ADD] if name in WITH_TOOLS and rng.random() < 0.6 else []
        whole = chat.opening(messages, tools)
        assert decoded(made, whole) == made.apply_chat_template(
            messages, tools=tools or None, tokenize=False, add_generation_prompt=True
        )
        sampled: list[np.ndarray] = []
        for _ in range(4):
            calls = bool(tools) and rng.random() < 0.6
            said = call_text(name, rng.randrange(99), rng.randrange(99)) if calls else text(rng)
            if name == "qwen3" and calls and rng.random() < 0.5:
                said = f"<think>\n{text(rng)}\n</think>\n\n{said}"
            if name == "harmony":
                said = f"<|channel|>final<|message|>{said}"
            turn = as_sampled(made, said, rng, ending(name, calls, rng))
            answer = chat.answer(turn, tools)
            assert answer.text == ResponseText(made)(turn)
            assert (len(answer.calls), answer.mistakes) == (int(calls), ())
            added = (
                [{"role": "tool", "name": "add", "content": str(rng.randrange(999))}]
                if calls
                else [{"role": "user", "content": text(rng)}]
            )
            suffix = chat.suffix(messages, answer, turn, added, tools)
            messages = [*messages, answer.message, *added]
            if suffix is None:  # only templates that write the past anew
                assert name in ("qwen3", "mistral"), (name, seed, messages)
                break
            whole = np.concatenate([whole, turn, suffix])
            sampled.append(turn)
            expected = made.apply_chat_template(
                messages, tools=tools or None, tokenize=False, add_generation_prompt=True
            )
            assert squeezed(decoded(made, whole)) == squeezed(expected)
        assert all(turn.tobytes() in whole.tobytes() for turn in sampled)


def test_a_template_that_drops_old_thoughts_gives_no_suffix_behind_them() -> None:
    chat, made = Chat(tokenizer("qwen3")), tokenizer("qwen3")
    turn = as_sampled(made, "<think>\nhm\n</think>\n\nyes", random.Random(0), "<|im_end|>")
    asked = [{"role": "user", "content": "is it?"}]
    answer = chat.answer(turn)
    assert chat.suffix(asked, answer, turn, [{"role": "user", "content": "sure?"}]) is None
    kept = chat.suffix(asked, answer, turn, [{"role": "tool", "content": "7"}])
    assert kept is not None
    assert decoded(made, kept) == "\n<|im_start|>user\n<tool_response>\n7\n</tool_response><|im_end|>\n" + (
        "<|im_start|>assistant\n"
    )


def test_a_template_that_drops_a_thought_at_once_gives_no_suffix_either() -> None:
    chat, made = Chat(tokenizer("harmony")), tokenizer("harmony")
    said = "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>yes"
    turn = as_sampled(made, said, random.Random(0), "<|end|>")
    answer = chat.answer(turn)
    assert chat.suffix([{"role": "user", "content": "?"}], answer, turn, [{"role": "user", "content": "!"}]) is None


def test_tools_that_stand_before_the_last_question_move_with_it() -> None:
    chat, made = Chat(tokenizer("mistral")), tokenizer("mistral")
    asked = [{"role": "user", "content": "add"}]
    turn = as_sampled(made, "why", random.Random(0), "</s>")
    again = [{"role": "user", "content": "do"}]
    assert chat.suffix(asked, chat.answer(turn, [ADD]), turn, again, [ADD]) is None
    assert chat.suffix(asked, chat.answer(turn), turn, again) is not None


def test_which_templates_know_tools() -> None:
    assert {name for name in TEMPLATES if Chat(tokenizer(name)).knows_tools} == {*WITH_TOOLS, "harmony"}


def test_messages_that_a_template_refuses_are_a_bad_row() -> None:
    made = tokenizer("chatml")
    made.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(BadRow, match="roles must alternate"):
        Chat(made).opening([{"role": "user", "content": "?"}])


@pytest.mark.parametrize(
    ("format", "said", "names", "mistakes"),
    [
        ("hermes", 'so <tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call>', ["f"], 0),
        ("hermes", '<tool_call>{"name": "f"}</tool_call><tool_call>{"name": "g"}</tool_call>', ["f", "g"], 0),
        ("hermes", '<tool_call>{"name": "f", "arguments": "{\\"x\\": 1}"}</tool_call>', ["f"], 0),
        ("hermes", "<tool_call>{name: f}</tool_call>", [], 1),
        ("hermes", '<tool_call>{"name": "f"', [], 1),
        ("hermes", '<tool_call>{"name": 3}</tool_call><tool_call>[]</tool_call>', [], 2),
        ("hermes", '<tool_call>{"name": "f", "arguments": [1]}</tool_call>', [], 1),
        ("hermes", "no call", [], 0),
        ("llama3", '{"name": "f", "parameters": {"x": 1}}', ["f"], 0),
        ("llama3", '<|python_tag|>{"name": "f", "parameters": {}}; {"name": "g", "parameters": {}}', ["f", "g"], 0),
        ("llama3", '{"name": "f", "parameters": {', [], 1),
        ("llama3", '{"price": 3}', [], 0),
        (
            "mistral",
            '[TOOL_CALLS] [{"name": "f", "arguments": {"x": 1}}, {"name": "g", "arguments": {}}]',
            ["f", "g"],
            0,
        ),
        ("mistral", '[TOOL_CALLS]f[ARGS]{"x": 1}[TOOL_CALLS]g[ARGS]{"y": 2}', ["f", "g"], 0),
        ("mistral", "[TOOL_CALLS] f(1)", [], 1),
        ("mistral", "[TOOL_CALLS]f[ARGS]1, 2", [], 1),
        ("glm", "<tool_call>f\n<arg_key>x</arg_key>\n<arg_value>1</arg_value>\n</tool_call>", ["f"], 0),
        ("glm", "<tool_call>f</tool_call>", ["f"], 0),
        ("glm", "<tool_call>f\n<arg_key>x", [], 1),
    ],
)
def test_calls_are_read_and_what_is_no_call_is_told(format: str, said: str, names: list[str], mistakes: int) -> None:
    before, calls, wrong = FORMATS[format].read(said)
    assert ([call.name for call in calls], len(wrong)) == (names, mistakes)
    assert [call.id for call in calls] == [str(number) for number in range(len(calls))]
    if names and "x" in said:
        assert calls[0].arguments == {"x": 1}
    if not names and not mistakes:
        assert before == said


def test_the_format_follows_the_template_or_is_named() -> None:
    formats = {name: call_format("auto", template) for name, template in TEMPLATES.items()}
    assert [name for name, format in formats.items() if format is FORMATS["mistral"]] == ["mistral"]
    assert [name for name, format in formats.items() if format is FORMATS["glm"]] == ["glm"]
    assert [name for name, format in formats.items() if format is FORMATS["llama3"]] == ["llama3"]
    assert call_format("glm", "") is FORMATS["glm"]
    with pytest.raises(ConfigError, match=r"environment\.calls=herms is no format.*did you mean 'hermes'"):
        call_format("herms", "")

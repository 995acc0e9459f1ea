"""What stands around a response, and the text of its tokens, on tokenizers of the kinds there are: one token per
character with tags, byte-level, and those that write words with a space before them."""

import json

import numpy as np
import pytest
from tiny_models import save_tiny, tiny_tokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from yatt.config.load import load_config
from yatt.config.schema import DataConfig
from yatt.data.demonstrations import DemonstrationEncoder
from yatt.data.encoders import row_encoder
from yatt.data.preferences import LabelEncoder, PairEncoder
from yatt.data.prompts import PromptEncoder, load_tokenizer, tokenize
from yatt.data.rows import BadRow
from yatt.data.turns import ResponseText, Turn, named_ends
from yatt.errors import ConfigError
from yatt.generation.stepped import end_tokens

TAGS = ("<think>", "</think>", "<answer>", "</answer>", "<|im_start|>", "<|im_end|>")
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
OPENED = CHATML.replace("assistant\n", "assistant\n<think>\n")
SHORT = (
    "{% for m in messages %}{{ m.role[0] }}:{{ m.content }};{% endfor %}"
    "{% if add_generation_prompt %}a:<think>{% endif %}"
)
USER = {"role": "user", "content": "1+1="}


def tagged(template=None, special=True):
    """One token per character, and one for each of TAGS, as `add_special_tokens` makes them."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([AddedToken(tag, special=special, normalized=False) for tag in TAGS], special_tokens=special)
    tokenizer.chat_template = template
    return tokenizer


def spaced(legacy):
    """As Llama's: words have their space before them (a lower bar), written before the first one too."""
    pieces = [
        "<unk>",
        "<s>",
        "</s>",
        "▁",
        "1",
        "+",
        "=",
        "2",
        "▁1",
        "▁2",
        "[",
        "]",
        "▁[",
        *(f"<0x{i:02X}>" for i in range(256)),
    ]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    merges = [("▁", "1"), ("▁", "2"), ("▁", "[")]
    backend = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if legacy:
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in pieces[:3]])
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def byte_level():
    """Every byte is a token, so a character may be cut in two."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({piece: i for i, piece in enumerate(["<eos>", *alphabet])}, []))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    backend.add_special_tokens([AddedToken("<eos>", normalized=False)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", clean_up_tokenization_spaces=True)


def ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def both(tokenizer, sample):
    """The whole as text, and what is trained."""
    tokens, mask = (np.concatenate([getattr(s, n) for s in sample.sequences]) for n in ("tokens", "loss_mask"))
    return tokenizer.decode(tokens), tokenizer.decode(tokens[mask])


def demonstrated(tokenizer, row, **data):
    return both(tokenizer, DemonstrationEncoder(tokenizer, DataConfig(**data), 300)(row, 0, 0))


# --- the text of tokens ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("special", [True, False])
def test_tags_of_the_policys_own_stay_in_the_text(special):
    tokenizer = tagged(special=special)
    said = "<think>1</think><answer>2</answer>"
    assert ResponseText(tokenizer)(ids(tokenizer, said)) == said
    assert ResponseText(tokenizer)([*ids(tokenizer, said), 1]) == said


def test_only_ends_and_padding_at_the_very_end_are_left_out():
    text = ResponseText(tagged(CHATML))
    pad, eos, two, turn = 0, 1, *ids(tagged(CHATML), "2<|im_end|>")
    assert text(np.array([two, turn], dtype=np.int32)) == "2"
    assert text([two, pad, eos]) == text([two, eos, pad]) == text([two, pad]) == "2"
    assert text([two, pad, two, turn]) == "2<pad>2"
    assert text([eos]) == text([]) == ""


def test_nothing_is_prettied():
    tokenizer = byte_level()
    assert ResponseText(tokenizer)(ids(tokenizer, " a . b , do n't\n ")) == " a . b , do n't\n "
    cut = ids(tokenizer, "é")[:1]  # the first of its two bytes
    assert ResponseText(tokenizer)([*ids(tokenizer, "a"), *cut]) == "a\N{REPLACEMENT CHARACTER}"
    words = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"<eos>": 0, "a": 1, ".": 2})),
        eos_token="<eos>",
        clean_up_tokenization_spaces=True,
    )
    assert words.decode([1, 2]) == "a."  # what transformers makes of it
    assert ResponseText(words)([1, 2]).strip() == "a ."


@pytest.mark.parametrize("legacy", [True, False])
def test_the_text_is_what_stands_behind_the_prompt(legacy):
    """A decoder of words takes the space off the first one: not off a response's first."""
    tokenizer = spaced(legacy)
    prompt, response = ids(tokenizer, "[1+1=]"), tokenizer.convert_tokens_to_ids(["▁2", "+", "1"])
    assert tokenizer.decode(response) == "2+1"
    whole = tokenizer.decode([*prompt, *response])
    assert whole == "[1+1=]" + ResponseText(tokenizer)(response) == "[1+1=] 2+1"


# --- prompts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("legacy", [True, False])
def test_a_prompt_begins_once_and_does_not_end(legacy):
    tokenizer = spaced(legacy)
    read = lambda text, **how: tokenize(tokenizer, text, special=True, **how).tolist()  # noqa: E731
    assert ids(tokenizer, "1") == read("1")[1:] and tokenizer("1")["input_ids"] == [*read("1"), 2]
    assert read("1")[0] == 1
    assert read("<s>1").count(1) == 1  # rendered by its user, with its beginning
    assert read("1", closed=True) == tokenizer("1")["input_ids"]  # a classifier reads a whole text
    assert read("1</s>")[-1] == 2  # the text's own
    tokenizer.chat_template = "{{ bos_token }}[{{ messages[0].content }}]"
    chat = PromptEncoder(tokenizer, DataConfig(), 100, 4).encode("1+1=")[1].tolist()
    expected = tokenizer.apply_chat_template([USER], add_generation_prompt=True, return_dict=False)
    assert chat == expected and chat.count(1) == 1


# --- ends ------------------------------------------------------------------------------------------------------------


def write(folder, file, **changes):
    path = folder / file
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | changes))


def test_an_engine_stops_at_every_end_there_is(tmp_path):
    folder = tmp_path / "m"
    save_tiny(folder)
    write(folder, "generation_config.json", eos_token_id=[5, 6])
    assert end_tokens(str(folder)) == (5, 6, 1)  # and the tokenizer's <eos>
    (folder / "generation_config.json").unlink()
    write(folder, "config.json", eos_token_id=7)
    assert end_tokens(str(folder)) == (7, 1)
    write(folder, "config.json", vocab_size=120)
    tagged(CHATML).save_pretrained(folder)
    turn = load_tokenizer(str(folder)).convert_tokens_to_ids("<|im_end|>")
    assert end_tokens(str(folder)) == (7, 1, turn)
    for file in ("tokenizer.json", "chat_template.jinja"):
        (folder / file).unlink()
    assert end_tokens(str(folder)) == (7,)


@pytest.mark.parametrize(
    ("template", "rest", "end"),
    [
        (CHATML, "<|im_end|>\n", "<|im_end|>"),
        (SHORT, ";", ""),
        ("{% for m in messages %}{{ m.content }} {{ eos_token }}{% endfor %}", " <eos>", " <eos>"),
        ("{% for m in messages %}{{ m.content | upper }}<|im_end|>{% endfor %}", "", ""),
        ("{{ raise_exception('no talks') }}", "", ""),
        ("{% for m in messages %}{{ m.content }}{% if not loop.last %}<|im_end|>{% endif %}{% endfor %}", "", ""),
        (None, "", ""),
    ],
)
def test_how_a_template_ends_a_turn(template, rest, end):
    turn = Turn(tagged(template))
    assert (turn.rest, turn.end) == (rest, end)


def test_ends_that_cannot_be_read(tmp_path):
    write(tmp_path, "generation_config.json", eos_token_id="<eos>")
    with pytest.raises(ConfigError, match=r"eos_token_id=\['<eos>'\] is not a token id or a list of them"):
        named_ends(str(tmp_path))
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"generation_config\.json cannot be read"):
        named_ends(str(tmp_path))


def test_an_end_the_model_does_not_have(tmp_path):
    save_tiny(tmp_path)
    write(tmp_path, "tokenizer_config.json", eos_token="<|im_end|>")
    tokenizer = json.loads((tmp_path / "tokenizer.json").read_text())
    for number in range(5):  # 91 tokens and these: the next one is none of the model's 96
        tokenizer["added_tokens"].append(tokenizer["added_tokens"][0] | {"id": 91 + number, "content": f"<{number}>"})
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ConfigError, match=r"eos_token='<\|im_end\|>' is none of the model's 96 tokens"):
        load_tokenizer(str(tmp_path))


def test_what_is_trained_to_end_is_what_is_stopped_at():
    """In every turn of a talk, in either form of a row, for pairs and for labels."""
    tokenizer = tagged(CHATML)
    asked, said = "<|im_start|>user\n1+1=<|im_end|>\n<|im_start|>assistant\n", "2<|im_end|>"
    answer = {"role": "assistant", "content": "2"}
    expected = (asked + said, said)
    assert demonstrated(tokenizer, {"prompt": "1+1=", "response": "2"}) == expected
    assert demonstrated(tokenizer, {"messages": [USER, answer]}) == expected
    assert demonstrated(tokenizer, {"messages": [USER, answer, USER, answer]}) == (
        asked + said + "\n" + asked + said,
        said + said,
    )
    pair = PairEncoder(tokenizer, DataConfig(), 300)({"prompt": "1+1=", "chosen": "2", "rejected": "3"}, 0, 0)
    assert both(tokenizer, pair) == (asked + said + asked + "3<|im_end|>", said + "3<|im_end|>")
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in Turn(tokenizer).stops
    never = demonstrated(tokenizer, {"prompt": "1+1=", "response": "2"}, chat_template="never")
    assert never == ("1+1=2<eos>", "2<eos>")


def test_a_reward_model_learns_to_read_what_a_judge_reads():
    """The last token is the one whose score is read: of the talk as the template renders it, a line break."""
    tokenizer = tagged(CHATML)
    words = ["model.path=m", "train.steps=1", "train.batch_size=1", "algorithm.name=reward_model", "data.path=x"]
    encode = row_encoder(load_config(None, words), tokenizer, None)
    sample = encode({"prompt": "1+1=", "chosen": "2", "rejected": "3"}, 0, 0)
    talk = [USER, {"role": "assistant", "content": "2"}]
    assert sample.first.tokens.tolist() == tokenizer.apply_chat_template(talk, return_dict=False)


def test_an_end_that_the_response_brings():
    tokenizer = tagged(CHATML)
    for response in ("2<|im_end|>", "2<|im_end|>\n", "2<|im_end|><|im_end|>"):
        assert demonstrated(tokenizer, {"prompt": "1", "response": response})[1] == "2<|im_end|>"
    assert demonstrated(tokenizer, {"prompt": "1", "response": "2<eos>"})[1] == "2<eos>"
    with pytest.raises(BadRow, match=r"the response goes on after '<\|im_end\|>', at which a response ends"):
        demonstrated(tokenizer, {"prompt": "1", "response": "2<|im_end|>3"})


# --- what a generation prompt opens ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "head", "end"),
    [
        (SHORT, "u:1+1=;a:<think>", "<eos>"),
        (OPENED, "<|im_start|>user\n1+1=<|im_end|>\n<|im_start|>assistant\n<think>\n", "<|im_end|>"),
    ],
)
@pytest.mark.parametrize("response", ["<think>1</think>2", "<think>\n1</think>2", "\n<think>1</think>2", "1</think>2"])
def test_an_opened_thought_is_not_opened_again(template, head, end, response):
    if template is SHORT and response == "<think>\n1</think>2":
        head += "\n"  # the prompt has no line break there: the response says it
    tokenizer = tagged(template)
    expected = (head + "1</think>2" + end, "1</think>2" + end)
    if head.endswith("\n") and template is SHORT:
        expected = (expected[0], "\n" + expected[1])
    answer = {"role": "assistant", "content": response}
    assert demonstrated(tokenizer, {"prompt": "1+1=", "response": response}) == expected
    assert demonstrated(tokenizer, {"messages": [USER, answer]}) == expected
    row = {"prompt": "1+1=", "chosen": response, "rejected": "<think>3"}
    pair = PairEncoder(tokenizer, DataConfig(), 300)(row, 0, 0)
    assert tokenizer.decode(pair.first.tokens) == expected[0]
    assert tokenizer.decode(pair.second.tokens).count("<think>") == 1
    labelled = [{"prompt": f"{i}", "response": response, "label": True} for i in range(2)]
    source = Listed(labelled)
    label = LabelEncoder(tokenizer, DataConfig(), 300, source)(labelled[0], 0, 0)
    assert [tokenizer.decode(one.tokens).count("<think>") for one in label.sequences] == [1, 1]


class Listed(list):
    def row(self, index):
        return self[index]

    def origin(self, index):
        return f"rows:{index + 1}"


@pytest.mark.parametrize(
    ("opens", "response", "trained"),
    [
        ("assistant:", "assistant: 2", " 2"),
        ("assistant:", ":)", ":)"),  # no piece of what was opened
        ("<think>\n\n</think>\n\n", "<think>\n\n</think>\n\n2", "2"),
        ("<think>", "<thinking>", "<thinking>"),
        ("a:", "2 a:", "2 a:"),
    ],
)
def test_pieces_that_are_said_again(opens, response, trained):
    tokenizer = tagged(
        "{% for m in messages %}{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}" + opens + "{% endif %}"
    )
    assert demonstrated(tokenizer, {"prompt": "1", "response": response})[1] == trained + "<eos>"


def test_text_of_the_prompt_is_not_taken_for_what_was_opened():
    echo = tagged("{% for m in messages %}{{ m.content }}{% endfor %}")
    assert demonstrated(echo, {"prompt": "go on: <think>", "response": "<think>2"})[1] == "<think>2<eos>"


def test_an_opened_thought_in_an_early_turn():
    tokenizer = tagged(SHORT)
    turn = {"role": "assistant", "content": "<think>1</think>2"}
    whole = "u:1+1=;a:<think>1</think>2;u:1+1=;a:<think>1</think>2<eos>"
    assert demonstrated(tokenizer, {"messages": [USER, turn, USER, turn]}) == (whole, "1</think>2" * 2 + "<eos>")


def test_blanks_stand_as_the_template_writes_them():
    trims = "{% for m in messages %}[{{ m.content | trim }}]{% endfor %}{% if add_generation_prompt %}[{% endif %}"
    assert demonstrated(tagged(trims), {"prompt": "1", "response": " 2\n"})[1] == "2<eos>"
    adds = "{% for m in messages %}{{ m.role[0] }}: {{ m.content }}<|im_end|>{% endfor %}"
    adds += "{% if add_generation_prompt %}a:{% endif %}"
    assert demonstrated(tagged(adds), {"prompt": "1", "response": "2"})[1] == " 2<|im_end|>"


@pytest.mark.parametrize("legacy", [True, False])
def test_a_response_is_read_where_it_stands(legacy):
    """Read alone, a first word would bring a space that nobody wrote."""
    tokenizer = spaced(legacy)
    sample = DemonstrationEncoder(tokenizer, DataConfig(), 50)({"prompt": "1+1=", "response": "2"}, 0, 0)
    assert tokenizer.convert_ids_to_tokens(sample.tokens) == ["<s>", "▁1", "+", "1", "=", "2", "</s>"]
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'user' %}[{{ m.content }}]{% else %} {{ m.content }} </s>{% endif %}"
        "{% endfor %}"
    )
    chat = DemonstrationEncoder(tokenizer, DataConfig(), 50)({"prompt": "1", "response": "2"}, 0, 0)
    talk = [USER | {"content": "1"}, {"role": "assistant", "content": "2"}]
    assert chat.tokens.tolist() == tokenizer.apply_chat_template(talk, return_dict=False)


def test_thoughts_and_calls_beside_the_text_of_a_last_turn_are_refused():
    for name, value in (("tool_calls", [{"name": "add"}]), ("reasoning_content", "easy")):
        talk = [USER, {"role": "assistant", "content": "2", name: value}]
        with pytest.raises(BadRow, match=f"the last turn has '{name}' beside its text, which would not be trained"):
            demonstrated(tagged(CHATML), {"messages": talk})


def test_responses_that_differ_in_what_was_opened_only_are_no_pair():
    row = {"prompt": "1+1=", "chosen": "<think>1</think>2", "rejected": "1</think>2"}
    with pytest.raises(BadRow, match="have the same tokens behind this prompt; there is nothing to prefer"):
        PairEncoder(tagged(SHORT), DataConfig(), 300)(row, 0, 0)


def test_a_template_that_strips_thoughts_shows_what_a_rollout_would_see():
    """Earlier answers stand in the prompt without their thoughts; the response keeps its own."""
    tokenizer = tagged(SHORT.replace("m.content", "m.content.split('</think>')[-1]"))
    turn = {"role": "assistant", "content": "<think>1</think>2"}
    assert demonstrated(tokenizer, {"messages": [USER, turn]}) == (
        "u:1+1=;a:<think>1</think>2<eos>",
        "1</think>2<eos>",
    )
    row = {"prompt": [USER, turn, USER], "response": turn["content"]}
    assert demonstrated(tokenizer, row)[0] == "u:1+1=;a:2;u:1+1=;a:<think>1</think>2<eos>"
    with pytest.raises(ConfigError, match="its chat template has no assistant mask"):  # no rollout wrote its early turn
        demonstrated(tokenizer, {"messages": [USER, turn, USER, turn]})

"""Chat templates in the manner of eight model families: what each does with turns, thoughts, tools and blanks."""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_TOOLS = (
    "{% if tools %}<|im_start|>system\n{% if messages[0].role == 'system' %}{{ messages[0].content }}\n\n{% endif %}"
    "# Tools\n{% for t in tools %}{{ t | tojson }}\n{% endfor %}<|im_end|>\n"
    "{% elif messages[0].role == 'system' %}<|im_start|>system\n{{ messages[0].content }}<|im_end|>\n{% endif %}"
)
_RESULTS = (
    "{% if loop.first or messages[loop.index0 - 1].role != 'tool' %}<|im_start|>user{% endif %}"
    "{{ '\n' }}<tool_response>\n{{ m.content }}\n</tool_response>"
    "{% if loop.last or messages[loop.index0 + 1].role != 'tool' %}<|im_end|>\n{% endif %}"
)
_CALLS = (
    "{% if m.tool_calls %}{% for c in m.tool_calls %}{% if not loop.first or m.content %}\n{% endif %}<tool_call>\n"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}\n</tool_call>{% endfor %}'
    "{% endif %}"
)
QWEN25 = (
    _TOOLS + "{% for m in messages %}{% if m.role == 'tool' %}" + _RESULTS + "{% elif m.role == 'assistant' %}"
    "<|im_start|>assistant\n{{ m.content }}" + _CALLS + "<|im_end|>\n"
    "{% elif m.role == 'user' %}<|im_start|>user\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Several results of tools are one turn of the user's."""
_LAST_USER = (
    "{% set ns = namespace(last=-1) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}"
    "{% endif %}{% endfor %}"
)
QWEN3 = (
    _TOOLS
    + _LAST_USER
    + "{% for m in messages %}{% if m.role == 'tool' %}"
    + _RESULTS
    + "{% elif m.role == 'assistant' %}"
    "{% set said = m.content.split('</think>')[-1].lstrip('\n') %}<|im_start|>assistant\n"
    "{% if loop.index0 > ns.last and '</think>' in m.content %}<think>\n"
    "{{ m.content.split('</think>')[0].split('<think>')[-1].strip('\n') }}\n</think>\n\n{% endif %}{{ said }}"
    + _CALLS
    + "<|im_end|>\n{% elif m.role == 'user' %}<|im_start|>user\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Thoughts of turns before the user's last word are dropped."""
LLAMA3 = (
    "<|begin_of_text|>{% for m in messages %}<|start_header_id|>{{ 'ipython' if m.role == 'tool' else m.role }}"
    "<|end_header_id|>\n\n{% if m.tool_calls %}"
    '{"name": "{{ m.tool_calls[0].function.name }}", "parameters": {{ m.tool_calls[0].function.arguments | tojson }}}'
    "{% else %}{{ m.content | trim }}{% endif %}{% if loop.first and tools %}\n\nTools:\n"
    "{% for t in tools %}{{ t | tojson }}\n{% endfor %}{% endif %}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
MISTRAL = (
    "<s>" + _LAST_USER + "{% for m in messages %}{% if m.role == 'user' %}"
    "{% if tools and loop.index0 == ns.last %}[AVAILABLE_TOOLS] {{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}"
    "[INST] {{ m.content }}[/INST]{% elif m.role == 'tool' %}[TOOL_RESULTS] "
    '{"content": {{ m.content | tojson }}}[/TOOL_RESULTS]{% elif m.tool_calls %}[TOOL_CALLS] ['
    "{% for c in m.tool_calls %}{% if not loop.first %}, {% endif %}"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}{% endfor %}]</s>'
    "{% elif m.role == 'assistant' %} {{ m.content | trim }}</s>{% endif %}{% endfor %}"
)
"""Tools stand before the user's last word: a second one moves them, and the past is another."""
GLM = (
    "[gMASK]<sop>{% if tools %}<|system|>\n{% for t in tools %}{{ t | tojson }}\n{% endfor %}{% endif %}"
    "{% for m in messages %}{% if m.role == 'assistant' %}<|assistant|>\n{{ m.content | trim }}{% if m.tool_calls %}"
    "{% for c in m.tool_calls %}\n<tool_call>{{ c.function.name }}{% for k, v in c.function.arguments.items() %}\n"
    "<arg_key>{{ k }}</arg_key>\n<arg_value>{{ v }}</arg_value>{% endfor %}\n</tool_call>{% endfor %}{% endif %}"
    "{% elif m.role == 'tool' %}<|observation|>\n<tool_response>\n{{ m.content }}\n</tool_response>"
    "{% else %}<|{{ m.role }}|>\n{{ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
"""A turn ends where the next begins: nothing is written behind the last one."""
HARMONY = (
    "{% if tools %}<|start|>developer<|message|>{% for t in tools %}{{ t | tojson }}\n{% endfor %}<|end|>{% endif %}"
    "{% for m in messages %}{% if m.role == 'assistant' %}<|start|>assistant<|channel|>final<|message|>"
    "{{ m.content.split('<|channel|>final<|message|>')[-1] }}<|end|>"
    "{% else %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
"""What was thought on another channel than the final one is dropped at once, as in gpt-oss."""
HERMES = CHATML.replace("{{ m.content }}<|im_end|>", "{{ m.content }}" + _CALLS + "<|im_end|>").replace(
    "{% for m in messages %}", _TOOLS + "{% for m in messages if m.role != 'system' %}", 1
)

TEMPLATES = {
    "chatml": CHATML,
    "qwen2.5": QWEN25,
    "qwen3": QWEN3,
    "llama3": LLAMA3,
    "hermes": HERMES,
    "mistral": MISTRAL,
    "glm": GLM,
    "harmony": HARMONY,
}
ENDS = {"llama3": "<|eot_id|>", "mistral": "</s>", "glm": "<|user|>", "harmony": "<|end|>"}
WITH_TOOLS = ("qwen2.5", "qwen3", "llama3", "hermes", "mistral", "glm")
# fmt: off
_SPECIAL = [
    "<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<|start_header_id|>",
    "<|end_header_id|>", "<|eot_id|>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]",
    "[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>",
    "<|observation|>", "<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<think>", "</think>", "<tool_call>",
    "</tool_call>",
]
# fmt: on


def tokenizer(name: str) -> PreTrainedTokenizerFast:
    """A tokenizer of bytes and a few pairs of them, so that tokens depend on their neighbours, and a template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = [
        ("t", "h"),
        ("i", "n"),
        ("Ġ", "t"),
        ("Ġt", "h"),
        ("Ċ", "Ċ"),
        ("e", "r"),
        ("1", "2"),
        ("Ġ", "1"),
        ("{", '"'),
    ]
    vocabulary = {piece: number for number, piece in enumerate([*alphabet, *("".join(pair) for pair in pairs)])}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(text, special=True) for text in _SPECIAL])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=made,
        eos_token=ENDS.get(name, "<|im_end|>"),
        pad_token="<pad>",
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = TEMPLATES[name]
    return fast

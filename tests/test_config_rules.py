"""Rules between settings and the model folder, each broken on purpose."""

import json
import re
import shutil

import pytest
from tiny_models import save_tiny, tiny_model

from yatt.config import facts
from yatt.config.facts import local_gpus, model_facts, tokenizer_size
from yatt.config.load import load_config
from yatt.config.rules import check
from yatt.errors import ConfigError


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Qwen3: 2 layers, 4 heads, 2 key/value heads, MLP 128, vocabulary 96, 512 positions; 91 tokens."""
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def folder(tiny, tmp_path):
    """A copy of the tiny model, to be spoilt."""
    return shutil.copytree(tiny, tmp_path / "model")


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr("yatt.config.rules.local_gpus", lambda: 0)


@pytest.fixture
def settings(tmp_path, no_gpu):
    """Builds a config that breaks no rule but those of the words given."""
    (tmp_path / "d.jsonl").write_text('{"prompt": "1"}\n')

    def build(path, *words):
        base = [f"model.path={path}", "train.steps=4", "train.batch_size=8", "model.context_length=64"]
        base += ["rollout.max_tokens=32", f"data.path={tmp_path}/d.jsonl", "reward.function=exact_match"]
        return load_config(None, [*base, *words])

    return build


def refused(config):
    with pytest.raises(ConfigError) as caught:
        check(config)
    assert caught.value.exit_status == 2
    return str(caught.value).splitlines()


SFT = ("algorithm.name=sft", "reward.function=null")
JUDGE = 'reward.models.j={url: "http://x/v1", model: m, parser: number, template: "{question} {response}"}'


def test_what_breaks_no_rule_passes(settings, tiny):
    assert check(settings(tiny)) == []
    assert check(settings(tiny, *SFT, "rollout.max_tokens=4096")) == []
    assert check(settings(tiny, JUDGE, 'reward.models.j.template={"score": {response}} {}')) == []
    assert check(settings(tiny, JUDGE, "reward.function=null")) == []


BROKEN = """
data.media_key=image
    data.media_key=image: rollout.engine=vllm takes no images yet; unset it
data.media_key=image | algorithm.name=sft | reward.function=null
    data.media_key=image: algorithm.name=sft takes no images yet; unset it
train.tp=3 | cluster.slots=3
    train.tp=3 does not divide 4 attention heads and 2 key/value heads and 128 MLP columns; use 1 or 2
train.pp=4 | cluster.slots=4
    train.pp=4 does not divide 2 layers; use 1 or 2
train.tp=2 | cluster.slots=3
    cluster.slots=3 is not a multiple of train.tp=2 x train.pp=1; use 2 or 4 slots
train.sequence_parallel=true
    train.sequence_parallel=true needs train.tp > 1, not train.tp=1; set it to false
model.context_length=1024
    model.context_length=1024 is over the model's max_position_embeddings=512; use at most 512
rollout.max_tokens=64
    rollout.max_tokens=64 leaves no room for a prompt in model.context_length=64; lower it
data.max_prompt_tokens=40
    data.max_prompt_tokens=40 and rollout.max_tokens=32 are together over model.context_length=64; lower
train.tokens_per_micro_batch=63
    train.tokens_per_micro_batch=63 cannot hold one sample of model.context_length=64 tokens; use at least 64
algorithm.overlong=penalty
    algorithm.overlong_buffer=0 must be from 1 to rollout.max_tokens=32 for algorithm.overlong=penalty; use 8
algorithm.overlong=penalty | algorithm.overlong_buffer=33
    algorithm.overlong_buffer=33 must be from 1 to
algorithm.overlong_buffer=3
    algorithm.overlong_buffer=3 is only for algorithm.overlong=penalty; set it to 0
cluster.controllers=9
    train.batch_size=8 is under cluster.controllers=9; use at least 9
train.updates_per_step=3
    train.batch_size=8 is not divisible by train.updates_per_step=3; use 6 or 9
train.batch_size=1 | rollout.n=2 | cluster.slots=4
    train.batch_size=1 x rollout.n=2 makes 2 samples, too few for 4 data-parallel ranks x train.updates_per_step=1; use
SFT | cluster.slots=2 | train.batch_size=7
    train.batch_size=7 is not divisible by 2 data-parallel rank(s) x train.updates_per_step=1; use 6 or 8
rollout.n=1
    rollout.n=1 gives a group of one, which teaches grpo nothing; use at least 2
algorithm.name=rloo | rollout.n=1
    rollout.n=1 gives a group of one, which teaches rloo nothing; use at least 2
rollout.temperature=0
    rollout.temperature=0 makes all responses
SFT | algorithm.kl.coefficient=0.1
    algorithm.kl.coefficient=0.1 has no meaning for algorithm.name=sft; leave it at 0.0
SFT | algorithm.dual_clip=3
    algorithm.dual_clip=3.0 has no meaning for algorithm.name=sft; leave it at null
SFT | rollout.filter=all_equal
    rollout.filter=all_equal has no meaning for algorithm.name=sft; leave it at none
SFT | evaluate.size=3
    evaluate.path and evaluate.size have no meaning for algorithm.name=sft
algorithm.name=sft
    reward.function has no meaning for algorithm.name=sft; unset it
reward.function=null
    reward.function is not set; set it to FILE.py:NAME, package.module:NAME or a built-in
reward.function=null | data.path=null | data.tasks=[{name: chain_sum}]
    reward.function is not set; set it to reasoning_gym
reward.functions.a.function=x:y
    reward.function=exact_match and reward.functions are both set; keep one of them
reward.function=no/such.py:f
    reward.function=no/such.py:f: no such file, from
JUDGE | reward.models.j.template=Is it right?
    reward.models.j.template='Is it right?' has no {response}; put it where the response goes
JUDGE | reward.models.j.template={response} {anwser}
    reward.models.j.template names {anwser}, which is no field; did you mean {answer}?
JUDGE | reward.models.j.template={response} {x}
    reward.models.j.template names {x}, which is no field; use {question}, {response}, {answer}
JUDGE | reward.models.j.parser=no/such.py:f
    reward.models.j.parser=no/such.py:f: no such file, from
JUDGE | reward.models.j.key_env=NO_SUCH_KEY
    reward.models.j.key_env=NO_SUCH_KEY: the environment has no such variable; export it, or unset the setting
JUDGE | reward.models.j.judgements=2 | reward.models.j.temperature=0
    reward.models.j.judgements=2 are all the same at reward.models.j.temperature=0; use 1, or a temperature of 1
JUDGE | reward.function=null | reward.functions.j.function=x:y
    reward.models.j has the name of a function's reward; give it another
SFT | JUDGE
    reward.models.j has no meaning for algorithm.name=sft; unset it
data.path=null
    data.path and data.tasks are not set; set one of them
data.tasks=[{name: chain_sum}]
    data.path and data.tasks are both set; set one of them
data.path=no/such.jsonl
    data.path=no/such.jsonl: no such file or folder
evaluate.path=[no/*.jsonl]
    evaluate.path=no/*.jsonl: no such file or folder
evaluate.every=2
    evaluate.every=2 has nothing to evaluate on; set evaluate.path, or every to 0
resume=no/such
    resume=no/such: no such checkpoint; use never, auto or the path of one
cluster.device=cuda
    cluster.device=cuda but this machine shows no GPU
train.optimizer.min_learning_rate=1
    train.optimizer.min_learning_rate=1.0 is over train.optimizer.learning_rate=1e-06; lower it
train.optimizer.betas=[0.9, 1]
    train.optimizer.betas=[0.9, 1.0]: 1.0 is not from 0 to below 1
weights.dir=x
    weights.dir=x needs weights.transport=disk, not shm; unset it
model.reference=no/such
    model.reference=no/such: no such folder; name a Hugging Face model folder
model.path=no/such
    model.path=no/such: no such folder; name a Hugging Face model folder
"""
"""Words, then how the one line of the error begins. SFT and JUDGE stand for the words of those names."""


def broken():
    lines = BROKEN.strip().splitlines()
    for words, said in zip(lines[::2], lines[1::2], strict=True):
        yield words.replace("SFT", " | ".join(SFT)).replace("JUDGE", JUDGE).split(" | "), said.strip()


@pytest.mark.parametrize(("words", "said"), list(broken()))
def test_broken_rules(settings, tiny, words, said):
    (line,) = refused(settings(tiny, *words))
    assert line.startswith(said)


def test_all_broken_rules_come_at_once(settings, tiny):
    assert len(refused(settings(tiny, "train.pp=4", "rollout.n=1", "resume=x", "cluster.slots=4"))) == 3
    numbers = ["rollout.engine_args.max_num_seqs=0", "rollout.engine_args.tensor_parallel_size=many"]
    lines = refused(settings(tiny, *numbers, "train.sequence_parallel=true"))
    assert [line.split("=")[0] for line in lines] == [
        "rollout.engine_args.tensor_parallel_size",
        "rollout.engine_args.max_num_seqs",
        "train.sequence_parallel",
    ]


def test_warnings(settings, tiny, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    words = ["cluster.slots=4", "train.optimizer.warmup_steps=4", f"model.reference={tiny}", "rollout.top_p=0.9"]
    warnings = check(settings(tiny, *words))
    assert [w.split()[0] for w in warnings] == [
        "cluster.slots=4",
        "train.optimizer.warmup_steps=4",
        f"model.reference={tiny}",
        "rollout.top_p",
    ]


def test_more_slots_than_gpus(settings, tiny, monkeypatch):
    monkeypatch.setattr("yatt.config.rules.local_gpus", lambda: 2)
    assert refused(settings(tiny, "cluster.slots=4")) == [
        "cluster.slots=4 is over the 2 GPU(s) of this machine; use at most 2"
    ]
    assert check(settings(tiny, "cluster.slots=4", "cluster.address=head:6379")) == []


def spoil(folder, name, **changes):
    file = folder / name
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_model_folders_that_cannot_be_used(settings, folder):
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()

    def said():
        (line,) = refused(settings(folder))
        return line.removeprefix(f"model.path={folder}")

    weights.write_bytes(whole[:-8])
    assert re.fullmatch(r": model.safetensors cannot be read: .*not fully covered; copy it again", said())
    weights.write_bytes(b"not weights at all")
    assert re.fullmatch(r": model.safetensors cannot be read: .*; copy it again", said())
    weights.unlink()
    assert said() == ": no *.safetensors weights; save the model with save_pretrained"
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-1-of-1.safetensors"}}')
    assert said() == ": weight file(s) missing: model-1-of-1.safetensors"
    (folder / "model.safetensors.index.json").unlink()
    weights.write_bytes(whole)
    spoil(folder, "config.json", architectures=["GPT2LMHeadModel"])
    assert said() == (
        ": architecture GPT2LMHeadModel is not supported; "
        "use one of LlamaForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM"
    )
    spoil(folder, "config.json", architectures=["Qwen3ForCausalLM"], tie_word_embeddings=False)
    assert said() == ": its weight files have no lm_head.weight; save the model with save_pretrained"
    (folder / "config.json").write_text("{")
    assert said().startswith(": config.json is not JSON")
    (folder / "config.json").unlink()
    assert said() == ": it has no readable config.json"


def test_vocabularies_that_do_not_fit(settings, folder, tmp_path):
    spoil(folder, "config.json", vocab_size=90)
    assert refused(settings(folder)) == [
        f"model.path={folder}: its tokenizer has 91 tokens but vocab_size=90; "
        "resize the model's embeddings or use its own tokenizer",
        f"model.path={folder}: its weights have 96 embedding rows but vocab_size=90",
    ]
    spoil(folder, "config.json", vocab_size=96)
    other = save_tiny(tmp_path / "other", vocab_size=104)
    assert refused(settings(folder, f"model.reference={other}", "algorithm.kl.coefficient=0.1")) == [
        f"model.reference={other} has vocab_size=104 but the policy has 96; use a model with the same tokenizer"
    ]
    spoil(folder, "tokenizer.json", added_tokens=[{"id": 120, "content": "<new>"}])
    assert refused(settings(folder))[0].startswith(
        f"model.path={folder}: its tokenizer has 121 tokens but vocab_size=96"
    )
    (folder / "tokenizer.json").unlink()
    assert refused(settings(folder)) == [f"model.path={folder}: it has no readable tokenizer.json"]


@pytest.mark.parametrize(("architecture", "tie"), [("qwen3", True), ("qwen2", False), ("llama", True)])
def test_facts_are_those_transformers_sees(tmp_path, architecture, tie):
    model = tiny_model(architecture, tie=tie)
    path = save_tiny(tmp_path / "m", architecture, tie=tie)
    found = model_facts(path)
    assert (found.layers, found.heads, found.kv_heads, found.hidden_size) == (2, 4, 2, model.config.hidden_size)
    assert (found.vocab_size, found.embedding_rows, found.max_positions) == (96, 96, 512)
    assert tokenizer_size(path) == 91


def test_visible_gpus(monkeypatch):
    monkeypatch.setattr(facts.os, "listdir", lambda _: ["nvidia0", "nvidia1", "nvidiactl", "null"])
    for visible, count in ((None, 2), ("", 0), ("-1", 0), ("1", 1), ("0,1", 2), ("0,1,2", 2)):
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert local_gpus() == count

"""Rules between settings and the model folder, each broken on purpose."""

import json
import re
import shutil

import pytest
from tiny_models import save_tiny, tiny_model

from yatt.config import facts
from yatt.config.algorithms import RECIPES
from yatt.config.facts import local_gpus, model_facts, tokenizer_size
from yatt.config.load import load_config
from yatt.config.rules import check
from yatt.errors import ConfigError

TEXT = (
    "LlamaForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM, MistralForCausalLM, Olmo2ForCausalLM, Phi3ForCausalLM, "
    "Glm4ForCausalLM, Gemma2ForCausalLM, Gemma3ForCausalLM"
)

TRAINED = f"{TEXT}, Qwen2_5_VLForConditionalGeneration, Qwen3VLForConditionalGeneration"


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

    build.data = tmp_path / "d.jsonl"
    return build


def refused(config):
    with pytest.raises(ConfigError) as caught:
        check(config)
    assert caught.value.exit_status == 2
    return str(caught.value).splitlines()


SFT = ("algorithm.name=sft", "reward.function=null")
DPO = ("algorithm.name=dpo", "reward.function=null")
TEACHER = "algorithm.name=distillation | model.teacher=TINY | reward.function=null"
JUDGE = 'reward.models.j={url: "http://x/v1", model: m, parser: number, template: "{question} {response}"}'


def test_what_breaks_no_rule_passes(settings, tiny):
    assert check(settings(tiny)) == []
    assert check(settings(tiny, *SFT, "rollout.max_tokens=4096")) == []
    assert check(settings(tiny, JUDGE, 'reward.models.j.template={"score": {response}} {}')) == []
    assert check(settings(tiny, JUDGE, "reward.function=null")) == []
    assert check(settings(tiny, "algorithm.name=distillation", f"model.teacher={tiny}", "reward.function=null")) == []
    ppo = ["algorithm.name=ppo", "algorithm.kl={place: reward, coefficient: 0.1, target: 0.05, horizon: 500}"]
    assert check(settings(tiny, *ppo, "rollout.n=1", "train.epochs_per_step=4", "critic.warmup_steps=3")) == []
    for name in RECIPES:
        rows = RECIPES[name].rows != "prompts"
        words = [f"model.teacher={tiny}"] * RECIPES[name].teacher + ["reward.function=null"] * rows
        data = ["train.tokens_per_micro_batch=128", f"evaluate.path={settings.data}"]
        assert check(settings(tiny, f"algorithm.name={name}", *words, *data)) == [], name


BROKEN = """
data.media_key=image
    data.media_key=image: model.path=
data.max_pixels=4096 | algorithm.name=sft | reward.function=null
    data.max_pixels=4096: model.path=
data.fetch_images=true
    data.fetch_images=true: model.path=
train.vision=trained
    train.vision=trained is for a model that sees, and a Qwen3ForCausalLM does not; unset it
train.optimizer.vision_rate=0.5
    train.optimizer.vision_rate=0.5 is for a model that sees, and a Qwen3ForCausalLM does not; unset it
train.patches_per_micro_batch=100
    train.patches_per_micro_batch=100 is for a model that sees, and a Qwen3ForCausalLM does not; unset it
train.tp=3 | cluster.slots=3
    train.tp=3 does not divide 4 attention heads and 2 key/value heads and 128 MLP columns; use 1 or 2
train.pp=4 | cluster.slots=4
    train.pp=4 does not divide 2 layers; use 1 or 2
train.tp=2 | cluster.slots=3
    cluster.slots=3 is not a multiple of train.tp=2 x train.pp=1; use 2 or 4 slots
train.sequence_parallel=true
    train.sequence_parallel=true needs train.tp > 1, not train.tp=1; set it to false
train.attention=flex
    train.attention=flex is a kernel for GPUs; use auto
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
algorithm.name=reinforce_plus_plus_baseline | rollout.n=1
    rollout.n=1 gives a group of one, which teaches reinforce_plus_plus_baseline nothing; use at least 2
algorithm.name=ppo | rollout.n=1 | rollout.filter=all_equal
    rollout.filter=all_equal drops every group of rollout.n=1: the rewards of each are all equal; use none
TEACHER | rollout.filter=all_equal
    rollout.filter=all_equal drops every group of a run without a reward: the rewards of each are all equal; use none
SFT | algorithm.kl.coefficient=0.1
    algorithm.kl.coefficient=0.1 is not a setting of sft; grpo, dr_grpo, dapo and others have it; leave it at 0.0
SFT | algorithm.dual_clip=3
    algorithm.dual_clip=3.0 is not a setting of sft; grpo, dr_grpo, dapo and others have it; leave it at null
algorithm.gae_lambda=0.9
    algorithm.gae_lambda=0.9 is not a setting of grpo; ppo has it; leave it at 1.0
algorithm.beta=0.2
    algorithm.beta=0.2 is not a setting of grpo; dpo, cdpo, ipo and others have it; leave it at 0.1
algorithm.name=gspo | algorithm.dual_clip=3
    algorithm.dual_clip=3.0 is not a setting of gspo; grpo, dr_grpo, dapo and others have it; leave it at null
algorithm.name=gspo | algorithm.tau_negative=2
    algorithm.tau_negative=2.0 is not a setting of gspo; sapo has it; leave it at 1.05
DPO | algorithm.label_smoothing=0.1
    algorithm.label_smoothing=0.1 is not a setting of dpo; cdpo has it; leave it at 0.0
DPO | algorithm.desirable_weight=2
    algorithm.desirable_weight=2.0 is not a setting of dpo; kto has it; leave it at 1.0
DPO | algorithm.correction.level=token
    algorithm.correction.level=token is not a setting of dpo; grpo, dr_grpo, dapo and others have it; leave it at none
critic.value_clip=null
    critic.value_clip=null is for a critic, which grpo has not; ppo has one; leave it at 0.2
DPO | critic.path=x
    critic.path=x is for a critic, which dpo has not; ppo has one; leave it at null
DPO | data.margin_key=m
    data.margin_key=m is only for algorithm.name=reward_model, not dpo; unset it
model.teacher=x
    model.teacher=x is only for algorithm.name=distillation, not grpo; unset it
algorithm.name=distillation
    model.teacher is not set; algorithm.name=distillation needs the folder of a model to learn from
algorithm.name=ppo | critic.warmup_steps=4
    critic.warmup_steps=4 is not under train.steps=4: the policy would never learn; lower it
model.reference=x
    model.reference=x is never loaded, for algorithm.kl.coefficient=0; unset it
SFT | model.reference=x
    model.reference=x is never loaded, for algorithm.name=sft; unset it
algorithm.name=ppo | algorithm.kl.place=reward
    algorithm.kl.place=reward needs a reference, and algorithm.kl.coefficient=0 loads none; use a coefficient such as
algorithm.kl.place=reward | algorithm.kl.coefficient=0.1
    algorithm.kl.place=reward needs a reward for every token, and grpo has none; reinforce
algorithm.name=ppo | algorithm.kl.target=0.1 | algorithm.kl.coefficient=0.1
    algorithm.kl.target=0.1 adapts the coefficient of a KL in the reward, and algorithm.kl.place=loss; unset it, or use
algorithm.name=ppo | algorithm.kl.horizon=5
    algorithm.kl.horizon=5.0 has no meaning without algorithm.kl.target; leave it at 10000.0
algorithm.name=ppo | algorithm.kl={place: reward, coefficient: 0.1, target: 0.1, horizon: 12}
    algorithm.kl.horizon=12.0 is far under the 64 responses of a step: one step could take the coefficient to 0
algorithm.name=ppo | algorithm.whiten=sequences
    algorithm.whiten=sequences would make one of the advantages that ppo has for each token; use tokens or none
TEACHER | algorithm.overlong=penalty
    algorithm.overlong=penalty is for a reward, and distillation learns from none; use keep or mask
algorithm.name=ppo | critic.learning_rate=1e-7 | train.optimizer.min_learning_rate=5e-7
    critic.learning_rate=1e-07 is under train.optimizer.min_learning_rate=5e-07, where its schedule would end; lower
algorithm.correction.mode=mask
    algorithm.correction.mode=mask has no meaning with algorithm.correction.level=none; leave it at truncate, or use
algorithm.correction.level=token | algorithm.correction.low=3
    algorithm.correction.low=3.0 is over algorithm.correction.high=2.0; give the lower bound first
algorithm.correction.level=token | rollout.top_p=0.9
    algorithm.correction.level=token weighs by the trainer's probability among all tokens over the engine's among those
algorithm.correction.level=sequence | rollout.top_k=5
    algorithm.correction.level=sequence weighs by the trainer's probability among all tokens over the engine's among
algorithm.loss=no_such.py:f
    algorithm.loss=no_such.py:f: no such file, from
algorithm.advantage=mine
    algorithm.advantage=mine names no function; use FILE.py:NAME
SFT | rollout.filter=all_equal
    rollout.filter=all_equal has no meaning for algorithm.name=sft; leave it at none
SFT | train.epochs_per_step=2
    train.epochs_per_step=2 has no meaning for algorithm.name=sft; leave it at 1
SFT | evaluate.samples=4
    evaluate.samples=4 has no meaning for algorithm.name=sft; leave it at 1
DPO | evaluate.correct_at=0.5
    evaluate.correct_at=0.5 has no meaning for algorithm.name=dpo; leave it at 1.0
reward={function: null, functions: {a: {function: exact_match, weight: 0}, b: {function: math_verify, weight: 0.0}}}
    every weight of reward.functions.a.function, reward.functions.b.function is 0: no response would earn anything; give
evaluate.by=source
    evaluate.by=source has nothing to evaluate on; set evaluate.path, or evaluate=null to evaluate nothing
SFT | evaluate.size=3
    evaluate.size=3 has nothing to evaluate on; set evaluate.path, or evaluate=null to evaluate nothing
DPO | train.tokens_per_micro_batch=127
    train.tokens_per_micro_batch=127 cannot hold the two sequences of a sample, each of model.context_length=64 tokens;
DPO | placement.mode=dynamic
    placement.mode=dynamic has no meaning for algorithm.name=dpo; use colocated
DPO | cluster.slots=2 | train.batch_size=7
    train.batch_size=7 is not divisible by 2 data-parallel rank(s) x train.updates_per_step=1; use 6 or 8
algorithm.name=sft
    reward.function has no meaning for algorithm.name=sft; unset it
reward.function=null
    reward.function is not set; set it to FILE.py:NAME, package.module:NAME or a built-in
reward.function=null | data.path=null | data.tasks=[{name: chain_sum}]
    reward.function is not set; set it to reasoning_gym
reward.functions.a.function=x:y
    reward.function=exact_match and reward.functions are both set; keep one of them
reward.function=no_such.py:f
    reward.function=no_such.py:f: no such file, from
JUDGE | reward.models.j.template=Is it right?
    reward.models.j.template='Is it right?' has no {response}; put it where the response goes
JUDGE | reward.models.j.template={response} {anwser}
    reward.models.j.template names {anwser}, which is no field; did you mean {answer}?
JUDGE | reward.models.j.template={response} {x}
    reward.models.j.template names {x}, which is no field; use {question}, {response}, {answer}
JUDGE | reward.models.j.parser=no_such.py:f
    reward.models.j.parser=no_such.py:f: no such file, from
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
data.path=no_such.jsonl
    data.path=no_such.jsonl: no such file or folder
evaluate.path=[no/*.jsonl]
    evaluate.path=no/*.jsonl: no such file or folder
evaluate.every=2
    evaluate.every=2 has nothing to evaluate on; set evaluate.path, or evaluate=null to evaluate nothing
resume=no_such
    resume=no_such: no such checkpoint; use never, auto or the path of one
cluster.device=cuda
    cluster.device=cuda but this machine shows no GPU
train.optimizer.min_learning_rate=1
    train.optimizer.min_learning_rate=1.0 is over train.optimizer.learning_rate=1e-06; lower it
train.optimizer.betas=[0.9, 1]
    train.optimizer.betas=[0.9, 1.0]: 1.0 is not from 0 to below 1
weights.dir=x
    weights.dir=x needs weights.transport=disk, not shm; unset it
model.reference=no_such | algorithm.kl.coefficient=0.1
    model.reference=no_such: no such folder; name a Hugging Face model folder
DPO | model.reference=no_such
    model.reference=no_such: no such folder; name a Hugging Face model folder
algorithm.name=ppo | critic.path=no_such
    critic.path=no_such: no such folder; name a Hugging Face model folder
algorithm.name=distillation | model.teacher=no_such
    model.teacher=no_such: no such folder; name a Hugging Face model folder
model.path=no_such
    model.path=no_such: no such folder; name a Hugging Face model folder
"""
"""Words, then how the one line of the error begins. SFT, DPO, TEACHER and JUDGE stand for the words of those names."""


def broken():
    lines = BROKEN.strip().splitlines()
    for words, said in zip(lines[::2], lines[1::2], strict=True):
        words = words.replace("SFT", " | ".join(SFT)).replace("DPO", " | ".join(DPO)).replace("TEACHER", TEACHER)
        yield words.replace("JUDGE", JUDGE).split(" | "), said.strip()


@pytest.mark.parametrize(("words", "said"), list(broken()))
def test_broken_rules(settings, tiny, words, said):
    (line,) = refused(settings(tiny, *(word.replace("TINY", tiny) for word in words)))
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
    words = ["cluster.slots=4", "train.optimizer.warmup_steps=8", "train.epochs_per_step=2", "rollout.top_p=0.9"]
    words += ["train.offload=true"]
    warnings = check(settings(tiny, *words))
    expected = ["cluster.slots=4", "train.offload=true", "train.optimizer.warmup_steps=8", "rollout.top_p"]
    assert [w.split()[0] for w in warnings] == expected
    assert check(settings(tiny, "train.optimizer.warmup_steps=7", "train.epochs_per_step=2")) == []
    alone = ["algorithm.name=ppo", "critic.warmup_steps=2", "train.optimizer.warmup_steps=2"]  # 2 of 4 steps are left
    (line,) = check(settings(tiny, *alone))
    assert line == "train.optimizer.warmup_steps=2 does not end within the run's 2 updates"


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
    assert said() == ": no model.safetensors; save the model with save_pretrained"
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-1-of-1.safetensors"}}')
    assert said() == ": weight file(s) missing: model-1-of-1.safetensors"
    (folder / "model.safetensors.index.json").unlink()
    weights.write_bytes(whole)
    spoil(folder, "config.json", architectures=["GPT2LMHeadModel"])
    assert said() == (f": architecture GPT2LMHeadModel is not supported; use one of {TRAINED}")
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


def test_models_beside_the_policy(settings, tiny, tmp_path):
    ppo, other = "algorithm.name=ppo", save_tiny(tmp_path / "other", "llama", num_attention_heads=2, labels=1)
    assert check(settings(tiny, ppo, f"critic.path={other}")) == []  # a value head, other sizes, another family
    assert refused(settings(tiny, ppo, f"critic.path={other}", "train.tp=4", "cluster.slots=4", "train.pp=1"))[-1] == (
        f"train.tp=4 does not divide 2 attention heads and 2 key/value heads of critic.path={other}; use 1 or 2"
    )
    spoil(tmp_path / "other", "config.json", id2label={"0": "a", "1": "b"}, max_position_embeddings=32)
    assert refused(settings(tiny, ppo, f"critic.path={other}")) == [
        f"critic.path={other}: its head has 2 labels; a reward model has one, whose logit is the reward"
    ]
    spoil(tmp_path / "other", "config.json", id2label={"0": "a"})
    tokenizer = json.loads((tmp_path / "other" / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"] |= {"a": 6, "b": 5}  # <pad> <eos> <bos>, line break, blank, a, b
    (tmp_path / "other" / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert refused(settings(tiny, ppo, f"critic.path={other}")) == [
        f"critic.path={other}: its tokenizer is not the policy's: token 5 is 'b', and 'a' in model.path={tiny}; "
        "use a model with the same tokenizer",
        f"critic.path={other} has max_position_embeddings=32, under model.context_length=64; use at most 32",
    ]
    shutil.copy(f"{tiny}/tokenizer.json", tmp_path / "other")
    spoil(tmp_path / "other", "tokenizer.json", added_tokens=[{"id": 91, "content": "<new>"}])
    (line, _) = refused(settings(tiny, ppo, f"critic.path={other}"))
    assert ": token 91 is '<new>', and missing in model.path=" in line
    (tmp_path / "other" / "tokenizer.json").unlink()  # then the number of entries has to do
    assert len(refused(settings(tiny, ppo, f"critic.path={other}"))) == 1


def test_classifiers_are_trained_as_reward_models_only(settings, tmp_path):
    path = save_tiny(tmp_path / "scorer", "qwen2", labels=1)
    score = ["algorithm.name=reward_model", "reward.function=null"]
    assert check(settings(path, *score, "data.margin_key=m")) == []
    assert model_facts(path, scalar=True).tied
    refusal = f"model.path={path}: architecture Qwen2ForSequenceClassification is not supported; use one of {TRAINED}"
    assert refused(settings(path)) == [refusal]
    assert refused(settings(path, *SFT)) == [refusal]
    spoil(tmp_path / "scorer", "config.json", id2label={"0": "a", "1": "b", "2": "c"})
    assert refused(settings(path, *score)) == [
        f"model.path={path}: its head has 3 labels; a reward model has one, whose logit is the reward"
    ]
    spoil(tmp_path / "scorer", "config.json", architectures=["Qwen2ForTokenClassification"])
    scoring = TEXT.replace("Gemma3", "Gemma3Text").replace("CausalLM", "SequenceClassification")
    assert refused(settings(path, *score))[0].endswith(f"is not supported; use one of {TRAINED}, {scoring}")


@pytest.mark.parametrize(
    ("architecture", "tie"), [("qwen3", True), ("qwen2", False), ("llama", True), ("gemma2", True), ("phi3", False)]
)
def test_facts_are_those_transformers_sees(tmp_path, architecture, tie):
    model = tiny_model(architecture, tie=tie)
    path = save_tiny(tmp_path / "m", architecture, tie=tie)
    found = model_facts(path)
    assert (found.layers, found.heads, found.kv_heads, found.hidden_size) == (2, 4, 2, model.config.hidden_size)
    assert (found.vocab_size, found.embedding_rows, found.max_positions) == (96, 96, 512)
    assert tokenizer_size(path) == 91


def test_kernels_of_attention_that_cannot_do_what_a_model_needs(settings, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("yatt.config.rules.local_gpus", lambda: 1)
    capped = save_tiny(tmp_path / "gemma2", "gemma2")
    wide = ["train.attention=varlen", "model.dtype=float32"]
    assert refused(settings(tiny, *wide)) == [
        "train.attention=varlen takes model.dtype=bfloat16, not float32; use auto"
    ]
    assert refused(settings(capped, wide[0])) == [
        "train.attention=varlen cannot bound scores, as a Gemma2 does; use auto"
    ]
    for kernel in ("flex", "buckets", "auto"):
        check(settings(capped, f"train.attention={kernel}"))
    check(settings(tiny, wide[0]))


def test_visible_gpus(monkeypatch):
    monkeypatch.setattr(facts.os, "listdir", lambda _: ["nvidia0", "nvidia1", "nvidiactl", "null"])
    for visible, count in ((None, 2), ("", 0), ("-1", 0), ("1", 1), ("0,1", 2), ("0,1,2", 2)):
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert local_gpus() == count

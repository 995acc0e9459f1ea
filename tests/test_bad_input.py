"""Bad input as a user meets it: a line per mistake with field, value and remedy, exit status 2, and nothing started."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tiny_models import save_tiny
from transformers import AutoConfig

from yatt import checksums, cli
from yatt.faces import train as train_face
from yatt.training.identity import DESCRIPTION, identity, shard_names

BEGINS = "runs/run: importing what it takes"
REWARDS = """
import time

def good(response): return len(response)
def none(response): return None
def nan(response): return float("nan")
def text(response): return "1.0"
def parts(response): return {"accuracy": 1.0}
def misspelt(respnse): return 1.0
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two Qwen3 models: 4 heads, 2 key/value heads, 96 entries, 91 tokens; the other one has a wider MLP."""
    folder = tmp_path_factory.mktemp("models")
    save_tiny(folder / "tiny")
    save_tiny(folder / "other", intermediate_size=256)
    return folder


@pytest.fixture
def here(models, tmp_path, monkeypatch):
    """The working directory of a user: a config that is right, and things to get wrong."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("yatt.config.rules.local_gpus", lambda: 0)
    shutil.copytree(models / "tiny", "model")
    Path("rows.jsonl").write_text(
        "".join(json.dumps({"prompt": f"{i}+1=", "answer": str(i + 1)}) + "\n" for i in range(4))
    )
    Path("rewards.py").write_text(REWARDS)
    Path("broken.py").write_text("import no_such_library\n")
    config = {
        "model": {"path": "model", "dtype": "float32", "context_length": 64},
        "data": {"path": "rows.jsonl"},
        "reward": {"function": "rewards.py:good"},
        "rollout": {"n": 2, "max_tokens": 16},
        "train": {"steps": 2, "batch_size": 8},
        "cluster": {"device": "cpu", "slots": 1},
    }
    Path("config.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


@pytest.fixture(autouse=True)
def started(monkeypatch):
    """What reached the point where engines start. Nothing may."""
    reached = []

    async def begin(config, run, checkpoints, resume, progress, began):
        reached.append(config)
        return 0

    monkeypatch.setattr(train_face, "_train", begin)
    monkeypatch.setattr("ray.init", lambda *_, **__: pytest.fail("Ray was started"))
    return reached


@pytest.fixture
def yatt(here, monkeypatch, capsys):
    """Runs a command line; returns its exit status, its lines on stdout and on stderr."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["yatt", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return ended.value.code or 0, out.splitlines(), err.splitlines()

    return run


@pytest.fixture
def refused(yatt, started):
    """Runs a command line that must be refused; returns its lines, less `yatt: `."""

    def run(*words):
        status, _, lines = yatt(*words)
        assert status == 2, lines
        assert not started
        assert lines and all(line.startswith("yatt: ") for line in lines), lines
        return [line.removeprefix("yatt: ") for line in lines]

    return run


@pytest.fixture
def refused_training(refused):
    def run(*words):
        lines = refused("train", "config.yaml", *words)
        assert not Path("runs").exists(), "a run folder was made"
        return lines

    return run


def test_the_config_itself_is_right(yatt, started):
    assert yatt("train", "config.yaml") == (0, [BEGINS], [])
    assert len(started) == 1


SETTINGS = [
    ("train.batchsize=3", "unknown setting train.batchsize; did you mean train.batch_size?"),
    ("train.steps=many", "train.steps='many' is not a whole number >= 1"),
    ("train.steps", "'train.steps' is not a setting; write key=value, such as train.steps=100"),
    ("rollout.filter=some", "rollout.filter=some is not one of none, all_equal, band; use FILE.py:NAME for your own"),
    ("rollout.filter=none.py:f", "rollout.filter=none.py:f: no such file, from "),
    ("rollout.filter=rewards.py:nothing", "rollout.filter=rewards.py:nothing: rewards.py has no 'nothing'"),
    ("rollout.filter=band", "rollout.filter=band needs rollout.reward_band, such as [0.2, 0.8]; it is None"),
    ("rollout.reward_band=[0,1]", "rollout.reward_band=[0.0, 1.0] is only for rollout.filter=band, not none; unset it"),
    ("data.path=none.jsonl", "data.path=none.jsonl: no such file or folder, from "),
    ("data.path=empty.jsonl", "data.path='empty.jsonl' holds no rows; it needs at least one"),
    ("data.path=rewards.py", "data.path='rewards.py' has no known format; use .jsonl, .json, .csv or "),
    ("model.path=none", "model.path=none: no such folder; name a Hugging Face model folder"),
    ("train.tp=3 cluster.slots=3", "train.tp=3 does not divide 4 attention heads and 2 key/value heads and 128 MLP "),
    ("train.updates_per_step=3", "train.batch_size=8 is not divisible by train.updates_per_step=3; use 6 or 9"),
    ("evaluate.size=4", "evaluate.size=4 has nothing to evaluate on; set evaluate.path, or evaluate=null to evaluate "),
    (
        "evaluate.path=rows.jsonl evaluate.by=topic",
        "evaluate.by=topic: no held-out row has this column among its metadata",
    ),
    ("log.trackers=[wandbb]", "log.trackers='wandbb' is not a known tracker; did you mean 'wandb'?"),
    ("reward.function=none.py:f", "reward.function=none.py:f: no such file, from "),
    (
        "reward.function=no_such_package.x:f",
        "reward.function=no_such_package.x:f does not import: ModuleNotFoundError: ",
    ),
    (
        "reward.function=exact_mach",
        "reward.function=exact_mach is not built in (did you mean 'exact_match'?); use ",
    ),
    (
        "algorithm.name=ppo algorithm.kl.place=reward",
        "algorithm.kl.place=reward needs a reference, and algorithm.kl.coefficient=0 loads none; use a coefficient ",
    ),
    ("algorithm.gae_lambda=0.9", "algorithm.gae_lambda=0.9 is not a setting of grpo; ppo has it; leave it at 1.0"),
    ("algorithm.loss=none.py:f", "algorithm.loss=none.py:f: no such file, from "),
    ("algorithm.loss=rewards.py:godo", "algorithm.loss=rewards.py:godo: rewards.py has no 'godo' (did you mean 'good'"),
    ("algorithm.advantage=broken.py:f", "algorithm.advantage=broken.py:f does not import: ModuleNotFoundError: No "),
    (
        "data.prompt_key=question",
        "data.prompt_key=question: no column 'question' in the training data (it has 'prompt', 'answer'); did you ",
    ),
    ("data.answer_key=anwser", "data.answer_key=anwser: no column 'anwser' in the training data (it has "),
]


@pytest.mark.parametrize(("words", "said"), SETTINGS)
def test_a_wrong_setting(refused_training, words, said):
    Path("empty.jsonl").write_text("\n")
    (line,) = refused_training(*words.split())
    assert line.startswith(said)


def test_a_wrong_key_and_a_wrong_type_in_the_file(refused_training):
    config = yaml.safe_load(Path("config.yaml").read_text())
    config["train"] |= {"step": 3, "batch_size": "8"}
    Path("config.yaml").write_text(yaml.safe_dump(config))
    assert refused_training() == [
        "config.yaml: train.batch_size='8' is not a whole number >= 1; write 8",
        "config.yaml: unknown setting train.step; did you mean train.steps?",
    ]


def test_text_the_tokenizer_cannot_read(refused_training):
    tokenizer = json.loads(Path("model/tokenizer.json").read_text())
    tokenizer["model"]["unk_token"] = "none of its tokens"
    Path("model/tokenizer.json").write_text(json.dumps(tokenizer))
    cut = b'{"prompt": "1+1=", "answer": "\\ud83d"}\n{"prompt": "1+\\ud83d"}\n'
    Path("rows.jsonl").write_bytes(cut + '{"prompt": "1+é"}\n{"prompt": "1+1=\u20ac"}\n'.encode() * 2)
    (line,) = refused_training()
    half = "holds a lone surrogate ('\\ud83d'), half a character, as text that was cut; mend or remove it"
    unknown = "the tokenizer has no token for"
    assert line == (
        f"6 bad row(s) of 6 looked at: rows.jsonl:1: column 'answer' {half}; rows.jsonl:2: {half}; "
        f"rows.jsonl:3: {unknown} 'é' (also rows.jsonl:5); rows.jsonl:4: {unknown} '€' (also rows.jsonl:6). "
        "Mend them or set data.bad_rows=skip"
    )


def test_ends_that_cannot_be_read(refused_training):
    described = json.loads(Path("model/generation_config.json").read_text())
    Path("model/generation_config.json").write_text(json.dumps(described | {"eos_token_id": "<eos>"}))
    assert refused_training() == [
        "model/generation_config.json: eos_token_id=['<eos>'] is not a token id or a list of them; mend it"
    ]


def test_a_config_that_is_not_there(refused):
    assert refused("train", "none.yaml") == ["cannot read the config none.yaml: No such file or directory"]


def test_several_mistakes_have_a_line_each(refused_training):
    assert len(refused_training("train.updates_per_step=3", "data.path=none.jsonl", "log.trackers=[x]")) == 3


def test_a_model_folder_without_weights_or_tokenizer_or_with_another_vocabulary(refused_training):
    shutil.move("model/tokenizer.json", "tokenizer.json")
    assert refused_training() == ["model.path=model: it has no readable tokenizer.json"]
    tokenizer = json.loads(Path("tokenizer.json").read_text())
    tokenizer["added_tokens"].append(tokenizer["added_tokens"][0] | {"id": 120, "content": "<new>"})
    Path("model/tokenizer.json").write_text(json.dumps(tokenizer))
    (line,) = refused_training()
    assert line.startswith("model.path=model: its tokenizer has 121 tokens but vocab_size=96; resize the model's")
    shutil.move("tokenizer.json", "model/tokenizer.json")
    Path("model/model.safetensors").unlink()
    assert refused_training() == ["model.path=model: no model.safetensors; save the model with save_pretrained"]


def test_prompts_longer_than_the_context(refused_training, yatt, started):
    rows = Path("rows.jsonl").read_text().splitlines()
    long = json.dumps({"prompt": "1" * 60, "answer": "1"})
    Path("rows.jsonl").write_text("\n".join([rows[0], long, *rows[1:], long]) + "\n")
    (line,) = refused_training()
    assert line.startswith("2 bad row(s) of 6 looked at: rows.jsonl:2: the prompt has ")
    assert line.endswith(
        " tokens; the most is 48 (model.context_length=64 less 16 for the response) (also rows.jsonl:6). "
        "Mend them or set data.bad_rows=skip"
    )

    status, out, err = yatt("train", "config.yaml", "data.bad_rows=skip")
    assert (status, err, len(started)) == (0, [], 1)
    (warning,) = [line for line in out if line.startswith("warning: ")]
    assert warning.startswith(
        "warning: training data: 2 bad row(s) will be skipped, the first: rows.jsonl:2: the prompt"
    )


@pytest.mark.parametrize(
    ("reward", "said"),
    [
        ("broken.py:f", " does not import: ModuleNotFoundError: No module named 'no_such_library' (broken.py, line 1)"),
        ("rewards.py:godo", "rewards.py has no 'godo' (did you mean 'good'?)"),
        ("rewards.py:none", " returned None, not a number; return a number or a dict of numbers with 'reward'"),
        ("rewards.py:text", " returned '1.0', not a number; return a number or a dict of numbers with 'reward'"),
        ("rewards.py:nan", " returned nan; a reward must be finite, and a float32 must hold it"),
        ("rewards.py:parts", " returned a dict without 'reward' (it has accuracy)"),
        (
            "rewards.py:misspelt",
            " takes none of prompt, response, answer, metadata; name a parameter after what it needs",
        ),
    ],
)
def test_a_reward_that_cannot_be_used(refused_training, reward, said):
    (line,) = refused_training(f"reward.function={reward}")
    assert line.startswith("reward.function=") and reward in line and line.endswith(said)


def test_a_judge_nobody_serves(refused_training, monkeypatch):
    monkeypatch.setattr("yatt.reward.remote.PROBE_SECONDS", 2.0)
    judge = '{url: "http://127.0.0.1:9/v1", model: m, parser: number, template: "{response} {answer}"}'
    (line,) = refused_training(f"reward.models.j={judge}")
    assert line.startswith("reward.models.j.url=http://127.0.0.1:9/v1: cannot be reached: ")
    (line,) = refused_training(f"reward.models.j={judge}", "reward.models.j.url=judge-host:8000")
    assert line == "reward.models.j.url='judge-host:8000' is not text or null matching ^https?://"
    (line,) = refused_training(f"reward.models.j={judge}", "reward.models.j.parser=number:high")
    assert line == "reward.models.j.parser=number:high: 'high' is no range; write number:0..10"


def write_rows(file, *rows):
    Path(file).write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_preference_with_one_response_or_two_that_are_equal(refused_training):
    good = {"prompt": "1+1=", "chosen": "2", "rejected": "3"}
    write_rows("pairs.jsonl", good | {"rejected": "2"}, good, {"prompt": "1+1=", "chosen": "2"})
    for name in ("dpo", "ipo", "reward_model"):
        assert refused_training(f"algorithm.name={name}", "reward.function=null", "data.path=pairs.jsonl") == [
            "2 bad row(s) of 3 looked at: pairs.jsonl:1: chosen and rejected are the same; there is nothing to prefer; "
            "pairs.jsonl:3: no column 'rejected' (it has 'prompt', 'chosen'); see data.rejected_key. "
            "Mend them or set data.bad_rows=skip"
        ]


def test_labels_that_say_nothing(refused_training):
    row = {"prompt": "1+1=", "response": "2", "label": "good"}
    kto = ("algorithm.name=kto", "reward.function=null", "data.path=labels.jsonl")
    write_rows("labels.jsonl", row, row | {"prompt": "2", "label": True})
    assert refused_training(*kto) == [
        "1 bad row(s) of 2 looked at: labels.jsonl:1: column 'label' holds 'good'; a label is true or false, 1 or 0, "
        "or 1 or -1. Mend them or set data.bad_rows=skip"
    ]
    write_rows("labels.jsonl", row)
    assert refused_training(*kto) == [
        "labels.jsonl:1 is the only row; a labelled response needs another row's beside it"
    ]


def test_a_chat_whose_template_has_no_assistant_mask(refused_training, yatt, started):
    turns = [{"role": role, "content": "1"} for role in ("user", "assistant", "user", "assistant")]
    write_rows("talks.jsonl", *[{"messages": turns}] * 8)
    words = ("algorithm.name=sft", "reward.function=null", "data.path=talks.jsonl")
    template = Path("model/chat_template.jinja")
    kept = template.read_text()
    template.write_text(kept.replace("m['content']", "m['content'] | replace('1', 'one')"))
    assert refused_training(*words, "data.bad_rows=skip") == [
        "model.path=model: its chat template has no assistant mask (message 2 does not stand as it is after what comes "
        "before it); put {% generation %} and {% endgeneration %} around the assistant's turns in it, or give talks of "
        "one answer"
    ]
    template.write_text(kept)
    assert yatt("train", "config.yaml", *words) == (0, [BEGINS], []) and started


def other_model(models, **changes):
    shutil.copytree(models / "tiny", "judge", dirs_exist_ok=True)
    described = json.loads(Path("judge/config.json").read_text()) | changes
    Path("judge/config.json").write_text(json.dumps(described))


def test_a_reward_model_that_is_no_classifier_of_one_label(refused_training, models):
    judge = "reward.models.j={path: judge, kind: classifier}"
    other_model(models)
    assert refused_training(judge) == [
        "reward.models.j.path=judge: architecture Qwen3ForCausalLM is no classifier judge; set its kind to generative"
    ]
    other_model(models, architectures=["Qwen3ForSequenceClassification"])
    refusal = "its head has 2 labels; a reward model has one, whose logit is the reward"
    assert refused_training(judge) == [f"reward.models.j.path=judge: {refusal}"]
    trained = ("algorithm.name=reward_model", "reward.function=null", "model.path=judge")
    assert refused_training(*trained) == [f"model.path=judge: {refusal}"]


def test_a_critic_with_another_tokenizer(refused_training, models):
    other_model(models)
    tokenizer = json.loads(Path("judge/tokenizer.json").read_text())
    tokenizer["model"]["vocab"] |= {"0": 91, "1": 57}
    Path("judge/tokenizer.json").write_text(json.dumps(tokenizer))
    here = json.loads(Path("model/tokenizer.json").read_text())["model"]["vocab"]
    first = min(here["0"], here["1"], 57)
    (line,) = refused_training("algorithm.name=ppo", "critic.path=judge")
    assert line.startswith(f"critic.path=judge: its tokenizer is not the policy's: token {first} is ")
    assert line.endswith(" in model.path=model; use a model with the same tokenizer")


def test_no_free_port(refused_training, monkeypatch):
    class Full(socket.socket):
        def bind(self, address):
            raise OSError(98, "Address already in use")

    monkeypatch.setattr("yatt.training.meeting.socket.socket", Full)
    (line,) = refused_training()
    assert line.startswith("cluster: no free TCP port on this machine (Address already in use); end programs that")


def checkpoint(run, step, model):
    """A checkpoint as a run of `model` leaves it, but for what is in the shards."""
    folder = Path(run, "checkpoints", f"step-{step}")
    (folder / "trainer").mkdir(parents=True)
    shard, description = (folder / "trainer" / name for name in shard_names(0))
    shard.write_bytes(b"12345678")
    stated = checksums.entry(shard)
    told = {"bytes": stated["bytes"], "checksum": stated[checksums.OWN], "tensors": {}}
    checksums.write_json(description, told)
    described = identity(AutoConfig.from_pretrained(model), "float32")
    checksums.write_json(folder / "trainer" / DESCRIPTION, {"model": described, "state": {}, "shards": 1})
    (folder / "state.json").write_text("{}")
    shutil.copy("config.yaml", folder / "config.yaml")
    vouched = [file for file in folder.rglob("*") if file.is_file() and file != shard]
    files = {str(file.relative_to(folder)): checksums.entry(file) for file in vouched}
    told = {"step": step, "model": str(model), "contents": {}, "files": files}
    checksums.write_json(folder / "complete.json", told)
    return folder


def test_a_checkpoint_of_another_model(refused, yatt, started, models):
    other = checkpoint("runs/other", 1, models / "other")
    (line,) = refused("train", "config.yaml", f"resume={other}")
    assert f"{other}/trainer is of another model: intermediate_size=256 there, 128 in model.path; point " in line
    assert yatt("train", "config.yaml", f"resume={checkpoint('runs/same', 1, 'model')}")[0] == 0 and started


def test_half_written_checkpoints(refused, yatt, started):
    """Named, it is refused; `resume=auto` passes over it where it is known as such."""
    first, last = checkpoint("runs/run", 1, "model"), checkpoint("runs/run", 2, "model")
    (last / "trainer" / shard_names(0)[0]).write_bytes(b"1234")
    (line,) = refused("train", "config.yaml", f"resume={last}")
    assert f"resume={last} is broken: " in line and "has 4 bytes, not 8" in line
    (last / "trainer" / DESCRIPTION).unlink()
    (line,) = refused("train", "config.yaml", f"resume={last}")
    assert f"resume={last} is broken: " in line and f"{DESCRIPTION} is missing" in line
    (last / "complete.json").unlink()
    (line,) = refused("train", "config.yaml", f"resume={last}")
    assert line.startswith(f"resume={last}") and "complete.json is missing" in line
    assert refused("train", "config.yaml", "resume=runs/run/checkpoints/step-7") == [
        "resume=runs/run/checkpoints/step-7: no such checkpoint; use never, auto or the path of one"
    ]
    assert yatt("train", "config.yaml", "resume=auto")[0] == 0 and started
    assert first.is_dir()


def test_a_folder_that_holds_a_run_already(refused):
    checkpoint("runs/run", 1, "model")
    assert refused("train", "config.yaml") == [
        "run.name=run: runs/run holds a run already; resume=auto goes on with it, --overwrite begins anew, another "
        "run.name keeps both"
    ]


def test_a_run_in_use_by_another_process(refused):
    Path("runs/run").mkdir(parents=True)
    hold = "import fcntl, os; f = open('runs/run/.lock', 'w'); fcntl.flock(f, fcntl.LOCK_EX); "
    hold += "f.write(str(os.getpid())); f.flush(); print(); input()"
    holder = subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        holder.stdout.readline()
        assert refused("train", "config.yaml", "resume=auto") == [
            f"run.name=run: runs/run is in use by process {holder.pid}; wait until it ends, or choose another run.name"
        ]
    finally:
        holder.communicate(b"\n", timeout=30)


def test_eval_and_export_without_a_checkpoint(refused):
    for command in (("eval", "runs/none"), ("export", "runs/none", "out")):
        assert refused(*command) == ["runs/none: there is no such run folder or checkpoint"]
    Path("runs/empty").mkdir(parents=True)
    for command in (("eval", "runs/empty"), ("export", "runs/empty", "out")):
        assert refused(*command) == [
            "runs/empty: no complete checkpoint in runs/empty/checkpoints; train with checkpoint.every"
        ]
    assert not Path("out").exists()


def test_eval_of_a_run_without_held_out_rows(refused):
    folder = checkpoint("runs/run", 1, "model")
    assert refused("eval", "runs/run") == [
        f"{folder.resolve()}: its run has no held-out rows; give data.path=FILE, or evaluate.size=N to make some"
    ]


def test_export_and_init_into_a_folder_that_is_not_empty(refused):
    checkpoint("runs/run", 1, "model")
    assert refused("export", "runs/run", "model") == ["model: the folder is not empty; name a new one"]
    before = sorted(os.listdir())
    assert refused("init", ".", "--model", "model") == [". exists and is not an empty folder; name a new one"]
    assert refused("init", "new", "--model", "none")[0].startswith("--model=none: no such folder; name a Hugging Face")
    assert sorted(os.listdir()) == before

"""Defaults < YAML < words; every mistake one line that names setting, value and remedy."""

import subprocess
import sys

import pytest

from yatt.config.load import REQUIRED, describe, load_config, save_config
from yatt.errors import ConfigError

NO_NAME = "is no name: letters, digits, '.', '_' and '-', of which the first is no '.' or '-' and the last no '.'"
NEEDED = ["model.path=m", "train.steps=4", "train.batch_size=8"]


def refused(*words, path=None, needed=NEEDED):
    with pytest.raises(ConfigError) as caught:
        load_config(path, [*needed, *words])
    assert caught.value.exit_status == 2
    return str(caught.value)


def written(tmp_path, text):
    file = tmp_path / "c.yaml"
    file.write_text(text)
    return str(file)


def test_words_win_over_yaml_and_yaml_over_defaults(tmp_path):
    file = written(
        tmp_path, "model: {path: m}\ntrain:\n  steps: 5\n  batch_size: 8\n  optimizer: {learning_rate: 1e-3}\ndata:\n"
    )
    config = load_config(file, ["train.steps=6", "rollout.engine_args.max_num_seqs=4", "model.reference=null"])
    assert (config.train.steps, config.train.batch_size, config.train.tp) == (6, 8, 1)
    assert config.train.optimizer.learning_rate == 0.001
    assert config.rollout.engine_args == {"max_num_seqs": 4}


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("run.name=2024", "2024"),
        ("run.name=1e3", "1e3"),
        ("run.name='7'", "7"),
        ("data.system_prompt=Answer: now", "Answer: now"),
        ("data.path=[a, b]", ["a", "b"]),
        ("data.path=null", None),
        ("train.optimizer.eps=1e-4", 0.0001),
        ("train.optimizer.eps=1E-04", 0.0001),
        ("train.optimizer.betas=[0.5,.9]", (0.5, 0.9)),
        ("rollout.stop=[</answer>]", ["</answer>"]),
        ("rollout.engine_args={a: {b: 2e-3}}", {"a": {"b": 0.002}}),
        ("rollout.sleep=false", False),
        ("train.steps=0100", 100),
        ("train.steps=+08", 8),
        ("train.steps=0o17", 15),
        ("train.steps=0x1F", 31),
        ("cluster.step_timeout=1.", 1.0),
        ("cluster.step_timeout=.5", 0.5),
        ("run.name=2026-11-28", "2026-11-28"),
        ("run.name=on", "on"),
        ("data.answer_key=no", "no"),
        ("data.system_prompt=Solve # it", "Solve # it"),
        ("data.system_prompt='Solve # it'", "Solve # it"),
        ("data.system_prompt=#1", "#1"),
        ("data.system_prompt=~", None),
        ("rollout.stop=[no, '010', y]", ["no", "010", "y"]),
        ("data.path=[yes.jsonl, no]", ["yes.jsonl", "no"]),
    ],
)
def test_values_of_words(word, value):
    config = load_config(None, [*NEEDED, word])
    for part in word.partition("=")[0].split("."):
        config = getattr(config, part)
    assert config == value


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("rollout.temprature=1", "unknown setting rollout.temprature; did you mean rollout.temperature?"),
        ("kl.coefficient=1", "unknown setting kl.coefficient; did you mean algorithm.kl.coefficient?"),
        ("steps=1", "unknown setting steps; did you mean train.steps?"),
        ("--train.tp=1", "unknown setting --train.tp; did you mean train.tp?"),
        ("zzzzzz=1", "unknown setting zzzzzz; `yatt init` writes all there are"),
        ("data.tasks=[{name: a, wight: 2}]", "unknown setting data.tasks[0].wight; did you mean data.tasks[].weight?"),
        ("train.tp=two", "train.tp='two' is not a whole number >= 1"),
        ("train.tp=0", "train.tp=0 is not a whole number >= 1"),
        ("train.tp=1.5", "train.tp=1.5 is not a whole number >= 1"),
        ("train.tp=true", "train.tp=true is not a whole number >= 1"),
        ("train.tp=", "train.tp=null is not a whole number >= 1"),
        ("rollout.top_p=2", "rollout.top_p=2 is not a number > 0 and <= 1"),
        ("rollout.temperature=.nan", "rollout.temperature=nan is not a number >= 0"),
        (
            "algorithm.name=gpro",
            "algorithm.name='gpro' is not one of grpo, dr_grpo, dapo, gspo, cispo, sapo, gpg, gdpo, rloo, opo, remax, "
            "reinforce_plus_plus, reinforce_plus_plus_baseline, ppo, distillation, sft, reward_model, dpo, cdpo, ipo, "
            "kto",
        ),
        ("rollout.sleep=maybe", "rollout.sleep='maybe' is not true or false"),
        ("data.path=[1, 2]", "data.path=[1, 2] is not text or a list of texts or null; write ['1', '2']"),
        ("rollout.stop=abc", "rollout.stop='abc' is not a list of texts; write [abc]"),
        ("rollout.stop=no", "rollout.stop='no' is not a list of texts; write ['no']"),
        ("rollout.stop=[1]", "rollout.stop=[1] is not a list of texts; write ['1']"),
        ("log.trackers=wandb", "log.trackers='wandb' is not a list of texts; write [wandb]"),
        ("train.steps=1e3", "train.steps=1000.0 is not a whole number >= 1; write 1000"),
        ("train.steps=1_000", "train.steps='1_000' is not a whole number >= 1; write 1000"),
        ("train.steps='5'", "train.steps='5' is not a whole number >= 1; write 5"),
        ("train.steps=0b11", "train.steps='0b11' is not a whole number >= 1"),
        ("train.steps=1e-3", "train.steps=0.001 is not a whole number >= 1"),
        ("train.steps='-5'", "train.steps='-5' is not a whole number >= 1"),
        ("cluster.step_timeout=1:30:00", "cluster.step_timeout='1:30:00' is not a number > 0; write 5400"),
        ("train.steps=2026-11-28", "train.steps='2026-11-28' is not a whole number >= 1"),
        ("rollout.sleep=off", "rollout.sleep='off' is not true or false; write false"),
        (
            "train.steps=!!int 08x",
            "train.steps=!!int 08x cannot be read as YAML: '08x' is no int of YAML 1.2; quote the value",
        ),
        ("train.optimizer.betas=[.9]", "train.optimizer.betas=[0.9] is not a list of 2 numbers"),
        ("data.tasks=chain_sum", "data.tasks='chain_sum' is not a list of sections"),
        (
            "data.tasks=[{weight: 1}]",
            "data.tasks[0].name is not set and has no default; set data.tasks[0].name=VALUE (text)",
        ),
        ("run.name=a/b", f"run.name='a/b' {NO_NAME}; use a-b"),
        ("run.name=.", f"run.name='.' {NO_NAME}; use run"),
        ("run.name=..", f"run.name='..' {NO_NAME}; use run"),
        ("run.name=-n", f"run.name='-n' {NO_NAME}; use n"),
        ("run.name=.a", f"run.name='.a' {NO_NAME}; use a"),
        ("run.name=a.", f"run.name='a.' {NO_NAME}; use a"),
        ('run.name="a\\n"', rf"run.name='a\n' {NO_NAME}; use a"),
        ("run={name: ..}", f"run.name='..' {NO_NAME}; use run"),
        (
            f"run.name={'n' * 201}",
            f"run.name='{'n' * 56}... has 201 letters; a name has at most 200, as files are named after it",
        ),
        ("reward.models={../j: {path: j}}", f"reward.models: '../j' {NO_NAME}; use j"),
        ("reward.functions={a b: {function: f.py:g}}", f"reward.functions: 'a b' {NO_NAME}; use a-b"),
        ("train=3", "train=3 is not a section of settings; did you mean train.steps=3?"),
        (
            "algorithm.kl=0.1",
            "algorithm.kl=0.1 is not a section of settings; did you mean algorithm.kl.coefficient=0.1?",
        ),
        (
            "algorithm.correction=token",
            "algorithm.correction='token' is not a section of settings; "
            "did you mean algorithm.correction.level='token'?",
        ),
        ("algorithm.kl=much", "algorithm.kl='much' is not a section of settings"),
        (
            "train.learning_rate=1e-6",
            "unknown setting train.learning_rate; did you mean train.optimizer.learning_rate?",
        ),
        (
            "train.learning_rat=1e-6",
            "unknown setting train.learning_rat; did you mean train.optimizer.learning_rate?",
        ),
        ("optimizer.betas=[0,0]", "unknown setting optimizer.betas; did you mean train.optimizer.betas?"),
        (
            "learning_rate=1",
            "unknown setting learning_rate; did you mean critic.learning_rate or train.optimizer.learning_rate?",
        ),
        (
            "model.path=$NO_SUCH/m",
            "model.path=$NO_SUCH/m: the environment has no NO_SUCH; export it, or write $$ for a $",
        ),
        ("train.steps", "'train.steps' is not a setting; write key=value, such as train.steps=100"),
        (
            "data.tasks={a",
            "data.tasks={a cannot be read as YAML: expected ',' or '}', but got '<stream end>'; quote the value",
        ),
    ],
)
def test_mistakes_in_words(word, said):
    assert refused(word) == said


def test_a_file_is_yaml_1_2(tmp_path):
    """1.1 reads 8, 5400, False, False, a date and an octal 15 here."""
    text = (
        "run: {name: 2026-11-28, dir: /runs}\nmodel: {path: on}\ndata: {answer_key: no, system_prompt: 1:30}\n"
        "train: {steps: 010, batch_size: 0o10}\nrollout: {stop: [no, =, 0b1], engine_args: {a: 017, b: 1_0, c: 1.e2}}\n"
        "cluster: {step_timeout: 1e+2}\n"
    )
    config = load_config(written(tmp_path, text), [])
    assert (config.train.steps, config.train.batch_size, config.cluster.step_timeout) == (10, 8, 100.0)
    assert (config.run.name, config.model.path, config.data.answer_key) == ("2026-11-28", str(tmp_path / "on"), "no")
    assert config.data.system_prompt == "1:30" and config.rollout.stop == ["no", "=", "0b1"]
    assert config.rollout.engine_args == {"a": 17, "b": "1_0", "c": 100.0}
    save_config(config, tmp_path / "saved.yaml")
    assert load_config(str(tmp_path / "saved.yaml"), []) == config


def test_a_shared_section_is_changed_under_one_name_alone(tmp_path):
    text = (
        "reward:\n  functions:\n    a: &f {function: /f.py:g, weight: 1.0}\n    b: *f\n    c: {<<: *f, weight: 3.0}\n"
    )
    config = load_config(written(tmp_path, text), [*NEEDED, "reward.functions.b.weight=2.0"])
    assert {key: one.weight for key, one in config.reward.functions.items()} == {"a": 1.0, "b": 2.0, "c": 3.0}
    assert {one.function for one in config.reward.functions.values()} == {"/f.py:g"}


def test_a_merged_section_may_merge_another_first(tmp_path):
    text = "z: {b: &b {<<: &a {x: 0, y: 1}, x: 1}}\nc: {<<: *b}\n"
    assert "given twice" not in refused(path=written(tmp_path, text))


def test_all_mistakes_come_at_once_one_to_a_line():
    assert refused("train.tp=0", "rollout.n=x", "rollout.nn=2", needed=NEEDED[:1]).splitlines() == [
        "unknown setting rollout.nn; did you mean rollout.n?",
        "rollout.n='x' is not a whole number >= 1",
        "train.steps is not set and has no default; set train.steps=VALUE (a whole number >= 1)",
        "train.batch_size is not set and has no default; set train.batch_size=VALUE (a whole number >= 1)",
        "train.tp=0 is not a whole number >= 1",
    ]
    assert "model.path is not set" in refused(needed=[])


def test_mistakes_of_the_file_name_the_file(tmp_path):
    file = written(tmp_path, "model: {path: m}\ntrain: {steps: 4, batch_size: 8, stps: 3, tp: -1}\n")
    assert refused("train.pp=0", path=file, needed=[]).splitlines() == [
        f"{file}: train.tp=-1 is not a whole number >= 1",
        "train.pp=0 is not a whole number >= 1",
        f"{file}: unknown setting train.stps; did you mean train.steps?",
    ]
    assert (
        refused("train.tp=1", path=file, needed=[]) == f"{file}: unknown setting train.stps; did you mean train.steps?"
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("train: {tp: 1, tp: 2}", "{file}:1 is not valid YAML: 'tp' is given twice"),
        ("a:\n  b: [1\nc: d", "{file}:3 is not valid YAML: expected ',' or ']', but got ':'"),
        ("a: 1\n---\nb: 2\n", "{file}:2 is not valid YAML: but found another document"),
        ("a:\n\tb: 1\n", "{file}:2 is not valid YAML: found character '\\t' that cannot start any token"),
        ("train: {steps: !!int ten}", "{file}:1 is not valid YAML: 'ten' is no int of YAML 1.2"),
        (
            "x: !!timestamp 2026-11-28",
            "{file}:1 is not valid YAML: could not determine a constructor for the tag 'tag:yaml.org,2002:timestamp'",
        ),
        (
            "a: \x07",
            "{file} is not valid YAML: unacceptable character #x0007: special characters are not allowed in "
            '"<unicode string>", position 3',
        ),
        ("- a\n- b", "{file} holds ['a', 'b']; it must hold sections of settings, such as `train:`"),
    ],
)
def test_files_that_hold_no_settings(tmp_path, text, said):
    file = written(tmp_path, text)
    assert refused(path=file) == said.format(file=file)


def test_a_file_that_is_not_there(tmp_path):
    assert (
        refused(path=f"{tmp_path}/no.yaml") == f"cannot read the config {tmp_path}/no.yaml: No such file or directory"
    )
    assert "Is a directory" in refused(path=str(tmp_path))


def test_a_saved_config_loads_to_an_equal_one(tmp_path):
    words = [
        "data.tasks=[{name: a, config: {x: [1, 2]}}]",
        "reward.functions.r={function: /f.py:g, weight: -1e-5}",
        "model.path=/m",
        "run.dir=/runs",
    ]
    words += ["data.system_prompt='two\n\nlines: é'", "train.optimizer.learning_rate=3e-7", "run.name=1e3"]
    words += ["data.answer_key=0o17", "data.prompt_key=1_0", "data.chosen_key=~x", "data.response_key='null'"]
    config = load_config(None, [*NEEDED, *words])
    save_config(config, tmp_path / "c.yaml")
    assert load_config(str(tmp_path / "c.yaml"), []) == config
    assert config.data.tasks[0].config == {"x": [1, 2]} and config.reward.functions["r"].weight == -1e-5


def test_every_setting_is_described():
    settings = {setting.name: setting for setting in describe()}
    assert len(settings) == len(list(describe()))  # no name twice
    assert all(setting.description for setting in settings.values())
    assert settings["train.steps"].default == REQUIRED
    assert settings["train.optimizer.betas"].takes == "a list of 2 numbers"
    assert settings["algorithm.kl.kind"][1:3] == ("one of k1, k2, k3", "k3")
    assert "reward.functions.NAME.function" in settings and "data.tasks[].name" in settings


def test_configuration_needs_no_torch():
    heavy = "{'torch', 'transformers', 'vllm', 'ray', 'megatron'}"
    code = f"import sys, yatt.config.load, yatt.config.rules; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_an_environment_in_short_is_merged_with_the_rest_of_its_section(tmp_path):
    """In either order, in a file and in words."""
    path = tmp_path / "run.yaml"
    path.write_text("model: {path: m}\ntrain: {steps: 1, batch_size: 1}\nenvironment: calculator\n")
    assert load_config(str(path), ["environment.max_turns=3"]).environment.function == "calculator"
    both = load_config(str(path), ["environment.max_turns=3", "environment=guess"]).environment
    assert (both.function, both.max_turns) == ("guess", 3)

"""Trackers: names, TensorBoard files, and failures that must not stop a run."""

import json
import subprocess
import sys

import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.runs import fake_run
from yatt.config.trackers import TRACKERS, check_trackers
from yatt.errors import ConfigError
from yatt.faces.trackers import LONGEST, Trackers, flatten


def test_every_known_name_is_one_of_accelerates():
    assert set(TRACKERS) == set(LOGGER_TYPE_TO_CLASS)


def test_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match=r"log\.trackers='tensorbord'.*did you mean 'tensorboard'"):
        check_trackers(["tensorbord"])


def test_missing_package_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"'comet_ml' needs the package comet-ml.*pip install comet-ml"):
        check_trackers(["comet_ml"])


def test_checking_names_imports_no_torch():
    code = "import sys, yatt.config.trackers as t; t.check_trackers(['tensorboard']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_tensorboard_has_flat_names_and_the_rows_steps(tmp_path):
    trackers = Trackers(["tensorboard"], tmp_path, {"train": {"steps": 2}})
    for step in (1, 2):
        trackers.log({"step": step, "loss": 0.5 * step, "kl": None, "phases": {"rollout": 1.25}, "note": "x"})
    trackers.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {"loss", "phases/rollout"}
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 0.5), (2, 1.0)]


def test_completions_reach_tensorboard_as_texts_and_others_as_tables(tmp_path, monkeypatch):
    run = fake_run(tmp_path / "a", steps=3)
    many = "".join(json.dumps(talk(uid)) + "\n" for uid in range(20))
    (run.samples / "step-3.c0.jsonl").write_text(many)
    Recording.made, tables = [], []
    takes = {"log_table": lambda self, title, **told: tables.append((title, told))}
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "wandb", type("Tables", (Recording,), takes))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
    trackers = Trackers(["tensorboard", "wandb"], run.path, {})
    for row in run.read_metrics():
        trackers.completions(row, run.samples, 3)
    trackers.close()
    # an evaluation before the first step and after the last; rollouts were written in steps 1 and 3
    assert [(title, told["step"], len(told["data"])) for title, told in tables] == [
        ("held-out", 0, 8), ("rollouts", 1, 8), ("rollouts", 3, 8), ("held-out", 3, 8),
    ]  # fmt: skip
    last = dict(zip(tables[2][1]["columns"], tables[2][1]["data"][0], strict=True))
    assert last["response"] == "user: hi\nassistant: " + "x" * (LONGEST - 20) + " …" and last["reward"] == 1e299
    events = EventAccumulator(str(run.path / "tensorboard"))
    events.Reload()
    texts = events.Tensors("rollouts/text_summary")
    assert [text.step for text in texts] == [1, 3]
    told = texts[0].tensor_proto.string_val[0].decode()
    assert "<answer>" in told and "\n    " in told and not [line for line in told.splitlines() if line.startswith("<")]


def test_a_long_run_has_tables_of_some_steps_only(tmp_path):
    Recording.made, tables = [], []
    run = fake_run(tmp_path / "a", steps=1)
    for step in range(1, 1001):
        (run.samples / f"step-{step}.c0.jsonl").write_text(json.dumps(talk(0)) + "\n")
    trackers = Trackers([], run.path, {})
    taker = Recording("yatt")
    taker.log_table = lambda title, **told: tables.append(told["step"])
    trackers._trackers["other"] = taker
    for step in range(1, 1001):
        trackers.completions({"step": step}, run.samples, 1000)
    assert tables == [1, *range(10, 1001, 10)]


def talk(uid):
    said = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "x" * 5000}]
    return {"step": 3, "uid": uid, "sibling": 0, "prompt": "p", "reward": 1e299, "status": "ok", "messages": said}


class Recording:
    requires_logging_directory = False
    made: list["Recording"]

    def __init__(self, project, **options):
        self.project, self.options, self.rows, self.config = project, options, [], None
        self.made.append(self)

    def start(self):
        pass

    def store_init_configuration(self, config):
        self.config = config

    def log(self, values, step):
        self.rows.append((step, values))

    def finish(self):
        pass


class Breaking(Recording):
    def log(self, values, step):
        raise OSError("no route to host")


def test_a_tracker_that_raises_is_warned_about_once_and_the_others_go_on(tmp_path, monkeypatch):
    Recording.made = []
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "wandb", Breaking)
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "aim", Recording)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
    warnings = []
    trackers = Trackers(["wandb", "aim"], tmp_path / "a", {"run": {"name": "a", "seed": 0}}, warn=warnings.append)
    for step in (1, 2):
        trackers.log({"step": step, "loss": 1.0})
    trackers.close()
    breaking, recording = Recording.made
    assert breaking.project == "yatt" and breaking.options == {"name": "a"}
    assert recording.config == {"run/name": "a", "run/seed": 0}
    assert recording.rows == [(1, {"loss": 1.0}), (2, {"loss": 1.0})]
    assert len(warnings) == 1 and "wandb failed to log (OSError: no route to host)" in warnings[0]


def test_flatten_leaves_out_what_is_no_number():
    assert flatten({"a": {"b": 1}, "c": float("nan"), "d": None, "e": "x"}) == {"a/b": 1}

"""Trackers: names, TensorBoard files, and failures that must not stop a run."""

import subprocess
import sys

import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from yatt.config.trackers import TRACKERS, check_trackers
from yatt.errors import ConfigError
from yatt.faces.trackers import Trackers, flatten


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

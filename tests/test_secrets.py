"""A secret among the settings is kept for the run and shown to nobody."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
import yaml

from yatt.config.load import load_config, save_config
from yatt.config.rules import Case, _warnings
from yatt.config.secrets import masked, secrets
from yatt.faces import trackers
from yatt.faces.report import write_report
from yatt.faces.rundir import RunDirectory

WORDS = ["model.path=/m", "train.steps=1", "train.batch_size=1"]
URL = "http://me:hunter2@judge.example/v1?api_key=abc123&model=x"
SECRET = [
    "reward.functions.r={function: exact_match, arguments: {api_key: s3cret, url: 'https://h/?token=t0ken', n: 1}}",
    f"reward.models.j={{url: '{URL}', model: m, parser: number, template: '{{response}}'}}",
]
TEXTS = ("s3cret", "t0ken", "hunter2", "abc123")


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ({"arguments": {"apiKey": "x"}}, {"arguments": {"apiKey": "***"}}),
        ({"arguments": {"OPENAI_API_KEY": "x"}}, {"arguments": {"OPENAI_API_KEY": "***"}}),
        ({"arguments": {"deep": [{"password": 7}]}}, {"arguments": {"deep": [{"password": "***"}]}}),
        (
            {"arguments": {"headers": {"Authorization": "Basic x"}}},
            {"arguments": {"headers": {"Authorization": "***"}}},
        ),
        ({"engine_args": {"hf_token": "x", "max_tokens": 3}}, {"engine_args": {"hf_token": "***", "max_tokens": 3}}),
        ({"arguments": {"tokenizer": "x", "monkey": "y"}}, {"arguments": {"tokenizer": "x", "monkey": "y"}}),
        ({"arguments": {"key": None, "token": ""}}, {"arguments": {"key": None, "token": ""}}),
        ({"data": {"prompt_key": "prompt"}}, {"data": {"prompt_key": "prompt"}}),
        ({"url": URL}, {"url": "http://***@judge.example/v1?api_key=***&model=x"}),
        ({"address": "ray://u:p@head:10001"}, {"address": "ray://***@head:10001"}),
        ({"path": "s3://bucket/a@b?c=d"}, {"path": "s3://bucket/a@b?c=d"}),
        ({"template": "mail me@home, a=b?key=c"}, {"template": "mail me@home, a=b?key=c"}),
        ({"arguments": {"h": "Bearer abcdefgh12"}}, {"arguments": {"h": "***"}}),
    ],
)
def test_what_is_masked(values, shown):
    assert masked(values) == shown
    assert bool(list(secrets(values))) is (values != shown)


def test_secrets_are_named():
    config = load_config(None, [*WORDS, *SECRET])
    found = list(secrets(config.model_dump(mode="json")))
    names = ["reward.functions.r.arguments.api_key", "reward.functions.r.arguments.url", "reward.models.j.url"]
    assert found == names
    lines = list(_warnings(Case(config=config, model=None, gpus=0, slots=1)))
    assert [line.partition(" looks like a secret")[0] for line in lines][:3] == names
    assert not any(text in line for text in TEXTS for line in lines)


def test_the_runs_config_keeps_them_for_its_owner_and_loads(tmp_path):
    config, file = load_config(None, [*WORDS, *SECRET]), tmp_path / "config.yaml"
    file.write_text("older\n")
    save_config(config, file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert load_config(str(file), []).reward == config.reward
    save_config(load_config(None, WORDS), tmp_path / "plain.yaml")
    assert stat.S_IMODE((tmp_path / "plain.yaml").stat().st_mode) & 0o044


def test_neither_the_report_nor_a_tracker_has_them(tmp_path, monkeypatch):
    config = load_config(None, [*WORDS, *SECRET])
    run = RunDirectory(tmp_path / "run").create()
    save_config(config, run.config)
    page = write_report(run.path).read_text()
    assert "api_key" in page and "***" in page and not any(text in page for text in TEXTS)
    told = trackers.flatten(masked(config.model_dump(mode="json")), texts=True)
    assert told["reward/functions/r/arguments/api_key"] == "***" and not any(t in str(told) for t in TEXTS)


def test_the_report_of_a_run_without_secrets_shows_its_file_as_it_is(tmp_path):
    run = RunDirectory(Path(tmp_path)).create()
    text = yaml.safe_dump({"run": {"name": "n"}}) + "# a remark\n"
    run.config.write_text(text)
    assert "# a remark" in write_report(run.path).read_text()

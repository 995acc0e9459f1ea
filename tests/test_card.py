"""The card of an exported model, and the record of how a run was started."""

from __future__ import annotations

import json
import sys

import pytest
import yaml

from yatt.config.load import load_config, save_config
from yatt.faces.card import record_command, table, thinned, write_card
from yatt.faces.rundir import RunDirectory

SHA = "0123456789abcdef0123456789abcdef01234567"


def config(*words):
    needed = ["run.name=r", "model.path=/models/m", "train.steps=4", "train.batch_size=2"]
    return load_config(None, [*needed, *words])


def run_of(folder, rows):
    run = RunDirectory(folder / "r").create()
    run.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run


def card(folder, settings, run, step=4):
    folder.mkdir()
    write_card(folder, settings, run.path, step)
    text = (folder / "README.md").read_text()
    head, body = text.removeprefix("---\n").split("---\n", 1)
    return yaml.safe_load(head), body


def test_what_a_card_says(tmp_path):
    rows = [
        {"step": 0, "accuracy_greedy": 0.125, "evaluation": {"prompts": 8}},
        {"step": 2, "reward_mean": 0.5, "response_length_mean": 12.34},
        {
            "step": 4,
            "reward_mean": 1e299,
            "response_length_mean": 20,
            "accuracy_greedy": 1.0,
            "evaluation": {"prompts": 8},
        },
        {"step": 5, "reward_mean": 9.0},  # after the checkpoint
    ]
    run = run_of(tmp_path, rows)
    run.commands.write_text("yatt train c.yaml\nyatt train c.yaml resume=auto\n")
    head, body = card(tmp_path / "out", config(), run)
    assert head == {"library_name": "transformers", "tags": ["yatt", "grpo"]}
    assert body.startswith("\n# r\n\n`/models/m`, trained by `grpo` with YATT ")
    assert "step 4 of 4, seed 0" in body
    assert "    yatt train c.yaml\n    yatt train c.yaml resume=auto\n" in body
    assert "| step | reward | accuracy, greedy | response tokens |\n|---|---|---|---|\n" in body
    assert "| 0 |  | 12.5% |  |\n| 2 | 0.500 |  | 12.3 |\n| 4 | 1.00e299 | 100.0% | 20.0 |\n" in body
    assert "9.0" not in body
    settings = body.split("```yaml\n")[1].split("```")[0]
    (tmp_path / "again.yaml").write_text(settings)
    assert load_config(str(tmp_path / "again.yaml"), []).train.steps == 4


def test_a_model_of_the_hub_is_named_with_its_commit(tmp_path):
    path = f"/c/models--Qwen--Qwen3-0.6B/snapshots/{SHA}"
    head, body = card(tmp_path / "out", config(f"model.path={path}"), run_of(tmp_path, []))
    assert head["base_model"] == "Qwen/Qwen3-0.6B" and SHA in body and "No step is on record." in body
    assert "yatt train config.yaml" in body


def test_secrets_are_masked_in_card_and_command(tmp_path, monkeypatch):
    words = [
        "reward.models.j.url=https://me:hunter2@host/v1",
        "reward.functions.f={function: exact_match, arguments: {api_key: hunter2}}",
        "environment.arguments.token=hunter2",
        "train.steps=7",
    ]
    run = run_of(tmp_path, [])
    monkeypatch.setattr(sys, "argv", ["yatt", "train", "c.yaml", *words])
    record_command(run)
    record_command(run)
    first, second = run.commands.read_text().splitlines()
    assert first == second and "hunter2" not in first and first.count("***") == 3
    assert first.startswith("yatt train c.yaml ") and first.endswith(" train.steps=7")
    _, body = card(tmp_path / "out", config(*words, "environment.function=x.py:f"), run)
    assert "hunter2" not in body


@pytest.mark.parametrize("argv", [["prog.py", "train"], ["yatt", "eval"], ["pytest"]])
def test_only_the_command_line_is_recorded(tmp_path, monkeypatch, argv):
    run = run_of(tmp_path, [])
    monkeypatch.setattr(sys, "argv", argv)
    record_command(run)
    assert not run.commands.exists()


def test_many_steps_are_thinned_and_the_last_is_there():
    rows = [{"step": step, "loss": 1.0} for step in range(1, 1001)]
    steps = [row["step"] for row in thinned(rows)]
    assert len(steps) == 10 and (steps[0], steps[-1]) == (1, 1000) and steps == sorted(set(steps))
    measured = [row | ({"evaluation": {}, "accuracy_greedy": 0.5} if row["step"] % 100 == 0 else {}) for row in rows]
    for row in measured:
        if row["step"] % 100 == 0:
            row["evaluation"] = {"prompts": 1}
    assert [row["step"] for row in thinned(measured)] == list(range(100, 1001, 100))
    assert table([]) == "" and len(table(rows).splitlines()) == 12


def test_a_saved_config_with_a_commit_is_read_back(tmp_path):
    path = f"/c/models--a--b/snapshots/{SHA}"
    save_config(config(f"model.path={path}", f"model.revision={SHA}"), tmp_path / "config.yaml")
    again = load_config(str(tmp_path / "config.yaml"), [])
    assert (again.model.path, again.model.revision) == (path, SHA)

"""The commands that messages name are those by which this program is started."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from yatt.faces.command import command


@pytest.fixture
def started(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    script = Path(".venv/bin/yatt")
    script.parent.mkdir(parents=True)
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)

    def by(argv, *orig, path="/nowhere"):
        monkeypatch.setattr(sys, "argv", [argv, "train"])
        monkeypatch.setattr(sys, "orig_argv", list(orig) or ["python", argv])
        monkeypatch.setenv("PATH", path)
        return tmp_path

    return by


def test_by_a_path(started):
    folder = started(".venv/bin/yatt")
    assert command("train", "a.yaml") == ".venv/bin/yatt train a.yaml"
    assert command(anywhere=True) == f"{folder}/.venv/bin/yatt"


def test_by_a_name_that_is_found(started):
    folder = started(".venv/bin/yatt", path=".venv/bin")
    assert command("export", Path("runs/a b")) == "yatt export 'runs/a b'" and command(anywhere=True) == "yatt"
    started(f"{folder}/.venv/bin/yatt", path=f"{folder}/.venv/bin")
    assert command() == "yatt"


def test_by_another_program_of_that_name_on_the_path(started, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "yatt").write_text("#!/bin/sh\n")
    (tmp_path / "other" / "yatt").chmod(0o755)
    started(".venv/bin/yatt", path=f"{tmp_path}/other")
    assert command() == ".venv/bin/yatt"


def test_by_python(started):
    started("/lib/yatt/__main__.py", "python", "-m", "yatt", "train")
    assert command("train") == "python -m yatt train" == command("train", anywhere=True)
    started("/lib/yatt/__main__.py", ".venv/bin/python", "-m", "yatt")
    assert command() == ".venv/bin/python -m yatt" and command(anywhere=True) == f"{sys.executable} -m yatt"


def test_from_a_program_of_the_users(started):
    started("train.py", "python", "train.py")
    assert command("train") == "yatt train"

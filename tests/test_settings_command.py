"""`yatt settings`: found by name and by description, plain when piped, within the terminal else."""

import io
import re

import pytest
from rich.console import Console

from yatt.cli import main
from yatt.config.load import describe
from yatt.errors import ConfigError
from yatt.faces.settings import matching, show


def names(word):
    return [setting.name for setting in matching(word)]


def test_a_word_finds_names_first_then_descriptions_in_any_case():
    found = names("TEMPERATURE")
    assert {"rollout.temperature", "evaluate.temperature", "algorithm.tau_positive"} <= set(found)
    named = ["temperature" in name for name in found]
    assert named == sorted(named, reverse=True)  # those named so stand before those only described so
    assert "train.optimizer.learning_rate" in names("learning_rate=")
    assert "algorithm.name" in names("reinforce_plus_plus")  # a value that it takes


def test_no_match_names_near_ones_with_status_2(monkeypatch, capsys):
    with pytest.raises(ConfigError, match=r"no setting has 'temprature' .*near are .*rollout\.temperature"):
        matching("temprature")
    with pytest.raises(ConfigError, match="`yatt settings` lists all"):
        matching("zzzzzzzz")
    monkeypatch.setattr("sys.argv", ["yatt", "settings", "lerning_rate"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2 and "train.optimizer.learning_rate" in capsys.readouterr().err


def test_piped_it_is_one_line_for_each_setting():
    out = io.StringIO()
    assert show(None, Console(file=out)) == 0
    lines = [line.split("\t") for line in out.getvalue().splitlines()]
    assert [line[0] for line in lines] == [setting.name for setting in describe()]
    told = {line[0]: line[1:] for line in lines}
    assert told["train.steps"] == ["(required)", "a whole number >= 1", "Steps of the whole run."]
    assert told["train.optimizer.betas"][0] == "[0.9, 0.95]" and told["data.shuffle"][0] == "true"


@pytest.mark.parametrize("width", [60, 80, 160])
def test_on_a_terminal_the_table_fits(width):
    out = io.StringIO()
    show(None, Console(file=out, force_terminal=True, width=width, no_color=True, legacy_windows=False))
    lines = re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue()).splitlines()
    assert max(map(len, lines)) <= width and lines[0].startswith("setting")
    assert "run.name" in "".join(lines)

"""Pages say what is there: commands parse, settings and files exist, messages stand in the source."""

from __future__ import annotations

import ast
import importlib.util
import re
from functools import cache
from pathlib import Path

import pytest
import typer
from pages import PAGES, ROOT, blocks, commands, tables

from yatt.cli import app
from yatt.config import yaml_core
from yatt.config.load import _locate, load_config
from yatt.config.schema import Config
from yatt.errors import ConfigError

BASE = ["model.path=M", "train.steps=1", "train.batch_size=1"]
OTHERS = ("cd", "export", "source", "hf", "sbatch", "kubectl", "sky", "docker", "ssh", "pre-commit", "srun")
OTHERS += ("pip", "git", "jupyter", "curl", "tail", "less", "kill", "nvidia-smi", "tensorboard")
"""Programs that are not the project's; what is asked of them is not checked."""
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem if page.parent.name == "docs" else None)


@cache
def program():
    return typer.main.get_command(app)


def check_file(path):
    """What begins with a folder of this repository must be there, unless a command makes it; the rest is the user's."""
    first = Path(path).parts[0]
    made = "work" in Path(path).parts or first == "build" or "NAME" in path
    if first != ".." and not made and (ROOT / first).exists() and first not in ("runs", "wheels"):
        assert (ROOT / path).exists(), f"{path} is not there"


def config_and_settings(parameters):
    """The file among the words of a command, if there is one, and the settings."""
    listed = [
        word for value in parameters.values() if isinstance(value, list) for word in value if isinstance(word, str)
    ]
    words = [word for word in [parameters.get("config")] if word is not None] + listed
    return (words[0], words[1:]) if words and "=" not in words[0] else (None, words)


def check_words(words, config=None):
    """Settings of a command line, over the config where it is one of the repository's."""
    words = [word for word in words if word != "key=value"]
    known = config is not None and (ROOT / config).is_file()
    load_config(str(config) if known else None, words if known else [*BASE, *words])


def check_yatt(words):
    if words[0] == "--version":
        return
    assert words[0] in program().commands, f"there is no command yatt {words[0]}"
    command = program().commands[words[0]]
    given = []
    for word in words[1:]:
        word = word.strip("[]")
        if word not in ("...", "key=value"):
            given.append("1" if re.fullmatch("[A-Z]", word) else word)  # a letter stands for a number
    parameters = command.make_context(words[0], given).params
    for value in parameters.values():
        check_file(str(value)) if isinstance(value, Path) else None
    config, settings = config_and_settings(parameters)
    check_file(config) if config is not None else None
    check_words(settings, config)


@cache
def makefile():
    text = (ROOT / "Makefile").read_text()
    return set(re.findall(r"^([a-z][\w-]*):", text, re.M)), set(re.findall(r"^([A-Z]+) *[?:]?=", text, re.M))


def check_make(words):
    targets, variables = makefile()
    for word in words:
        name, assigned, _ = word.partition("=")
        assert name in (variables if assigned else targets), f"make knows no {word}"


def check_python(words):
    if words[0] == "-m" and words[1].split(".")[0] in ("benchmarks", "yatt"):
        module = ROOT / words[1].replace(".", "/")
        assert module.with_suffix(".py").is_file() or (module / "__main__.py").is_file(), words[1]
        check_yatt(words[2:]) if words[1] == "yatt" else None
    elif words[0] == "-m":
        assert words[1] in ("pytest", "pip"), f"python -m {words[1]} is not checked"
        for word in words[2:]:
            check_file(word) if word.endswith(".py") else None
    else:
        check_file(words[0])


@cache
def source_of_ray():
    (folder,) = importlib.util.find_spec("ray").submodule_search_locations
    return (Path(folder) / "scripts" / "scripts.py").read_text()


def check_ray(words):
    """Ray's own command line, read and not imported."""
    assert f"def {words[0]}(" in source_of_ray(), f"ray has no {words[0]}"
    for word in words[1:]:
        option = word.partition("=")[0]
        assert not option.startswith("--") or f'"{option}"' in source_of_ray(), f"ray {words[0]} has no {option}"


def test_options_of_ray_in_the_scripts_of_jobs():
    text = (ROOT / "yatt" / "faces" / "launchers.py").read_text()
    lines = re.findall(r"ray ((?:start|status|stop) [^;&>|\n{]*)", text)
    assert len(lines) > 4
    for line in lines:
        check_ray([word.strip("'\"") for word in line.split()])


@each_page
def test_commands(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    checks = {"yatt": check_yatt, "make": check_make, "python": check_python, "ray": check_ray}
    for block in blocks(page.read_text()):
        for words in commands(block):
            name, at = words[0].removeprefix(".venv/bin/"), f"{page.name}:{block.line}: {' '.join(words)}"
            assert name in checks or name in OTHERS, f"{at}: {name} is no program that is checked"
            try:
                checks[name](words[1:]) if name in checks else None
            except (AssertionError, ConfigError, Exception) as error:
                raise AssertionError(f"{at}: {error}") from error


@each_page
def test_blocks_of_settings(page, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    begins = re.compile(rf"(?:#.*\n)*({'|'.join(Config.model_fields)}): *(?:#.*)?(?:\n|\{{)")
    for block in blocks(page.read_text()):
        if "apiVersion" in block.text or (
            block.language != "yaml" and (block.language or not begins.match(block.text))
        ):
            continue
        # What stands behind an empty line at the left is another file.
        values = yaml_core.read(re.split(r"\n\n(?=[#\w])", block.text)[0])
        for word in BASE:
            name, _, value = word.partition("=")
            section, key = name.split(".")
            values.setdefault(section, {}).setdefault(key, yaml_core.read(value))
        (tmp_path / "config.yaml").write_text(yaml_core.write(values))
        load_config(str(tmp_path / "config.yaml"), [])


@each_page
def test_blocks_of_python(page):
    for block in blocks(page.read_text()):
        if block.language == "python":
            compile(block.text, f"{page.name}:{block.line}", "exec")


def spans(cell):
    return re.findall(r"`([^`]+)`", cell)


@pytest.mark.parametrize("name", ["from-trl", "from-verl", "from-openrlhf"])
def test_settings_of_another_trainer_have_one_here(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    checked = 0
    for heading, *rows in tables((ROOT / "docs" / f"{name}.md").read_text()):
        for row in rows:
            cell = row[heading.index("here")]
            assert spans(cell) or cell == "none", row
            for said in spans(cell):
                setting = said.partition("=")[0]
                field, depth = _locate(setting.split("."))[1:]
                assert depth == len(setting.split(".")) and field is not None, f"there is no setting {setting}"
                load_config(None, [*BASE, said]) if "=" in said else None
                checked += 1
    assert checked > 40


@cache
def texts():
    """Every text in the source, with a mark where a value is filled in."""
    found = []
    for path in (ROOT / "yatt").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(p.value if isinstance(p, ast.Constant) else "\0" for p in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def test_messages_stand_in_the_source():
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    messages = [row[0] for heading, *rows in tables(page) for row in rows]
    assert len(messages) > 30
    for message in messages:
        (said,) = spans(message)
        assert in_source(said) or all(map(in_source, said.split(";"))), f"no text in the source says {said!r}"


def in_source(said):
    """Whether one text has all of it, in this order, where `...` stands for what differs."""
    pieces = [piece.strip() for piece in said.split("...") if piece.strip(" ;")]
    if sum(map(len, pieces)) < 10:
        return False
    pattern = re.compile(".*".join(map(re.escape, pieces)), re.DOTALL)
    return any(pattern.search(text) for text in texts())


def test_the_first_command_of_the_readme_is_on_its_first_screen():
    lines = (ROOT / "README.md").read_text().split("\n")
    assert next(i for i, line in enumerate(lines) if "make quickstart" in line) < 24


def test_what_is_wrong_in_a_page_is_seen(monkeypatch):
    monkeypatch.chdir(ROOT)
    for words in (["trian", "x"], ["plan", "C", "--device", "3"], ["train", "examples/none.yaml"]):
        with pytest.raises(Exception, match=r"trian|No such option|none\.yaml"):
            check_yatt(words)
    with pytest.raises(ConfigError, match=r"train\.stepps"):
        check_yatt(["train", "examples/quickstart/grpo.yaml", "train.stepps=3"])
    with pytest.raises(AssertionError):
        check_make(["quikstart"])
    with pytest.raises(AssertionError):
        check_python(["examples/none.py"])

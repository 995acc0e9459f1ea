"""A folder to start from: a config with every setting explained, a reward, data, and what to run."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from yatt.config import folders, yaml_core
from yatt.config.facts import model_facts
from yatt.config.hub import hub_model, of_cache
from yatt.config.load import REQUIRED, describe, merged, nest
from yatt.config.names import fitting
from yatt.data.formats import ListRows
from yatt.errors import ConfigError
from yatt.faces.choose import Choice
from yatt.faces.command import command
from yatt.faces.hub import fetch

TRAIN_ROWS, EVAL_ROWS = 200, 40

NAMES = ("Ada", "Bela", "Chen", "Dina", "Emre", "Farah", "Goran", "Hana")
THINGS = ("apples", "marbles", "stamps", "pencils", "shells", "coins")
INSTRUCTION = "Think it through, then end with the number alone in <answer></answer>."

REWARD = '''"""The reward. Change it freely: a number, or named numbers of which "reward" trains the policy."""

import re

ANSWER = re.compile(r"<answer>\\s*(-?[0-9]+)\\s*</answer>\\s*$")


def reward(response: str, answer: str) -> dict[str, float]:
    """1 for the right number in the last place, else 0. `prompt` and `metadata` may be asked for by name, too.

    `formatted` is only reported: whether there was a number where one was asked for.
    """
    found = ANSWER.search(response)
    return {
        "reward": float(found is not None and int(found[1]) == int(answer)),
        "formatted": float(found is not None),
    }
'''

README = """# {name}

Made by `yatt init`. From inside this folder:

    {yatt} train config.yaml                  # metrics, samples and report.html go to runs/{name}/
    {yatt} train config.yaml train.steps=2    # any setting may be given on the command line
    {yatt} train config.yaml resume=auto      # go on where a stopped run's last checkpoint is
    {yatt} eval runs/{name} data.path=data/eval.jsonl
    {yatt} export runs/{name} model/          # the policy as a Hugging Face folder

From elsewhere it works too: paths in config.yaml start at its folder, `runs/` is made where the command is given.

- `config.yaml`: what is set, and behind `#` every other setting with its default.
- `reward.py`: judges a response.
- `data/train.jsonl`, `data/eval.jsonl`: a `prompt` and an `answer` per line; other columns reach the
  reward as `metadata`.
"""


def init(folder: Path, *, model: str) -> None:
    """Write the folder for training the policy in the Hugging Face folder `model`, and print what to run next.

    Raises ConfigError for a folder that is not empty, or a model that cannot be trained; then nothing is written.
    """
    named = hub_model(model)
    there = fetch(named, "--model") if named else model
    model_facts(there, "--model")
    folders.refuse(there, "--model")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} exists and is not an empty folder; name a new one")
    name = fitting(folder.resolve().name)
    data = data_files()
    chosen = _chosen(name, str(Path(there).expanduser().resolve()), data["data/train.jsonl"])
    chosen["model.path"] = str(chosen["model.path"]).replace("$", "$$")
    if named and (pinned := of_cache(there)):
        chosen |= {"model.path": named.name, "model.revision": pinned.revision}
    files = {
        "config.yaml": config_text(chosen),
        "reward.py": REWARD,
        "README.md": README.format(name=name, yatt=command(anywhere=True)),
        **data,
    }
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")
    print(f"{folder} is ready. Next:\n    {command('train', folder / 'config.yaml')}")


def _chosen(name: str, model: str, train: str) -> dict[str, Any]:
    """The settings that are set, by dotted name; what is left out keeps its default."""
    given = {
        "run.name": name,
        "model.path": model,
        "data.path": "data/train.jsonl",
        "reward.function": "reward.py:reward",
        "evaluate.path": "data/eval.jsonl",
    }
    choice = Choice(ListRows([json.loads(line) for line in train.splitlines()], "data/train.jsonl"))
    nested: dict[str, Any] = {}
    for setting, value in given.items():
        nested = merged(nested, nest(setting, value))
    choice(nested)
    return {**given, **choice.values}


def config_text(chosen: Mapping[str, Any]) -> str:
    """A config of the chosen settings, with every other one in a comment: its default, and what it is for."""
    lines = ["# Settings. A line behind # shows a default. Paths start at this file's folder."]
    last: list[str] = []
    for setting in describe():
        # A setting of an item of a list or mapping stands behind that list's name.
        parts = re.fullmatch(r"(.*?)(\[\]\.|\.NAME\.|$)(.*)", setting.name)
        assert parts is not None
        head, mark, tail = parts.groups()
        *sections, key = head.split(".")
        if sections[:1] != last[:1]:
            lines.append("")
        for depth, section in enumerate(sections):
            if sections[: depth + 1] != last[: depth + 1]:
                lines.append(f"{'  ' * depth}{section}:")
        last = sections
        value = chosen.get(setting.name, setting.default)
        shown = (
            "(required)" if value == REQUIRED else yaml_core.inline(list(value) if isinstance(value, tuple) else value)
        )
        off = "" if setting.name in chosen else "# "
        lines.append(
            f"{'  ' * len(sections)}{off}{key}{mark}{tail}: {shown}  # {setting.description} [{setting.takes}]"
        )
    return "\n".join(lines) + "\n"


def data_files() -> dict[str, str]:
    """Word problems, the same at every call; none stands in both files."""
    rows = list(_problems(TRAIN_ROWS + EVAL_ROWS, random.Random(0)))
    parts = {"data/train.jsonl": rows[:TRAIN_ROWS], "data/eval.jsonl": rows[TRAIN_ROWS:]}
    return {path: "".join(json.dumps(row) + "\n" for row in part) for path, part in parts.items()}


def _problems(count: int, draw: random.Random) -> Iterator[dict[str, str]]:
    seen: set[str] = set()
    while len(seen) < count:
        a, b, c = draw.randint(50, 499), draw.randint(2, 49), draw.randint(2, 19)
        who, things = draw.choice(NAMES), draw.choice(THINGS)
        kinds = (
            (f"{who} has {a} {things} and buys {b} more. How many {things} does {who} have now?", a + b),
            (f"{who} had {a} {things} and gave {b} of them away. How many {things} are left?", a - b),
            (f"A box holds {b} {things}. {who} fills {c} boxes. How many {things} is that?", b * c),
            (f"{who} shares {b * c} {things} equally among {c} friends. How many does each get?", b),
        )
        question, answer = draw.choice(kinds)
        if question not in seen:
            seen.add(question)
            yield {"prompt": f"{question} {INSTRUCTION}", "answer": str(answer)}

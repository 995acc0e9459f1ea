"""`yatt settings`: every setting there is, or those that a word finds."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from yatt.config import yaml_core
from yatt.config.load import REQUIRED, Setting, describe
from yatt.errors import ConfigError

NEAR = 5
"""Names said where no setting has the word."""


def show(word: str | None, console: Console | None = None) -> int:
    """Print the settings that have `word` in their names, values or descriptions; all without one. Raises ConfigError,
    with the nearest names, where there is none."""
    found = matching(word) if word else list(describe())
    console = console or Console()
    if not console.is_terminal:
        console.file.write("".join(f"{plain(setting)}\n" for setting in found))
        return 0
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("setting", style="bold", overflow="fold", ratio=4)
    table.add_column("default", overflow="fold", ratio=2)
    table.add_column("description (values)", ratio=6)
    for setting in found:
        about = f"{escape(setting.description)} [dim]{escape(f'({setting.takes})')}[/]"
        table.add_row(escape(setting.name), escape(default_of(setting)), about)
    console.print(table)
    return 0


def matching(word: str) -> list[Setting]:
    """The settings that a word finds, whatever its case: by their names first, then by what they take and are."""
    looked = word.lower().removesuffix("=")
    every = list(describe())
    named = [setting for setting in every if looked in setting.name.lower()]
    told = [
        setting
        for setting in every
        if setting not in named and looked in f"{setting.takes} {setting.description}".lower()
    ]
    if not named and not told:
        raise ConfigError(f"no setting has {word[:60]!r} in its name or description{_near(looked, every)}")
    return [*named, *told]


def plain(setting: Setting) -> str:
    """A setting in a line, its fields apart by tabs: name, default, values, description."""
    return "\t".join((setting.name, default_of(setting), setting.takes, setting.description))


def default_of(setting: Setting) -> str:
    """The default as a config has it."""
    if setting.default == REQUIRED:
        return "(required)"
    return yaml_core.inline(list(setting.default) if isinstance(setting.default, tuple) else setting.default)


def _near(word: str, every: Sequence[Setting]) -> str:
    """The settings whose names, or words of them, are nearest."""
    parts: dict[str, list[str]] = {}
    for setting in every:
        last = setting.name.rpartition(".")[2]
        for key in dict.fromkeys((setting.name, last, *last.split("_"), *setting.name.split("."))):
            parts.setdefault(key, []).append(setting.name)
    names = [name for key in get_close_matches(word, parts, n=3, cutoff=0.6) for name in parts[key]]
    near = list(dict.fromkeys(names))[:NEAR]
    return f"; near are {', '.join(near)}" if near else "; `yatt settings` lists all"

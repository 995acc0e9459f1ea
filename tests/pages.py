"""The pages of the project, as a test reads them: blocks of code, commands in them, tables."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PAGES = [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
PAGES += sorted((ROOT / "examples").rglob("README.md"))
SHELL = ("sh", "bash", "shell", "console")
STARTS_COMMAND = re.compile(r"(?:\.venv/bin/\w[\w-]*|yatt|make|python|ray|hf|sbatch|kubectl|sky|docker)( |$)")
ASSIGNS = re.compile(r"[A-Z_]+=\S*$")


class Block(NamedTuple):
    """A block of code: the language that its fence names, if any, and the page's line that it begins on."""

    language: str
    line: int
    text: str


def blocks(page: str) -> Iterator[Block]:
    """Fenced blocks, and those indented by four behind an empty line."""
    lines = page.split("\n")
    at, empty = 0, True
    while at < len(lines):
        line = lines[at]
        if line.startswith("```"):
            end = next(i for i in range(at + 1, len(lines)) if lines[i].startswith("```"))
            yield Block(line.strip("`").strip(), at + 2, "\n".join(lines[at + 1 : end]))
            at = end
        elif empty and line.startswith("    "):
            end = at
            while end < len(lines) and (lines[end].startswith("    ") or not lines[end].strip()):
                end += 1
            yield Block("", at + 1, "\n".join(one[4:] for one in lines[at:end]).rstrip())
            at = end - 1
        empty = not lines[at].strip()
        at += 1


def commands(block: Block) -> Iterator[list[str]]:
    """The words of each command of a block of shell; of one without a language, where it begins as a command does."""
    if block.language not in SHELL and (block.language or not STARTS_COMMAND.match(block.text)):
        return
    for line in block.text.replace("\\\n", " ").split("\n"):
        words = shlex.split(line, comments=True)
        while words and ASSIGNS.match(words[0]):
            del words[0]
        if words:
            yield words


def tables(page: str) -> Iterator[list[list[str]]]:
    """Each table as its rows of cells, the heading first."""
    rows: list[list[str]] = []
    for line in [*page.split("\n"), ""]:
        if line.startswith("|"):
            cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|") + " ")]
            if not set("".join(cells)) <= set("-: "):
                rows.append(cells)
        elif rows:
            yield rows
            rows = []

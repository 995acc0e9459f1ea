"""What `mkdocs build` does beyond its configuration: pages of reference, pages in no navigation, links to the source.

The reference is made of the schema, the command line and the docstrings at every build: it is never out of date.
"""

from __future__ import annotations

import ast
import logging
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from yatt import cli  # noqa: E402
from yatt.config import yaml_core  # noqa: E402
from yatt.config.load import REQUIRED, describe  # noqa: E402
from yatt.config.schema import Config  # noqa: E402

log = logging.getLogger("mkdocs.hooks.yatt")

DEFAULT_SECTION = "How to"
PYTHON = (
    "yatt.api",
    "yatt.algorithm.advantage",
    "yatt.algorithm.loss",
    "yatt.environments.session",
    "yatt.generation.engine",
    "yatt.protocols",
    "yatt.types",
    "yatt.reports",
)
"""Modules that a program of the user's names, in the order of the page; one that is not there is left out."""
OUTSIDE = re.compile(r"\[([^\]]+)\]\((\.\./[^)#\s]+)(?:#[^)]*)?\)")
MARK = re.compile(r"( *)([-*]|\d+\.) ")


# --- the hooks -------------------------------------------------------------------------------------------------------


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of reference, and put pages that no navigation names into the default section."""
    for name, made in REFERENCE.items():
        files.append(File.generated(config, f"reference/{name}.md", content=made()))
    named = set(_named(config.nav))
    section = next(one[DEFAULT_SECTION] for one in config.nav or () if DEFAULT_SECTION in one)
    section += [file.src_uri for file in files.documentation_pages() if file.src_uri not in named]
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """A link to a file outside docs/ becomes its name, and lists are indented as Python-Markdown reads them."""

    def named(match: re.Match[str]) -> str:
        text, link = match.groups()
        target = (Path(config.docs_dir) / page.file.src_uri).parent / link
        if not target.exists():
            log.warning("%s links to %s, which is not there", page.file.src_uri, link)
        name = target.resolve().relative_to(ROOT)
        return text if text.strip("`") == str(name) else f"{text} (`{name}`)"

    return indented(OUTSIDE.sub(named, markdown))


def _named(nav: Any) -> Iterator[str]:
    """Every page that a navigation names."""
    for item in nav or ():
        entries = item.values() if isinstance(item, dict) else [item]
        for entry in entries:
            yield from [entry] if isinstance(entry, str) else _named(entry)


def indented(markdown: str) -> str:
    """The text with what belongs to an item of a list indented by four, and an empty line before an item that follows a
    paragraph of another, as Python-Markdown has them; CommonMark takes the width of the item's mark."""
    lines, width, fenced, several = [], 0, False, False
    for line in markdown.split("\n"):
        if line.startswith("```"):
            fenced, width = not fenced, 0
        mark = MARK.match(line)
        inside = width and line.startswith(" " * width)
        if fenced or not line.strip():
            lines.append(line)
        elif inside:
            several = several or not lines[-1].strip()
            lines.append(" " * (4 - width) + line)
        else:
            lines += [""] if several and mark else []
            width, several = (len(mark[0]) if mark and not mark[1] else 0), False
            lines.append(line)
    return "\n".join(lines)


# --- settings --------------------------------------------------------------------------------------------------------


def settings_page() -> str:
    """Every setting, section by section, from the schema."""
    parts = ["# Settings", "`.NAME` and `[]` stand for a name of yours and for an item of a list.", ""]
    section = None
    for setting in describe():
        head = setting.name.split(".")[0]
        if head != section:
            section = head
            field = Config.model_fields[head].annotation
            text = (getattr(field, "__doc__", "") or "").strip().split("\n\n")[0] if "." in setting.name else ""
            own = "" if text.startswith(("!!!", "str(")) else text.replace("\n", " ")
            parts += ["", f"## {head}", "", own, "", "| setting | takes | default | |", "|---|---|---|---|"]
        default = setting.default
        shown = "required" if default == REQUIRED else f"`{yaml_core.inline(_plain(default))}`"
        parts.append(f"| `{setting.name}` | {_cell(setting.takes)} | {_cell(shown)} | {_cell(setting.description)} |")
    return "\n".join(parts) + "\n"


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


# --- the command line ------------------------------------------------------------------------------------------------


def commands_page() -> str:
    """Every command with its arguments and options."""
    program = typer.main.get_command(cli.app)
    parts = ["# Command line", "", "Exit status: 0 done; 1 failed; 2 refused, by a setting or a file; 130 stopped."]
    for name, command in program.commands.items():
        usage = " ".join(command.collect_usage_pieces(command.make_context(name, [], resilient_parsing=True)))
        parts += ["", f"## yatt {name}", "", command.help or "", "", f"    yatt {name} {usage}", ""]
        rows = [row for row in map(_parameter, command.params) if row]
        parts += ["| | |", "|---|---|", *rows] if rows else []
    return "\n".join(parts) + "\n"


def _parameter(parameter: Any) -> str:
    """A row of the table of a command."""
    if "--help" in parameter.opts:
        return ""
    option = parameter.param_type_name == "option"
    name = (
        ", ".join([*parameter.opts, *parameter.secondary_opts])
        if option
        else (parameter.metavar or parameter.name.upper())
    )
    return f"| `{_cell(name)}` | {_cell(getattr(parameter, 'help', None) or '')} |"


# --- Python ----------------------------------------------------------------------------------------------------------


def python_page() -> str:
    """Classes and functions of the modules that programs of the user's name, by their docstrings."""
    parts = ["# Python", "", "What `reward.function`, `environment.function`, `algorithm.loss` and programs import."]
    for module in PYTHON:
        path = ROOT / (module.replace(".", "/") + ".py")
        if not path.is_file():
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        parts += ["", f"## {module}", "", _docstring(tree), *_members(tree, "###")]
    return "\n".join(parts) + "\n"


def _members(tree: ast.Module | ast.ClassDef, level: str) -> Iterator[str]:
    """The public classes and functions of a module, or methods of a class, each with its signature and docstring."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            bases = ", ".join(ast.unparse(base) for base in node.bases)
            yield from ("", f"{level} {node.name}", "", f"    class {node.name}({bases})" if bases else "")
            yield from ("", _docstring(node), "", *_fields(node), *_members(node, level + "#"))
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            word = "async def" if isinstance(node, ast.AsyncFunctionDef) else "def"
            result = f" -> {ast.unparse(node.returns)}" if node.returns is not None else ""
            yield from ("", f"{level} {node.name}", "", f"    {word} {node.name}({ast.unparse(node.args)}){result}")
            yield from ("", _docstring(node))


def _fields(node: ast.ClassDef) -> Iterator[str]:
    """The annotated fields of a class, with what stands below each as a text."""
    rows = []
    for at, one in enumerate(node.body):
        if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name) and not one.target.id.startswith("_"):
            after = node.body[at + 1] if at + 1 < len(node.body) else None
            said = after.value.value if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) else ""
            rows.append(f"| `{one.target.id}` | `{_cell(ast.unparse(one.annotation))}` | {_cell(str(said))} |")
    if rows:
        yield from ("| field | type | |", "|---|---|---|", *rows)


def _docstring(node: Any) -> str:
    return (ast.get_docstring(node) or "").replace("<", "&lt;")


REFERENCE: dict[str, Callable[[], str]] = {
    "settings": settings_page,
    "commands": commands_page,
    "python": python_page,
}

"""Files and functions stay short, settings few, and the repository free of what does not belong in it."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

from yatt.config.load import describe

ROOT = Path(__file__).parents[1]

FILE_LINES = 400
FUNCTION_LINES = 60
SETTINGS = 192

# "path:function" -> why it may be longer. Keep it short.
LONG_FUNCTIONS: dict[str, str] = {}

BANNED = {
    "a path of one machine": re.compile(r"(?<![\w.])/(?:work|root|opt|home)/|/tmp/w/"),
    "a registry's host": re.compile(r"pythonhosted|pypi\.org|download\.pytorch|registry\.npmjs|files\.pypi", re.I),
    "a key": re.compile(r"BEGIN [A-Z ]*PRIVATE KEY|\bhf_[A-Za-z0-9]{30,}"),
}
UNCHECKED = {"LICENSE", "tests/test_ratchets.py"}


def python_files() -> list[Path]:
    return sorted((ROOT / "yatt").rglob("*.py"))


def functions(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every function's name and its lines, decorators not counted."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            yield node.name, node.end_lineno - node.lineno + 1


def tracked_files() -> list[str]:
    """What git would commit; in a tree without git (a source archive), everything that is not hidden or built."""
    if (ROOT / ".git").exists():
        done = subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=30
        )
        return [name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]
    names = [str(path.relative_to(ROOT)) for path in ROOT.rglob("*") if path.is_file()]
    return [name for name in names if not re.match(r"\.|runs/|build/|.*__pycache__|.*\.egg-info", name)]


def test_files_are_short() -> None:
    sizes = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in python_files()}
    long = {name: size for name, size in sizes.items() if size > FILE_LINES}
    assert not long, f"over {FILE_LINES} lines: {long}"


def test_functions_are_short() -> None:
    long = {
        f"{path.relative_to(ROOT)}:{name}": size
        for path in python_files()
        for name, size in functions(ast.parse(path.read_text()))
        if size > FUNCTION_LINES
    }
    unlisted = {name: size for name, size in long.items() if name not in LONG_FUNCTIONS}
    assert not unlisted, f"over {FUNCTION_LINES} lines: {unlisted}"
    assert set(LONG_FUNCTIONS) <= set(long), "LONG_FUNCTIONS lists a function that has become short"


def test_settings_are_few() -> None:
    assert 0 < sum(1 for _ in describe()) < SETTINGS


def test_nothing_banned_is_tracked() -> None:
    found = []
    for name in tracked_files():
        if name in UNCHECKED:
            continue
        data = (ROOT / name).read_bytes()
        if b"\0" in data:
            continue
        for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), 1):
            found += [
                f"{name}:{number}: {what}: {line.strip():.80}" for what, rule in BANNED.items() if rule.search(line)
            ]
    assert not found, "\n".join(found)


def test_the_rules_themselves_see_what_they_must() -> None:
    path_rule, host_rule = BANNED["a path of one machine"], BANNED["a registry's host"]
    assert path_rule.search("cd /work/main") and path_rule.search('"/root/x"') and not path_rule.search("a/work/b")
    assert host_rule.search("https://files.pythonhosted.org/x") and not host_rule.search("python.org")
    assert list(functions(ast.parse("@a\ndef f():\n    x\n    y\n"))) == [("f", 3)]

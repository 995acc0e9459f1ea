"""How this program is started, for the commands that it names."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path


def command(*words: str | Path, anywhere: bool = False) -> str:
    """`yatt` with these words as one types them here: by the name or the path that this process was started by. With
    `anywhere` it works from every folder."""
    return " ".join([*_program(anywhere), *map(_quoted, words)])


def _quoted(word: str | Path) -> str:
    """A path that begins as an option does is none behind `./`."""
    path = isinstance(word, Path) and str(word).startswith("-")
    return shlex.quote(f"./{word}" if path else str(word))


def _program(anywhere: bool) -> list[str]:
    script = sys.argv[0]
    if os.path.basename(script) == "__main__.py":  # python -m yatt
        python = sys.orig_argv[0]
        return [shlex.quote(sys.executable if anywhere and os.path.dirname(python) else python), "-m", "yatt"]
    on_path = shutil.which("yatt")
    if os.path.basename(script) != "yatt" or (
        on_path is not None and os.path.realpath(on_path) == os.path.realpath(script)
    ):
        return ["yatt"]
    return [shlex.quote(os.path.abspath(script) if anywhere else script)]

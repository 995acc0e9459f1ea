"""Names that become names of files: a run's, a judge's, a reward's."""

from __future__ import annotations

import re

LONGEST = 200
"""Letters of a name: a file's may have 255 bytes, with what is put behind it."""
_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_-])?")


def checked(name: str) -> str:
    """The name itself. Raises ValueError, with the nearest that fits, where it could be a hidden file, an option of a
    command, or another folder, or is longer than a file's."""
    if not _NAME.fullmatch(name):
        raise ValueError(
            "is no name: letters, digits, '.', '_' and '-', of which the first is no '.' or '-' and the last no '.'; "
            f"use {fitting(name)}"
        )
    if len(name) > LONGEST:
        raise ValueError(f"has {len(name)} letters; a name has at most {LONGEST}, as files are named after it")
    return name


def fitting(text: str, otherwise: str = "run") -> str:
    """The name nearest to a text."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip(".-")[:LONGEST].rstrip(".") or otherwise

"""Where a Ray that is started here keeps its sockets and its token. Imports nothing of Ray's."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from yatt.errors import ConfigError
from yatt.generation.table import ENGINES

SOCKET = 107
"""Bytes that the path of a Unix socket may have."""
BEHIND = len("/ray/session_2026-11-28_07-07-07_123456_4194304/sockets/plasma_store.1")
"""Of those, what Ray puts behind its folder."""
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""Has Ray listen on 127.0.0.1 alone, as it does by itself where it knows no clusters."""
SHORT = ("/tmp", "/var/tmp", "/dev/shm")


def ray_folder(environ: Mapping[str, str] = os.environ) -> str:
    """The folder for Ray's files: RAY_TMPDIR, or TMPDIR where its sockets fit and it can be written to, else a short
    one. Raises ConfigError where that cannot be, or RAY_TMPDIR will not do."""
    given = environ.get("RAY_TMPDIR")
    if given is not None:
        if lack := _lack(given):
            raise ConfigError(f"RAY_TMPDIR={given} {lack}; set it to a short folder, such as /tmp, or unset it")
        return given
    for folder in (environ.get("TMPDIR") or SHORT[0], *SHORT):
        if not _lack(folder):
            return folder
    raise ConfigError(
        f"TMPDIR={environ.get('TMPDIR', '')}: neither it nor {', '.join(SHORT)} will do for Ray, whose sockets need a "
        f"folder of at most {SOCKET - BEHIND} bytes that can be written to; set RAY_TMPDIR to one"
    )


def ray_environment(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Variables to be set before Ray is started on this machine. Raises ConfigError as `ray_folder`.

    Engines' sockets go where Ray's do. A cluster that is started here has a token of its own, in no file."""
    folder = ray_folder(environ)
    variables = {"RAY_TMPDIR": folder, **LOOPBACK}
    sockets = (kind.socket_folder for kind in ENGINES.values())
    variables |= {name: folder for name in sockets if name and name not in environ}
    if not any(name in environ for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")):
        variables["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    return variables


def _lack(folder: str) -> str:
    """Why a folder will not do; nothing where it will."""
    size = len(os.fsencode(folder))
    if size > SOCKET - BEHIND:
        return f"has {size} bytes: Ray's sockets there would have paths of {size + BEHIND}, and {SOCKET} is the most"
    if not os.path.isabs(folder) or (os.path.exists(folder) and not os.path.isdir(folder)):
        return "is no absolute path of a folder"
    return "" if _writable(Path(folder)) else "cannot be written to"


def _writable(folder: Path) -> bool:
    """Whether files can be made in it, or it itself can."""
    there = next((one for one in (folder, *folder.parents) if one.exists()), None)
    return there is not None and there.is_dir() and os.access(there, os.W_OK | os.X_OK)

"""The process of a command that Python code waits for (`yatt.faces.waiting`)."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import sys
from typing import NoReturn

from yatt import cli

PR_SET_PDEATHSIG = 1


def main() -> NoReturn:
    """Entry point of the process: as the command line, but that errors go to a pipe, and it ends with its parent."""
    pipe, parent = int(sys.argv[1]), int(sys.argv[2])
    sys.argv = ["yatt.api", *sys.argv[3:]]  # no command line that would do it again
    os.set_inheritable(pipe, False)
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)  # a run is saved first
    if os.getppid() != parent:
        sys.exit(1)

    def tell(error: Exception, text: str) -> None:
        with contextlib.suppress(OSError):
            os.write(pipe, json.dumps({"kind": type(error).__name__, "text": text}).encode())

    cli.main(tell)
    sys.exit(0)

"""A Python interpreter, as a tool: each piece of code in a process of its own, without a network, within limits."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile

LONGEST = 8000
"""Most characters that a piece of code may print."""

# What the new process does before the code: limits, then no network, neither for it nor for what it starts, where the
# kernel lets an ordinary process have a network namespace of its own; where it does not, sockets are refused in Python.
_BEGIN = """
import resource, sys
memory, seconds = int(sys.argv[1]), int(sys.argv[2])
for name, most in (("RLIMIT_AS", memory), ("RLIMIT_CPU", seconds), ("RLIMIT_FSIZE", 64 << 20), ("RLIMIT_NPROC", 64)):
    try:
        resource.setrlimit(getattr(resource, name), (most, most))
    except (ValueError, OSError):
        pass
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
import ctypes
if ctypes.CDLL(None).unshare(0x10000000 | 0x40000000):
    def refuse(event, arguments):
        if event.startswith("socket.") and event not in ("socket.__new__", "socket.gethostname"):
            raise PermissionError("there is no network here")
    sys.addaudithook(refuse)
code = compile(sys.stdin.read(), "<code>", "exec")
sys.argv = ["<code>"]
exec(code, {"__name__": "__main__"})
"""


class Python:
    """Runs Python code. Nothing is kept from one piece of code to the next. `seconds` and `megabytes` limit each.

    This keeps honest mistakes from doing harm; it is no prison for code that is meant to break out."""

    def __init__(self, seconds: float = 5.0, megabytes: int = 512) -> None:
        self._seconds, self._memory = seconds, megabytes << 20

    def python(self, code: str) -> str:
        """Run Python code and see what it prints. Nothing is kept between two pieces of code.

        Args:
            code: A whole program, which prints what it finds out.
        """
        return run(code, self._seconds, self._memory)


def run(code: str, seconds: float, memory: int) -> str:
    """What a program prints, and how it ended where that was not well."""
    with tempfile.TemporaryDirectory(prefix="yatt-python-") as folder:
        environment = {"PATH": os.defpath, "HOME": folder, "TMPDIR": folder, "PYTHONDONTWRITEBYTECODE": "1"}
        process = subprocess.Popen(
            [sys.executable, "-I", "-c", _BEGIN, str(memory), str(max(1, round(seconds)))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=environment,
            start_new_session=True,
        )
        try:
            printed, _ = process.communicate(code.encode("utf-8", "backslashreplace"), timeout=seconds)
            ended = "" if process.returncode == 0 else _how(process.returncode)
        except subprocess.TimeoutExpired:
            ended, printed = f"it was stopped after {seconds:g} s", b""
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    text = printed.decode("utf-8", "backslashreplace")
    if len(text) > LONGEST:
        text = f"{text[:LONGEST]}\n... ({len(text) - LONGEST} more characters)"
    return "\n".join(part for part in (text.rstrip("\n"), ended) if part) or "(nothing was printed)"


def _how(status: int) -> str:
    if status > 0:
        return ""  # an error has told of itself
    return f"it was stopped by {signal.Signals(-status).name}"

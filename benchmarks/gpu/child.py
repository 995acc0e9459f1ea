"""A part in a process of its own: what it says is read line by line, and it is ended when its time is over."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


class Child:
    """`python -m benchmarks.gpu.part WORDS`; what libraries print goes to `log`."""

    def __init__(self, words: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self._pipe, told = os.pipe()
        self._rest, self._late, self._log = b"", False, log
        command = [sys.executable, "-m", "benchmarks.gpu.part", *words, "--told", str(told)]
        with log.open("wb") as output:
            # A session of its own, so that what it starts ends with it.
            self._process = subprocess.Popen(
                command,
                env=dict(environment),
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=(told,),
                start_new_session=True,
            )
        os.close(told)

    def read(self, deadline: float) -> dict[str, Any] | None:
        """The next thing it says; None at its end, or at `deadline` of the monotonic clock, when it is ended."""
        while b"\n" not in self._rest:
            left = deadline - time.monotonic()
            ready, _, _ = select.select([self._pipe], [], [], max(0.0, left))
            data = os.read(self._pipe, 1 << 16) if ready else b""
            if not data:
                self._late = not ready
                return None
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message

    def end(self) -> str | None:
        """End it and all it started; how it failed, or None."""
        if self._late:
            self._kill()
        status = self._process.wait()
        self._kill()
        os.close(self._pipe)
        if self._late:
            return f"its time was over; the rows above are what was known ({self._log} has more)"
        if status:
            return f"ended with status {status}: {self._last_line()} ({self._log} has more)"
        return None

    def _kill(self) -> None:
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return

    def _last_line(self) -> str:
        lines = self._log.read_text(encoding="utf-8", errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")

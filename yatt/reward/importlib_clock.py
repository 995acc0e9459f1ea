"""Says when a reward function imports modules, so that no item pays for it. The file's name keeps it out of the lines
that errors are said to come from (`yatt.user_functions.describe`). Light."""

from __future__ import annotations

import builtins
import functools
import importlib
import os
import sys
import threading
from collections.abc import Callable
from typing import Any


class ImportClock:
    """Calls `tell(True)` when the thread that made it begins to load modules that are not loaded yet, in the middle of
    an import statement or of `importlib.import_module`, and `tell(False)` when that one has ended."""

    def __init__(self, tell: Callable[[bool], None]) -> None:
        self._tell = tell
        self._at = (os.getpid(), threading.get_ident())
        self._depth, self._told = 0, False

    def start(self) -> None:
        builtins.__import__ = self._timed(builtins.__import__)
        importlib.import_module = self._timed(importlib.import_module)
        sys.meta_path.insert(0, self)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        """Asked first for each module that is not loaded; finds none."""
        if self._depth and not self._told and self._here():
            self._told = True
            self._tell(True)

    def _timed(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def imported(*args: Any, **kwargs: Any) -> Any:
            if not self._here():
                return original(*args, **kwargs)
            self._depth += 1
            try:
                return original(*args, **kwargs)
            finally:
                self._depth -= 1
                if self._told and not self._depth:
                    self._told = False
                    self._tell(False)

        return imported

    def _here(self) -> bool:
        return self._at == (os.getpid(), threading.get_ident())

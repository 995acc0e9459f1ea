"""Which generator draws what: the one with the least outstanding work; siblings of a group stay together."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from yatt.protocols import Generator
from yatt.types import Completion, Request


class Router:
    """Spreads groups over generators. Ties begin at `first`, so that controllers do not all start at the same one."""

    def __init__(self, generators: Sequence[Generator], *, first: int = 0) -> None:
        self._generators = [generators[(first + i) % len(generators)] for i in range(len(generators))]
        self._outstanding = [0] * len(generators)

    async def generate(self, requests: Sequence[Request]) -> AsyncIterator[list[Completion]]:
        """Completions of one group in the order they end, from one generator."""
        chosen = min(range(len(self._generators)), key=self._outstanding.__getitem__)
        left = len(requests)
        self._outstanding[chosen] += left
        try:
            async for completions in self._generators[chosen].generate(requests):
                left -= len(completions)
                self._outstanding[chosen] -= len(completions)
                yield completions
        finally:
            self._outstanding[chosen] -= left

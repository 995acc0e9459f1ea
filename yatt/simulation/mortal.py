"""A simulated process, which may hang, die, or be closed."""

from __future__ import annotations

import asyncio

from yatt.errors import BackendError, ProcessDied


class Mortal:
    """Base of what dies. `dead` says why it did, and `died` is set then."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.dead: ProcessDied | None = None
        self.died = asyncio.Event()
        self.hangs = False
        self.closed = False

    async def _check(self) -> None:
        """Raises for one that is dead or closed; one that hangs gives no answer until it is dead."""
        if self.hangs:
            await self.died.wait()
        if self.dead is not None:
            raise self.dead
        if self.closed:
            raise BackendError(f"{self.name} is closed")

"""The time of day."""

from __future__ import annotations

import asyncio
import time


class WallClock:
    """Seconds since the epoch."""

    def now(self) -> float:
        return time.time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

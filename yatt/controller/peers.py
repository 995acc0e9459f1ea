"""Collectives among controllers: everyone brings a small value to a hub and takes everybody's home."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from yatt.errors import WaitTimeout


@dataclass(slots=True)
class _Meeting:
    values: dict[int, Any] = field(default_factory=dict)
    complete: asyncio.Event = field(default_factory=asyncio.Event)
    left: int = 0


class Hub:
    """Where controllers meet. One controller hosts it; a tag names a meeting and may be used again once it is over."""

    def __init__(self, count: int, timeout: float) -> None:
        self._count = count
        self._timeout = timeout
        self._meetings: dict[str, _Meeting] = {}

    async def gather(self, tag: str, index: int, value: Any) -> list[Any]:
        """Bring `value`; returns everyone's, in controller order. Raises WaitTimeout naming who did not come."""
        meeting = self._meetings.setdefault(tag, _Meeting())
        meeting.values[index] = value
        if len(meeting.values) == self._count:
            meeting.complete.set()
        try:
            await asyncio.wait_for(meeting.complete.wait(), self._timeout)
        except TimeoutError:
            missing = sorted(set(range(self._count)) - meeting.values.keys())
            raise WaitTimeout(
                f"controller {index} waited {self._timeout:g} s at '{tag}' for controllers {missing}"
            ) from None
        meeting.left += 1
        if meeting.left == self._count:
            del self._meetings[tag]
        return [meeting.values[i] for i in range(self._count)]


class HubPeers:
    """`Peers` through a hub; `gather` is the hub's, called directly or over the wire."""

    def __init__(self, index: int, count: int, gather: Callable[[str, int, Any], Awaitable[list[Any]]]) -> None:
        self.index = index
        self.count = count
        self._gather = gather

    async def all_gather(self, tag: str, value: Any) -> list[Any]:
        return [value] if self.count == 1 else await self._gather(tag, self.index, value)

    async def barrier(self, tag: str) -> None:
        await self.all_gather(tag, None)

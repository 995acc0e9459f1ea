"""Collectives among controllers, through a hub: each brings a small value and takes those of all home; and the leader's
announcements, which all hear."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import Any, Protocol

from yatt.errors import WaitTimeout

HEARING_SECONDS = 30.0
"""How long a listener is kept waiting for news before it is told that there are none."""


class Meeting(Protocol):
    """The hub, here or over the wire."""

    async def gather(self, tag: str, index: int, value: Any) -> list[Any]: ...

    async def hear(self, seen: int) -> tuple[int, Any]: ...


@dataclass(slots=True)
class _Gathering:
    values: dict[int, Any] = field(default_factory=dict)
    complete: asyncio.Event = field(default_factory=asyncio.Event)
    left: int = 0


class Hub:
    """Where controllers meet, hosted by one of them. A tag names a gathering and may be used again after it."""

    def __init__(self, count: int, timeout: float) -> None:
        self._count = count
        self._timeout = timeout
        self._gatherings: dict[str, _Gathering] = {}
        self._news: tuple[int, Any] = (0, None)
        self._told = asyncio.Event()

    async def gather(self, tag: str, index: int, value: Any) -> list[Any]:
        """Bring `value`; returns everyone's, in controller order. Raises WaitTimeout naming who did not come."""
        gathering = self._gatherings.setdefault(tag, _Gathering())
        gathering.values[index] = value
        if len(gathering.values) == self._count:
            gathering.complete.set()
        try:
            async with asyncio.timeout(self._timeout):
                await gathering.complete.wait()
        except TimeoutError:
            missing = sorted(set(range(self._count)) - gathering.values.keys())
            raise WaitTimeout(
                f"controller {index} waited {self._timeout:g} s at '{tag}' for controllers {missing}"
            ) from None
        gathering.left += 1
        if gathering.left == self._count:
            del self._gatherings[tag]
        return [gathering.values[i] for i in range(self._count)]

    def announce(self, value: Any) -> None:
        """Replace the news: everyone who listens hears of it."""
        self._news = (self._news[0] + 1, value)
        self._told.set()
        self._told = asyncio.Event()

    async def hear(self, seen: int) -> tuple[int, Any]:
        """The number of the news and the news, once there are others than number `seen`, or after HEARING_SECONDS."""
        if self._news[0] == seen:
            # Not `wait_for`, which forgets that it was cancelled where the news come at that moment.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(HEARING_SECONDS):
                    await self._told.wait()
        return self._news


class HubPeers:
    """`Peers` through a hub. `host` is the hub itself, on the controller that hosts it."""

    def __init__(self, index: int, count: int, hub: Meeting, host: Hub | None = None) -> None:
        self.index = index
        self.count = count
        self._hub = hub
        self._host = host

    async def all_gather(self, tag: str, value: Any) -> list[Any]:
        return [value] if self.count == 1 else await self._hub.gather(tag, self.index, value)

    def announce(self, value: Any) -> None:
        if self._host is None:
            raise RuntimeError(f"controller {self.index} does not host the hub, and cannot announce")
        self._host.announce(value)

    async def hear(self, seen: int) -> tuple[int, Any]:
        return await self._hub.hear(seen)

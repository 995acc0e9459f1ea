"""What a controller and a worker of environments say to each other: JSON, in frames of a length and a checksum."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import zlib
from typing import Any

LONGEST = 64 << 20
_HEADER = struct.Struct(">II")


class Link:
    """One end of a socket pair. `send` never waits; `receive` raises EOFError once the other end is gone, and for bytes
    that are no frame."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def over(cls, end: socket.socket) -> Link:
        return cls(*await asyncio.open_connection(sock=end))

    def send(self, message: Any) -> None:
        payload = json.dumps(message).encode()
        self._writer.write(_HEADER.pack(len(payload), zlib.crc32(payload)) + payload)

    async def receive(self) -> Any:
        try:
            length, checksum = _HEADER.unpack(await self._reader.readexactly(_HEADER.size))
            if length > LONGEST:
                raise EOFError
            payload = await self._reader.readexactly(length)
        except (asyncio.IncompleteReadError, OSError):
            raise EOFError from None
        if zlib.crc32(payload) != checksum:
            raise EOFError
        return json.loads(payload)

    def close(self) -> None:
        self._writer.close()

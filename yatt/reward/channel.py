"""How a controller and a reward worker talk: frames that a reward function cannot mix up, whatever it writes where.

A frame is the token of the question it belongs to, the length and the checksum of what follows, and that. Light.
"""

from __future__ import annotations

import socket
import struct
import time
import zlib

LONGEST_ANSWER = 1 << 20
TOKEN_BYTES = 16
_HEADER = struct.Struct(f">{TOKEN_BYTES}sII")


class Rubbish(Exception):
    """Bytes that are no frame, or one of another question."""


class Channel:
    """One end of a socket. Deadlines are of `time.monotonic`, for a whole frame; without one a call waits for ever."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end

    def send(self, token: bytes, payload: bytes, deadline: float | None = None) -> None:
        """Raises TimeoutError at the deadline, OSError once the other end is closed."""
        self._wait_until(deadline)
        self._socket.sendall(_HEADER.pack(token, len(payload), zlib.crc32(payload)) + payload)

    def question(self) -> tuple[bytes, bytes]:
        """The next frame's token and payload, whatever its length. Raises EOFError once the other end is closed."""
        token, length, _ = _HEADER.unpack(self._read(_HEADER.size, None))
        return token, self._read(length, None)

    def answer(self, token: bytes, deadline: float) -> bytes:
        """The payload of the next frame. Raises Rubbish where it is none of this token, TimeoutError at the deadline,
        and EOFError once the other end is closed."""
        header = self._read(_HEADER.size, deadline, begins=token)
        _, length, checksum = _HEADER.unpack(header)
        if length > LONGEST_ANSWER:
            raise Rubbish
        payload = self._read(length, deadline)
        if zlib.crc32(payload) != checksum:
            raise Rubbish
        return payload

    def quiet(self) -> bool:
        """Whether the other end is open and has said nothing that was not read."""
        self._socket.settimeout(0)
        try:
            self._socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            pass
        return False

    def close(self) -> None:
        self._socket.close()

    def _read(self, size: int, deadline: float | None, begins: bytes = b"") -> bytes:
        data = bytearray()
        while len(data) < size:
            self._wait_until(deadline)
            part = self._socket.recv(min(size - len(data), 1 << 20))
            if not part:
                raise EOFError
            data += part
            if not begins.startswith(bytes(data[: len(begins)])):
                raise Rubbish
        return bytes(data)

    def _wait_until(self, deadline: float | None) -> None:
        # At the deadline, too, what lies ready is read.
        self._socket.settimeout(None if deadline is None else max(0.001, deadline - time.monotonic()))

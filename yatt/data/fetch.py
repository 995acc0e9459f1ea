"""Images from the network: within seconds, of a limited size, and from nowhere but http and https."""

from __future__ import annotations

import threading
import time

import httpx

from yatt.errors import BadRow

SECONDS = 20.0
"""Longest that an image may take, redirects included."""
PAUSE = 5.0
"""Longest that a server may say nothing."""
MOST_BYTES = 32 << 20
REDIRECTS = 3


def fetch(url: str, seconds: float = SECONDS, most: int = MOST_BYTES) -> bytes:
    """What is at an address. Raises BadRow where it does not come within `seconds`, is larger than `most`, or is not
    there. A redirect leads to http or https or nowhere."""
    result: list[bytes | str] = []
    thread = threading.Thread(target=lambda: result.append(_tried(url, seconds, most)), daemon=True)
    thread.start()
    thread.join(seconds)  # a server that sends its headers a byte at a time is held up by no limit of one read
    outcome = result[0] if result else f"it did not come within {seconds:g} s"
    if isinstance(outcome, str):
        raise BadRow(f"image {url!r:.200} cannot be fetched: {outcome}")
    return outcome


def _tried(url: str, seconds: float, most: int) -> bytes | str:
    """The bytes, or why there are none, in words without what differs from one try to the next."""
    until = time.monotonic() + seconds
    try:
        with (
            httpx.Client(follow_redirects=True, max_redirects=REDIRECTS, timeout=min(PAUSE, seconds)) as client,
            client.stream("GET", url) as answer,
        ):
            if not answer.is_success:
                return f"status {answer.status_code}"
            pieces: list[bytes] = []
            size = 0
            for piece in answer.iter_bytes():
                size += len(piece)
                if size > most:
                    return f"it has over {most} bytes"
                if time.monotonic() > until:
                    return f"it did not come within {seconds:g} s"
                pieces.append(piece)
            return b"".join(pieces)
    except httpx.UnsupportedProtocol:
        return "it leads to what is neither http nor https"
    except httpx.TooManyRedirects:
        return f"over {REDIRECTS} redirects"
    except httpx.TimeoutException:
        return f"nothing came for {min(PAUSE, seconds):g} s"
    except Exception as error:  # of what httpx stands on, too
        return "no connection" if isinstance(error, httpx.ConnectError) else type(error).__name__

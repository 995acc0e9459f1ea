"""Where the ranks of a run meet. Light."""

from __future__ import annotations

import socket

from yatt.errors import BackendError, ConfigError


def reserve_port() -> socket.socket:
    """A socket that keeps a TCP port, free on all addresses: until it is closed, the system gives the port to nobody
    else, and whoever knows it can listen there. Raises ConfigError when the machine has none."""
    keeper = socket.socket()
    try:
        keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        keeper.bind(("", 0))
    except OSError as error:
        keeper.close()
        raise ConfigError(
            f"cluster: no free TCP port on this machine ({error.strerror}); "
            "end programs that hold ports, or widen net.ipv4.ip_local_port_range"
        ) from None
    return keeper


def loopback(address: str) -> bool:
    """Whether only this machine reaches it."""
    return address in ("localhost", "::1") or address.startswith("127.")


def listen(address: str, port: int) -> socket.socket:
    """A socket that listens at this address alone, where torch would listen on all. Raises BackendError where the port
    is taken."""
    try:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        return socket.create_server((address, port), family=family, backlog=2048)
    except OSError as error:
        raise BackendError(
            f"trainer rank 0 cannot listen at {address}:{port}: {error.strerror}; free the port"
        ) from error

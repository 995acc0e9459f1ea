"""Where the ranks of a run meet. Light."""

from __future__ import annotations

import socket

from yatt.errors import ConfigError


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

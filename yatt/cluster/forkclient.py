"""Stands in for a process that a fork server makes: `forkclient.py SOCKET SCRIPT WORD...` in Python's place.

It passes on the arguments, the environment, the folder, the limits, and the files 0 to 2; then signals; and it ends as
the process does. Where there is no server any more, it becomes Python itself. Imports little, for all wait for it.
"""

import array
import json
import os
import resource
import signal
import socket
import sys
from collections.abc import Mapping

PASSED_ON = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


def ask(path: str, request: Mapping[str, object], files: tuple[int, ...] = ()) -> socket.socket:
    """Send a fork server a request, and files with it. Raises OSError where none listens."""
    server = socket.socket(socket.AF_UNIX)
    server.connect(path)
    body = json.dumps(request).encode()
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))] if files else []
    server.sendmsg([len(body).to_bytes(4, "big")], rights)
    server.sendall(body)
    return server


def main() -> int:
    path, *argv = sys.argv[1:]
    limits = [name for name in dir(resource) if name.startswith("RLIMIT_")]
    request = {
        "want": "process",
        "argv": argv,
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "limits": {name: resource.getrlimit(getattr(resource, name)) for name in limits},
    }
    try:
        server = ask(path, request, (0, 1, 2))
        number = server.recv(4, socket.MSG_WAITALL)
    except OSError:
        number = b""
    if len(number) < 4:
        os.execv(sys.executable, [sys.executable, *argv])
    pid = int.from_bytes(number, "big")
    for passed in PASSED_ON:
        signal.signal(passed, lambda received, frame: os.kill(pid, received))
    status = server.recv(4, socket.MSG_WAITALL)
    if len(status) < 4:
        return 1  # the server has gone, and the process may live on
    code = int.from_bytes(status, "big", signed=True)
    if code < 0:
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


if __name__ == "__main__":
    sys.exit(main())

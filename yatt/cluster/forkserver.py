"""A fork server: a process that has imported what others need, and forks one for each `forkclient` that asks.

It is run as a script, and by itself imports nothing but Python's own modules. A server may branch off another one, and
imports more. All end with the process that holds the other end of the lifeline. A fork keeps neither threads nor
devices, so a server that came to have them refuses. Ray is not to be imported: it reads its environment only then.
"""

from __future__ import annotations

import array
import contextlib
import gc
import importlib
import json
import os
import random
import resource
import runpy
import selectors
import signal
import socket
import sys
from typing import Any

PATIENCE = 10.0
"""Seconds that a client has to say what it wants."""
Asked = dict[str, Any]


class Server:
    """Serves clients of a listening socket. One that wants a process is told its number, and its exit status when it
    ends; one that goes away takes its process along. Where this server must not be forked, `refusal` says why."""

    def __init__(self, listener: int, lifeline: int, refusal: str) -> None:
        self._listener = socket.socket(fileno=listener)
        self.path: str = self._listener.getsockname()
        self._lifeline = lifeline
        self._refusal = refusal
        self._clients: dict[int, socket.socket] = {}
        self._wake, self._woken = socket.socketpair()
        for end in (self._wake, self._woken):
            end.setblocking(False)

    def serve(self) -> Asked | None:
        """Returns in every process that it forks, with what was asked for; in the server itself None, once nobody holds
        the lifeline."""
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.set_wakeup_fd(self._woken.fileno(), warn_on_full_buffer=False)
        with selectors.DefaultSelector() as selector:
            for waiting in (self._listener, self._lifeline, self._wake):
                selector.register(waiting, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    if key.fileobj is self._wake:
                        self._bury(selector)
                    elif key.fileobj is self._listener:
                        if (asked := self._answer(selector)) is not None:
                            return asked
                    elif key.fileobj == self._lifeline:
                        return None
                    elif key.data in self._clients:
                        selector.unregister(key.fileobj)
                        os.kill(key.data, signal.SIGKILL)

    def _answer(self, selector: selectors.BaseSelector) -> Asked | None:
        """Do what a client asks; what that is, in the process that is forked for it."""
        client = self._listener.accept()[0]
        try:
            client.settimeout(PATIENCE)
            asked = receive(client)
            if asked["want"] == "word" or self._refusal:
                client.sendall((self._refusal or "ready").encode() if asked["want"] == "word" else b"")
                asked["want"] = "nothing"
        except (OSError, ValueError, KeyError):
            client.close()
            return None
        if asked["want"] != "nothing":
            if (pid := os.fork()) == 0:
                self._leave(client)
                return asked
            if asked["want"] == "process":
                with contextlib.suppress(OSError):
                    client.sendall(pid.to_bytes(4, "big"))
                self._clients[pid] = client
                selector.register(client, selectors.EVENT_READ, pid)
        if asked["want"] != "process":
            client.close()
        for file in asked["files"]:
            os.close(file)
        return None

    def _leave(self, client: socket.socket) -> None:
        """Nothing of the server's stays open in a process that it has forked."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for end in (client, self._listener, self._wake, self._woken, *self._clients.values()):
            end.close()

    def _bury(self, selector: selectors.BaseSelector) -> None:
        """Tell the clients of processes that have ended."""
        with contextlib.suppress(BlockingIOError):
            while self._wake.recv(4096):
                pass
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if (client := self._clients.pop(ended[0], None)) is None:
                    continue
                with contextlib.suppress(KeyError):
                    selector.unregister(client)
                with contextlib.suppress(OSError):
                    client.sendall(os.waitstatus_to_exitcode(ended[1]).to_bytes(4, "big", signed=True))
                client.close()


def receive(client: socket.socket) -> Asked:
    """One request: its size in 4 bytes, with the files that come along, then JSON."""
    numbers = array.array("i")
    size, ancillary, _, _ = client.recvmsg(4, socket.CMSG_LEN(3 * numbers.itemsize))
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            numbers.frombytes(data[: len(data) - len(data) % numbers.itemsize])
    with client.makefile("rb") as stream:
        asked: Asked = json.loads(stream.read(int.from_bytes(size, "big")))
    return asked | {"files": list(numbers)}


def prepare(modules: list[str]) -> str:
    """Import modules, so that a fork has them; why there can be none, or nothing."""
    sys.modules["ray"] = None  # type: ignore[assignment]  # who can do without it does
    try:
        for module in modules:
            importlib.import_module(module)
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    finally:
        del sys.modules["ray"]
    gc.collect()
    gc.freeze()  # the pages of what is imported stay shared
    return unfit()


def unfit() -> str:
    """Why this process must not be forked; nothing where it may."""
    if (threads := len(os.listdir("/proc/self/task")) - 1) > 0:
        return f"its imports started {threads} threads"
    for file in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if (path := os.readlink(f"/proc/self/fd/{file}")).startswith("/dev/nvidia"):
                return f"its imports opened {path}"
    return ""


def become(asked: Asked) -> None:
    """Run a script as Python would in a process of its own."""
    for number, file in enumerate(asked["files"]):
        os.dup2(file, number)
        os.close(file)
    _set_environment(asked["environment"])
    os.chdir(asked["folder"])
    for name, limits in asked["limits"].items():
        with contextlib.suppress(OSError, ValueError):  # one that may not be raised stays
            resource.setrlimit(getattr(resource, name), limits)
    random.seed()
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed()
    sys.argv = asked["argv"]
    sys.path.insert(0, os.path.dirname(sys.argv[0]))
    runpy.run_path(sys.argv[0], run_name="__main__")


def _set_environment(environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)


def main() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the driver saves first, and then ends all
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
    listener, lifeline = map(int, sys.argv[1:3])
    asked: Asked | None = {"want": "branch", "modules": sys.argv[3:], "files": [listener]}
    while asked is not None and asked["want"] == "branch":
        if "environment" in asked:
            _set_environment(asked["environment"])
        server = Server(asked["files"][0], lifeline, prepare(asked["modules"]))
        path = server.path
        asked = server.serve()
    if asked is None:
        with contextlib.suppress(OSError):
            os.unlink(path)
            os.rmdir(os.path.dirname(path))  # once the last has gone
    else:
        os.close(lifeline)
        del server
        become(asked)


if __name__ == "__main__":
    main()

"""The fork servers of a driver: started before Ray is, asked when an actor is placed.

There is a server for each kind of process on this machine's cores. GPUs have none, for an import there may touch the
driver, which no fork survives; neither has a cluster that is joined. What has none starts as Ray starts it, and takes
its time.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import json
import logging
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from yatt.cluster import forkclient, forkserver
from yatt.cluster.backends import Backends
from yatt.cluster.folders import ray_folder
from yatt.cluster.kinds import FIRST, Kind, Slot, controller_kind, generator_kind, rank_kind, threads_of
from yatt.config.schema import Config
from yatt.placement.plan import POLICY

SHARED = "YATT_FORK_SERVERS"
"""A variable with a folder of servers that outlive a run; they end with who holds its `lifeline`, a FIFO."""
VOLATILE = ("PYTEST_", "PWD", "OLDPWD", "SHLVL", "_", "COLUMNS", "LINES", "RAY_")
"""What variables begin with that nobody reads as it is imported."""


class ForkServers:
    """Servers by the kind of process that they fork. Those of one slot environment branch off one that has imported
    what they all need."""

    def __init__(self) -> None:
        self._shared = os.environ.get(SHARED)
        self._folder = Path(self._shared or tempfile.mkdtemp(prefix="yatt-", dir=ray_folder()))
        self._lifeline, self._ours = (-1, -1) if self._shared else os.pipe()
        self._asked: dict[Kind, tuple[str, socket.socket]] = {}
        self._words: dict[Kind, bytes] = {}
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self, kinds: Iterable[Kind]) -> None:
        """Have a server for each of these kinds; waits for none."""
        with _locked(self._folder) if self._shared else contextlib.nullcontext():
            for kind in kinds:
                if kind not in self._asked:
                    path = self._path(kind)
                    if not _listens(path):
                        self._branch(kind, path)
                    self._asked[kind] = path, forkclient.ask(path, {"want": "word"})

    def _path(self, kind: Kind) -> str:
        rooms = {name: os.readlink(f"/proc/self/ns/{name}") for name in sorted(os.listdir("/proc/self/ns"))}
        facts = [sorted(_lasting(os.environ | kind.environment).items()), kind.modules, _paths(), rooms, os.getuid()]
        return str(self._folder / hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16])

    def _branch(self, kind: Kind, path: str) -> None:
        trunk = self._path(Kind(slot=kind.slot, own=(), modules=FIRST))
        if not _listens(trunk):
            self._plant(dict(kind.slot), trunk)
        request = {"want": "branch", "modules": kind.modules, "environment": os.environ | kind.environment}
        with _listener(path) as listener:
            forkclient.ask(trunk, request, (listener.fileno(),)).close()

    def _plant(self, slot: dict[str, str], path: str) -> None:
        lifeline = os.open(self._folder / "lifeline", os.O_RDONLY | os.O_NONBLOCK) if self._shared else self._lifeline
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
        try:
            with _listener(path) as listener:
                files = (listener.fileno(), lifeline)
                command = [sys.executable, "-u", "-P", forkserver.__file__, *map(str, files), *FIRST]
                self._processes.append(
                    subprocess.Popen(
                        command,
                        env=os.environ | {"PYTHONPATH": os.pathsep.join(_paths())} | slot,
                        stdin=subprocess.DEVNULL,
                        stdout=subprocess.DEVNULL,
                        stderr=subprocess.DEVNULL,
                        pass_fds=files,
                    )
                )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            if self._shared:
                os.close(lifeline)

    async def ready(self, timeout: float) -> list[str]:
        """Wait until every server can fork; why some cannot."""
        loop, refusals = asyncio.get_running_loop(), []
        for kind, (_, server) in self._asked.items():
            if kind in self._words:
                continue
            server.setblocking(False)
            try:
                word = await asyncio.wait_for(loop.sock_recv(server, 4096), timeout)
            except (OSError, TimeoutError) as error:
                word = (str(error) or f"no word from it in {timeout:.0f} s").encode()
            self._words[kind] = word
            if word != b"ready":
                refusals.append(word.decode() or "it is gone")
        return refusals

    def python(self, kind: Kind) -> str | None:
        """The command in Python's place that starts a process of this kind, where a server is ready to fork it."""
        if self._words.get(kind) != b"ready":
            return None
        return shlex.join([sys.executable, "-S", "-E", forkclient.__file__, self._asked[kind][0]])

    def close(self) -> None:
        """End the servers of this driver; what they have forked lives on."""
        for _, server in self._asked.values():
            server.close()
        if self._shared:
            return
        os.close(self._ours)
        os.close(self._lifeline)
        for process in self._processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(1)


_servers: ForkServers | None = None
"""Those of this process; as Ray, it has them once."""


def begin(kinds: Sequence[Kind]) -> None:
    """Have servers for these kinds, so that they import while this process prepares itself. Waits for none."""
    global _servers
    if not kinds:
        return
    try:
        _servers = _servers or ForkServers()
        _servers.start(kinds)
    except OSError as error:
        logging.getLogger(__name__).warning("processes start one by one, for no fork server starts: %s", error)


async def ready(timeout: float) -> None:
    """Wait until the servers can fork, and say which cannot."""
    for refusal in await _servers.ready(timeout) if _servers else ():
        logging.getLogger(__name__).warning("processes start one by one, for a fork server cannot serve: %s", refusal)


def python(kind: Kind) -> str | None:
    """As that of `ForkServers`; None where there are none."""
    return _servers.python(kind) if _servers else None


def end() -> None:
    """End the servers of this process."""
    global _servers
    if _servers:
        _servers.close()
    _servers = None


def kinds_of(config: Config, backends: Backends, *, train: bool, generate: bool) -> list[Kind]:
    """The kinds of processes that a run on this machine's cores has; none where it may be elsewhere."""
    cluster = config.cluster
    if cluster.address is not None or cluster.device == "cuda" or (cluster.device == "auto" and _gpus()):
        return []
    slot = Slot(index=0, node="", device="cpu", device_index=0, threads=threads_of(cluster, cluster.slots or 1))
    judges = [role for role, judge in config.reward.models.items() if judge.path]
    kinds = [generator_kind(config, role, [slot], backends) for role in (POLICY, *judges)] if generate else []
    kinds += [rank_kind(slot, backends)] if train else []
    return [*kinds, controller_kind(slot, backends)]


def _gpus() -> bool:
    return any(Path("/dev").glob("nvidia[0-9]*"))


def _paths() -> list[str]:
    """Where modules are found. The working directory is not among them: each actor adds its own."""
    here = Path.cwd()
    at_home = here == Path(__file__).parents[2]
    return [path for path in sys.path if path and (at_home or Path(path) != here)]


def _lasting(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if not name.startswith(VOLATILE)}


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _listener(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    Path(path).unlink(missing_ok=True)
    listener.bind(path)
    listener.listen(1024)
    return listener


def _listens(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as client, contextlib.suppress(OSError):
        client.connect(path)
        return True
    return False

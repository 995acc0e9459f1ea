"""Fork servers, without Ray: what a forked process gets, what its stand-in does, and who ends with whom."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from real_runs import wait_for

from yatt.cluster import forks
from yatt.cluster.backends import Backends
from yatt.cluster.forks import SHARED, ForkServers, kinds_of
from yatt.cluster.kinds import Kind
from yatt.config.load import load_config

SCRIPT = """
import json, os, random, resource, signal, sys
print(json.dumps({
    "argv": sys.argv, "name": __name__, "path": sys.path[0], "folder": os.getcwd(), "pid": os.getpid(),
    "counted": sys.modules["counted"].PID if "counted" in sys.modules else None, "own": os.environ.get("OWN"),
    "read": sys.modules["counted"].READ if "counted" in sys.modules else None, "late": os.environ.get("LATE"),
    "random": random.random(), "files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
    "ray": "ray" in sys.modules, "blocked": signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []),
    "open": sorted(map(int, os.listdir("/proc/self/fd"))),
}), flush=True)
print("a word", file=sys.stderr)
what = sys.argv[1]
if what == "wait":
    signal.pause()
sys.exit(int(what))
"""
COUNTED = """
import os
try:
    import ray
    raise RuntimeError("Ray is imported in the process that uses it")
except ImportError:
    PID, READ = os.getpid(), os.environ.get("OWN")
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a script, and modules that are imported."""
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "counted.py").write_text(COUNTED)
    (tmp_path / "threaded.py").write_text(
        "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
    )
    (tmp_path / "broken.py").write_text("import nothing_of_the_kind\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(forks, "FIRST", ("json",))
    monkeypatch.delenv(SHARED, raising=False)
    return tmp_path


@pytest.fixture
def servers(place):
    servers = ForkServers()
    yield servers
    servers.close()


def kind(module: str, own: str = "set before") -> Kind:
    return Kind(slot=(("OMP_NUM_THREADS", "1"),), own=(("OWN", own),), modules=(module,))


def command(servers: ForkServers, of: Kind, place: Path, *words: str) -> list[str]:
    servers.start([of])
    assert asyncio.run(servers.ready(60)) == []
    python = servers.python(of)
    assert python is not None
    return [*shlex.split(python), str(place / "script.py"), *words]


def test_a_forked_process_is_as_one_that_python_starts(place, servers):
    forked = command(servers, kind("counted"), place, "3", "two words")
    ordinary = [sys.executable, *forked[-3:]]
    told = []
    for one in (forked, forked, ordinary):
        done = subprocess.run(
            ["bash", "-c", 'ulimit -n 200; exec "$@"', "bash", *one],
            cwd=place.parent,
            env=os.environ | {"LATE": "given", "OWN": "another"},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 3 and done.stderr == "a word\n"
        told.append(json.loads(done.stdout))
    one, other, plain = told
    for alike in ("argv", "name", "path", "folder", "own", "late", "files", "ray"):
        assert one[alike] == plain[alike], alike
    assert one["files"] == 200 and one["late"] == "given" and one["own"] == "another" and not one["ray"]
    assert one["counted"] == other["counted"] not in (one["pid"], None), "it was imported once"
    assert one["read"] == "set before", "its kind's variables were there when it was imported"
    assert one["random"] != other["random"]
    assert one["blocked"] and not plain["blocked"], "Ctrl-C is the driver's, as with what Ray starts"
    assert len(one["open"]) <= len(plain["open"]), "nothing of the server's stays open"


def test_signals_reach_the_process_and_its_end_the_stand_in(place, servers):
    waiting = command(servers, kind("counted"), place, "wait")
    with subprocess.Popen(waiting, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as stand_in:
        assert stand_in.stdout is not None
        process = psutil.Process(json.loads(stand_in.stdout.readline())["pid"])
        stand_in.send_signal(signal.SIGTERM)
        assert stand_in.wait(30) == -signal.SIGTERM and not process.is_running()


@pytest.mark.parametrize("first", ["process", "stand-in"])
def test_neither_outlives_a_kill_of_the_other(place, servers, first):
    waiting = command(servers, kind("counted"), place, "wait")
    with subprocess.Popen(waiting, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as stand_in:
        assert stand_in.stdout is not None
        process = psutil.Process(json.loads(stand_in.stdout.readline())["pid"])
        (process if first == "process" else stand_in).kill()
        assert stand_in.wait(30) == -signal.SIGKILL
        wait_for(lambda: not process.is_running(), 30, "the process to end")


def test_where_its_server_has_gone_a_process_starts_as_ever(place, servers):
    forked = command(servers, kind("counted"), place, "0")
    servers.close()
    servers.__init__()  # for the fixture to close
    told = json.loads(subprocess.run(forked, capture_output=True, check=True, timeout=60).stdout)
    assert told["counted"] is None and told["argv"] == forked[-2:]


@pytest.mark.parametrize(
    "module, why", [("threaded", "its imports started 1 threads"), ("broken", "No module named 'nothing_of_the_kind'")]
)
def test_what_must_not_be_forked_is_not(place, servers, module, why):
    servers.start([kind(module)])
    (refusal,) = asyncio.run(servers.ready(60))
    assert why in refusal
    assert servers.python(kind(module)) is None
    assert asyncio.run(servers.ready(60)) == [], "said once"


def test_servers_end_with_a_killed_driver(place):
    driver = subprocess.Popen([sys.executable, "-c", DRIVER], stdout=subprocess.PIPE, cwd=Path(__file__).parents[1])
    assert driver.stdout is not None
    folder = Path(driver.stdout.readline().decode().strip())
    servers = psutil.Process(driver.pid).children(recursive=True)
    assert len(servers) == 2 and folder.is_dir()
    driver.kill()
    driver.wait()
    wait_for(lambda: not [s for s in servers if s.is_running()] and not folder.exists(), 30, "the servers to end")


DRIVER = """
import asyncio, time
from yatt.cluster import forks
from yatt.cluster.kinds import Kind
forks.FIRST = ("json",)
servers = forks.ForkServers()
servers.start([Kind(slot=(), own=(), modules=("csv",))])
assert asyncio.run(servers.ready(60)) == []
print(servers._folder, flush=True)
time.sleep(600)
"""


def test_runs_may_share_servers_which_end_with_who_holds_their_lifeline(place, monkeypatch):
    os.mkfifo(place / "lifeline")
    lifeline = os.open(place / "lifeline", os.O_RDWR)
    monkeypatch.setenv(SHARED, str(place))
    told = []
    for _ in range(2):
        servers = ForkServers()
        forked = command(servers, kind("counted"), place, "0")
        servers.close()
        told.append(json.loads(subprocess.run(forked, capture_output=True, check=True, timeout=60).stdout))
    assert told[0]["counted"] == told[1]["counted"] is not None
    monkeypatch.setenv("OTHER_VARIABLE", "who knows who reads it")
    servers = ForkServers()
    forked = command(servers, kind("counted"), place, "0")
    other = json.loads(subprocess.run(forked, capture_output=True, check=True, timeout=60).stdout)
    assert other["counted"] not in (None, told[0]["counted"])
    os.close(lifeline)
    alive = [psutil.Process(told[0]["counted"]), psutil.Process(other["counted"])]
    wait_for(lambda: not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in alive), 30, "their end")


def test_a_run_has_a_server_for_each_kind_of_process_on_this_machines_cores(monkeypatch, tmp_path):
    monkeypatch.setattr(forks, "_gpus", lambda: False)
    settings = "{model: {path: m}, data: {path: d}, reward: {function: 'r.py:f'}, train: {steps: 1, batch_size: 1}}"
    (tmp_path / "c.yaml").write_text(settings)

    def kinds(*words: str, train: bool = True, generate: bool = True) -> list[Kind]:
        config = load_config(str(tmp_path / "c.yaml"), words)
        return kinds_of(config, Backends(), train=train, generate=generate)

    engine, rank, controller = kinds("cluster.slots=2", "cluster.threads=3")
    assert "yatt.generation.vllm.engine" in engine.modules and engine.environment["OMP_NUM_THREADS"] == "3"
    assert rank.modules == ("yatt.training.megatron.backend",) and rank.environment["CUDA_VISIBLE_DEVICES"] == ""
    assert "yatt.reward.mixed" in controller.modules and controller.environment["OMP_NUM_THREADS"] == "1"
    assert kinds("cluster.slots=2", "cluster.threads=3", generate=False) == [rank, controller]
    assert kinds("cluster.slots=2", "cluster.threads=3", train=False) == [engine, controller]
    assert kinds("cluster.address=10.0.0.1:6379") == kinds("cluster.device=cuda") == []
    monkeypatch.setattr(forks, "_gpus", lambda: True)
    assert kinds() == [] and kinds("cluster.device=cpu")

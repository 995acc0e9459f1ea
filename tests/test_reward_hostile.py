"""What a reward function does to descriptors, processes and signals costs its own item, within the limit."""

import asyncio

import psutil
import pytest
from test_reward import nothing_left, trajectory  # noqa: F401 (the fixture sees to every test here)

from yatt.config.schema import RewardConfig
from yatt.errors import ConfigError
from yatt.reward import pool
from yatt.reward.pool import FunctionScorer, check_reward

HOSTILE = """
import os, signal, socket, subprocess, sys, threading, time

def everywhere(data):
    for fd in range(3, 1024):
        try: os.write(fd, data)
        except OSError: pass

def fork(then):
    pid = os.fork()
    if not pid:
        then()
        os._exit(0)
    return pid

def detached(seconds):  # a daemon: two forks, and a session of its own in between
    def first():
        os.setsid()
        fork(lambda: os.execvp("sleep", ["sleep", seconds]))
    os.waitpid(fork(first), 0)

def rewards(response):
    if response == "rubbish": everywhere(b"x" * 5)
    if response == "much rubbish": everywhere(b"\\\\0" * 100)
    if response == "rubbish and hang": everywhere(b"x" * 3); time.sleep(600)
    if response == "rubbish in a thread": threading.Timer(0.1, everywhere, [b"y"]).start()
    if response == "flood": threading.Thread(target=lambda: [everywhere(b"z" * 9999) for _ in range(99)]).start()
    if response == "close all": os.closerange(0, 4096)
    if response == "replace all":
        null = os.open("/dev/null", os.O_RDWR)
        for fd in range(3, 1024):
            if fd != null: os.dup2(null, fd)
    if response == "comes back twice": os.fork()
    if response == "forked and left":
        if not os.fork(): os._exit(5)
    if response == "holds the socket":
        fork(lambda: time.sleep(617))
        os._exit(6)
    if response == "daemon": detached("618")
    if response == "daemon and hang": detached("619"); time.sleep(600)
    if response == "abort": os.abort()
    if response == "stop": os.kill(os.getpid(), signal.SIGSTOP)
    if response == "stop the keeper": os.kill(os.getppid(), signal.SIGSTOP); time.sleep(600)
    if response == "kill the keeper": os.kill(os.getppid(), signal.SIGKILL); time.sleep(600)
    if response == "handlers":
        for sign in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
            try: signal.signal(sign, lambda *_: None)
            except (OSError, ValueError): pass
        time.sleep(600)
    if response == "alarm": signal.setitimer(signal.ITIMER_REAL, 0.3)
    if response == "thread": threading.Thread(target=time.sleep, args=[600]).start()
    if response == "recursion": rewards(response)
    if response == "shutdown": 
        for fd in range(3, 1024):
            try: socket.socket(fileno=fd).shutdown(socket.SHUT_RDWR)
            except OSError: pass
    if response == "many parts": return {"reward": 1.0} | {f"part {i}": i for i in range(99999)}
    if response == "long error": raise ValueError("\\\\udc80 " * 9999)
    if response == "bad error":
        class Bad(Exception):
            def __str__(self): raise self
        raise Bad
    if response == "wait": time.sleep(0.5)
    return 1.0
"""


@pytest.fixture
def hostile(tmp_path):
    (tmp_path / "hostile.py").write_text(HOSTILE.replace("\\\\", "\\"))
    return f"{tmp_path}/hostile.py:rewards"


async def judge(texts, function, **settings):
    scorer = FunctionScorer(RewardConfig(function=function, **settings))
    await scorer.start()
    try:
        return await asyncio.wait_for(scorer.score([trajectory(text) for text in texts]), 120)
    finally:
        await scorer.close()


OWN_FAULT = {
    "rubbish": ("failed", "wrote into its worker's socket"),
    "much rubbish": ("failed", "wrote into its worker's socket"),
    "rubbish and hang": ("failed", "wrote into its worker's socket"),
    "close all": ("failed", "died (exit status 0)"),
    "replace all": ("failed", "died (exit status 0)"),
    "comes back twice": ("ok", ""),
    "forked and left": ("ok", ""),
    "holds the socket": ("failed", "died (exit status 6)"),
    "daemon": ("ok", ""),
    "daemon and hang": ("timed_out", "no result after 8 s"),
    "abort": ("failed", "signal SIGABRT"),
    "stop": ("timed_out", ""),
    "stop the keeper": ("timed_out", ""),
    "kill the keeper": ("failed", "signal SIGKILL"),
    "handlers": ("timed_out", ""),
    "alarm": ("ok", ""),
    "thread": ("ok", ""),
    "recursion": ("failed", "RecursionError"),
    "shutdown": ("failed", "died (exit status 0)"),
    "many parts": ("failed", "reports 100000 parts"),
    "long error": ("failed", "ValueError: \\udc80 \\udc80"),
    "bad error": ("failed", "Bad"),
}


async def test_each_costs_its_own_item_alone(hostile, monkeypatch):
    monkeypatch.setattr(pool, "GRACE_SECONDS", 20.0)  # a busy machine may be slow to say how a process ended
    texts = [text for item in OWN_FAULT for text in (item, "wait", "fine")]
    scores = await judge(texts, hostile, timeout=8.0, workers=2)
    for text, score in zip(texts, scores, strict=True):
        status, detail = OWN_FAULT.get(text, ("ok", ""))
        assert score.status == status and detail in score.detail, (text, score.status, score.detail[:200])
        assert (score.value is None) == (score.status != "ok") and len(score.detail) <= 500
        score.detail.encode()
    left = [
        p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] in ([["sleep", s] for s in ("618", "619")])
    ]
    assert not left


@pytest.mark.parametrize("text", ["rubbish in a thread", "flood"])
async def test_what_a_thread_writes_later_fails_at_most_one_item_and_changes_none(hostile, text):
    scores = await judge([text, "wait", "fine", "wait", "fine"], hostile, timeout=8.0)
    assert sum(score.status != "ok" for score in scores) <= 1
    assert {score.value for score in scores if score.status == "ok"} == {1.0}


@pytest.fixture
def slow_module(tmp_path):
    (tmp_path / "takes_long.py").write_text("import time\ntime.sleep(3)\nimport also_long\n")
    (tmp_path / "also_long.py").write_text("import time\ntime.sleep(3)\n")
    (tmp_path / "late.py").write_text(
        "import importlib, time\n"
        "def statement(response):\n"
        "    import takes_long\n"
        "    if response == 'hang': time.sleep(600)\n"
        "    return 1.0\n"
        "async def called(response):\n"
        "    importlib.import_module('takes_long')\n"
        "    return 1.0\n"
        "def missing(response):\n"
        "    try: import nowhere_to_be_found\n"
        "    except ImportError: return 0.5\n"
        "def broken(response):\n"
        "    import nowhere_to_be_found\n"
    )
    return f"{tmp_path}/late.py"


@pytest.mark.parametrize("name", ["statement", "called"])
async def test_no_item_pays_for_imports(slow_module, name):
    scores = await judge(["a", "b"], f"{slow_module}:{name}", timeout=2.0)
    assert [s.status for s in scores] == ["ok", "ok"]


async def test_what_hangs_after_an_import_is_timed_out_and_its_successor_imports_anew(slow_module):
    scores = await judge(["hang", "b"], f"{slow_module}:statement", timeout=2.0)
    assert [s.status for s in scores] == ["timed_out", "ok"] and "2 s" in scores[0].detail


async def test_imports_that_fail(slow_module):
    (score,) = await judge(["a"], f"{slow_module}:missing")
    assert score.value == 0.5
    (score,) = await judge(["a"], f"{slow_module}:broken")
    assert score.status == "failed"
    assert score.detail == "reward: ModuleNotFoundError: No module named 'nowhere_to_be_found' (late.py, line 13)"


def test_a_module_that_writes_rubbish_while_it_is_imported_is_refused(tmp_path):
    (tmp_path / "loud.py").write_text(
        "import os\n"
        "for fd in range(3, 1024):\n"
        "    try: os.write(fd, b'loud')\n"
        "    except OSError: pass\n"
        "def f(response): return 1\n"
    )
    with pytest.raises(ConfigError, match=r"loud.py:f does not import: it wrote into its worker's socket"):
        check_reward(RewardConfig(function=f"{tmp_path}/loud.py:f"))

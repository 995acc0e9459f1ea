"""Whole runs on the real engines with things going wrong: a full disk, killed processes, hanging rewards, Ctrl-C."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from real_runs import Driver, all_gone, descendants, make_place, rows, wait_for

pytestmark = pytest.mark.slow

REWARD = '''
import json, os, signal, time

FIRST, SECOND = [json.loads(line)["prompt"] for line in open("work/train.jsonl").readlines()[:2]]

def even(prompt, response):
    """The share of even digits."""
    digits = [c for c in response if c.isdigit()]
    return sum(int(c) % 2 == 0 for c in digits) / max(1, len(digits))

def faulty(prompt, response):
    if response and prompt == FIRST:
        time.sleep(600)
    if response and prompt == SECOND:
        os.kill(os.getpid(), signal.SIGKILL)
    return even(prompt, response)

def held(prompt, response):
    while response and os.path.exists("hold"):
        open("holding", "w").close()
        time.sleep(0.1)
    return even(prompt, response)

def endless(response):
    if response:
        open("judging", "w").close()
        time.sleep(600)
    return 1.0
'''

ENDLESS = ("reward.function=reward.py:endless", "reward.timeout=600")

# For a machine where a small disk cannot be mounted: rank 1 meets a full one from the second checkpoint on.
FULL_DISK = """
import errno, importlib.abc, sys

class Full(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name != "yatt.training.megatron.checkpoint":
            return None
        sys.meta_path.remove(self)
        from torch.distributed.checkpoint import FileSystemWriter
        write = FileSystemWriter.write_data
        def write_data(self, plan, planner):
            import torch.distributed as dist
            if dist.get_rank() == 1 and "step-1" not in str(self.path):
                raise OSError(errno.ENOSPC, "No space left on device")
            return write(self, plan, planner)
        FileSystemWriter.write_data = write_data

sys.meta_path.insert(0, Full())
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return make_place(tmp_path_factory.mktemp("faults"), REWARD, "even", checkpoint={"every": 1, "keep": 2})


@pytest.fixture
def small_disk(place, monkeypatch):
    """Words before a command that make the folder `runs` a disk of 10 MB; a checkpoint takes 7. Where that is not
    permitted, writing fails in a rank instead."""
    mount = "mount -t tmpfs -o size=10m small runs"
    (place / "runs").mkdir()
    prefix = ("unshare", "--mount", *(("--user", "--map-root-user") if os.getuid() else ()), "sh", "-c")
    try:
        allowed = subprocess.run([*prefix, mount], cwd=place, capture_output=True, timeout=30).returncode == 0
    except FileNotFoundError:
        allowed = False
    if allowed:
        # What was on the disk goes with it: keep what the test reads.
        return (*prefix, f'{mount}; "$@"; status=$?; cp -a runs/. kept; exit $status', "sh"), "kept"
    (place / "preload").mkdir()
    (place / "preload" / "sitecustomize.py").write_text(FULL_DISK)
    monkeypatch.setenv("PYTHONPATH", str(place / "preload"))
    return (), "runs"


def test_a_full_disk_and_failing_rewards_do_not_stop_a_run(place, small_disk):
    prefix, kept = small_disk
    words = ("train.steps=3", "run.name=full", "reward.function=reward.py:faulty", "reward.timeout=3")
    driver = Driver(place, *words, "data.shuffle=false", "reward.workers=2", prefix=prefix)
    driver.wait(timeout=600)
    said = driver.said()
    assert "Traceback" not in said, said
    full = Path("runs/full/checkpoints")
    assert "saved step 1\n" in said and "saved step 2" not in said, said
    for step in (2, 3):
        (warning,) = [line for line in said.splitlines() if line.startswith(f"warning: step {step} could not be saved")]
        assert "could not be written: " in warning and ("No space left" in warning or "disk has 0.0 MiB" in warning)
        assert warning.endswith(f"the run goes on, the last complete one is {full / 'step-1'}")
    assert driver.returncode == 1, "its last step is lost"
    assert "NOT SAVED    step 3" in said and "-m yatt train runs/full/config.yaml resume=auto" in said
    assert os.listdir(place / kept / "full" / "checkpoints") == ["step-1"]

    table = [json.loads(line) for line in (place / kept / "full" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in table] == [1, 2, 3]
    # Both prompts are in step 1, with 4 siblings each: 4 hang, and 4 kill their worker.
    assert [row["reward_failures"] for row in table] == [8, 0, 0]
    assert [row["reward_timeouts"] for row in table] == [4, 0, 0]
    assert [(row["groups"], row["groups_dropped"]) for row in table] == [(6, 2), (8, 0), (8, 0)]


def ends(driver, started, status, within):
    """The driver ends by itself with this status, and nothing of it is left; returns what it said."""
    begun = time.monotonic()
    driver.wait(timeout=within)
    wait_for(lambda: all_gone(started), max(1.0, within - (time.monotonic() - begun)), "its processes to end")
    assert driver.returncode == status, driver.said()
    assert not [name for name in os.listdir("/dev/shm") if name.startswith(f"yatt-{driver.pid}-")]
    assert "Traceback" not in driver.said(), driver.said()
    return driver.said()


def actors(driver, kind):
    """Its processes of this kind, the first to be started first."""
    found = [p for p in descendants(driver.pid) if p.cmdline() and p.cmdline()[0].startswith(f"ray::{kind}")]
    return sorted(found, key=lambda p: (p.create_time(), p.pid))


def exported(place, name):
    return (place / "runs" / name / "model" / "model.safetensors").read_bytes()


MORTAL = ("train.steps=8", "checkpoint.every=2", "checkpoint.export=true", "reward.timeout=600")


def test_whoever_dies_or_hangs_the_run_goes_on_and_ends_with_the_same_model(place):
    """An engine is killed and one is stopped, and both work again while the step goes on; a rank and a controller are
    killed, and the run goes back to its last checkpoint. All in one run."""
    hold = place / "hold"
    driver = Driver(place, "run.name=mortal", *MORTAL, "reward.function=reward.py:held", "cluster.silence=40")

    def until(condition, what):
        wait_for(lambda: driver.ended() or condition(), 900, what)
        assert not driver.ended(), driver.said()

    def hit(after, kind, number, how, answer):
        """After so many steps, in a rollout that does not end meanwhile."""
        until(lambda: driver.steps("mortal") >= after, f"step {after}")
        begun = driver.said().count(answer)
        hold.touch()
        until(lambda: (place / "holding").exists(), "a rollout")
        actors(driver, kind)[number].send_signal(how)
        if kind == "RankActor":
            hold.unlink()  # nobody needs it before the rollout ends
        until(lambda: driver.said().count(answer) > begun, answer)
        hold.unlink(missing_ok=True)
        (place / "holding").unlink(missing_ok=True)

    hit(1, "GeneratorActor", 0, signal.SIGKILL, "generator 0: back after")
    hit(3, "RankActor", 0, signal.SIGKILL, "run: going on from the end of step")
    hit(5, "ControllerActor", 0, signal.SIGKILL, "run: going on from the end of step")
    hit(6, "GeneratorActor", -2, signal.SIGSTOP, "generator 1: back after")
    started = descendants(driver.pid)
    said = ends(driver, started, 0, 600)
    assert "generator 1: no sign of life for 40 s: it is stopped" in said, said
    assert "(the driver for controller 0, controller 1 (step on the controllers, " in said, "who waited for whom"

    table = rows(place, "mortal")
    assert [row["step"] for row in table] == list(range(1, 9)), "each step once"
    told = [incident for row in table for incident in row["incidents"]]
    assert [(one["process"], one["kind"]) for one in told] == [
        *(("generator 0", "died"), ("generator 0", "back"), ("run", "died"), ("run", "back")),
        *(
            ("run", "died"),
            ("run", "back"),
            ("generator 1", "silent"),
            ("generator 1", "died"),
            ("generator 1", "back"),
        ),
    ]
    assert "rank 0 died" in told[2]["text"] and "controller 0 died" in told[4]["text"]
    assert all(row["generators"] == 2 for row in table[-1:])
    events = json.loads((place / "runs" / "mortal" / "timeline.json").read_text())
    for number, incident in ((0, told[1]), (1, told[8])):
        slot = [e for e in events if e.get("name") == "sample" and e["args"].get("requests") and e["pid"] == 2 + number]
        assert any(event["ts"] > incident["at"] * 1e6 for event in slot), f"generator {number} works again"
    assert any("going on from the end of step" in event["name"] for event in events)
    assert "going on from the end of step" in (place / "runs" / "mortal" / "report.html").read_text()
    stacks = (place / "runs" / "mortal" / "log" / "controller-0.log").read_text()
    assert "most recent call first" in stacks

    calm = Driver(place, "run.name=calm", *MORTAL)
    calm.wait(timeout=900)
    assert calm.returncode == 0, calm.said()
    assert exported(place, "mortal") == exported(place, "calm")


@pytest.mark.long  # three runs and their second halves: minutes
def test_without_recoveries_a_death_ends_the_run_and_the_next_one_goes_on(place):
    driver = Driver(place, "run.name=once", "train.steps=1000", "train.max_recoveries=0")
    wait_for(lambda: driver.ended() or driver.steps("once") > 1, 600, "two steps")
    assert not driver.ended(), driver.said()
    started = descendants(driver.pid)
    actors(driver, "RankActor")[0].kill()
    lines = ends(driver, started, 1, 200).splitlines()
    (last,) = [line for line in lines if line.startswith("yatt: ")]
    assert "rank" in last and "died; its last words are in log/" in last, last
    assert (place / "runs" / "once" / last.partition("are in ")[2].partition(" ")[0]).is_file()
    assert f"go on with   {sys.executable} -m yatt train runs/once/config.yaml resume=auto" in lines
    assert all(len(line) < 400 for line in lines), "one line says it"
    assert not [line for line in lines if "could not be saved" in line], "without a rank nothing goes on"
    done = len(rows(place, "once"))
    words = ("run.name=once", f"train.steps={done + 1}", "train.max_recoveries=0", "resume=auto")
    again = Driver(place, *words)
    again.wait(timeout=600)
    assert again.returncode == 0 and "resumed after step" in again.said(), again.said()
    assert [row["step"] for row in rows(place, "once")] == list(range(1, done + 2))


def ranks_of(driver):
    """Its ranks' processes: they are there before any engine is ready."""
    found = []
    for process in descendants(driver.pid):
        with contextlib.suppress(psutil.Error):
            found += [process] * any(word.startswith("ray::RankActor") for word in process.cmdline())
    return found


def test_ctrl_c_while_engines_start(place):
    driver = Driver(place, "run.name=early")
    wait_for(lambda: driver.ended() or ranks_of(driver), 400, "the ranks to be starting")
    started = descendants(driver.pid)
    assert len(started) >= 4
    driver.press_ctrl_c()
    assert "stopping at once" in ends(driver, started, 130, 200)


def test_two_ctrl_c_do_not_wait_for_the_step(place):
    driver = Driver(place, "run.name=impatient", *ENDLESS)
    wait_for(lambda: driver.ended() or (place / "judging").exists(), 600, "a reward")
    started = descendants(driver.pid)
    driver.press_ctrl_c()
    wait_for(lambda: "finishing the step under way" in driver.said(), 60, "the first to be heard")
    time.sleep(1)
    assert not driver.ended()
    driver.press_ctrl_c()
    assert "saved" not in ends(driver, started, 130, 200)

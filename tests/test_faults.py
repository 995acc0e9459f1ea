"""Whole runs on the real engines with things going wrong: a full disk, killed processes, hanging rewards, Ctrl-C."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

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


def test_a_killed_process_ends_the_run_and_the_next_one_goes_on(place):
    """A generator's death does not while another lives."""
    for actor, name in (("RankActor", "rank"), ("GeneratorActor", "generator"), ("ControllerActor", "controller")):
        before = len(rows(place, "mortal")) if name != "rank" else 0
        driver = Driver(place, "run.name=mortal", "train.steps=1000", "resume=auto")
        wait_for(lambda d=driver, n=before: d.ended() or d.steps("mortal") > n + 1, 600, "two steps")
        assert not driver.ended(), driver.said()
        assert ("resumed after step" in driver.said()) == (name != "rank")
        started = descendants(driver.pid)
        victims = [p for p in started if p.cmdline()[0].startswith(f"ray::{actor}")]
        victims[0].kill()
        if name == "generator":
            seen = len(rows(place, "mortal"))
            wait_for(lambda d=driver, n=seen: d.ended() or d.steps("mortal") > n + 2, 300, "steps with one generator")
            assert not driver.ended(), driver.said()
            assert "going on with 1 generator(s): one died" in driver.said()
            victims[1].kill()
        lines = ends(driver, started, 1, 200).splitlines()
        (last,) = [line for line in lines if line.startswith("yatt: ")]
        assert name in last and "died; its last words are in log/" in last, last
        assert (place / "runs" / "mortal" / last.partition("are in ")[2].partition(" ")[0]).is_file()
        again = f"go on with   {sys.executable} -m yatt train runs/mortal/config.yaml resume=auto"
        assert again in lines
        assert all(len(line) < 400 for line in lines), "one line says it"
        assert not [line for line in lines if "could not be saved" in line], "without a rank nothing goes on"
    assert [row["step"] for row in rows(place, "mortal")] == list(range(1, len(rows(place, "mortal")) + 1))


def test_ctrl_c_while_engines_start(place):
    driver = Driver(place, "run.name=early")
    wait_for(lambda: driver.ended() or "ranks 0-1: loading weights" in driver.said(), 400, "the engines to be starting")
    time.sleep(1)
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

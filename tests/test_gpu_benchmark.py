"""What a GPU is to show, rehearsed on a CPU with nothing installed but what may be expected there."""

from __future__ import annotations

import importlib.metadata
import io
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.gpu import models, sides, wheels
from benchmarks.gpu.child import Child
from benchmarks.gpu.device import Cuda
from benchmarks.gpu.part import Bench, run
from benchmarks.gpu.receiver import checksum
from benchmarks.gpu.right import plain_attention
from benchmarks.gpu.tables import Tables
from yatt.config.load import load_config
from yatt.faces.plan import plan
from yatt.models.facts import ModelFacts
from yatt.simulation.calibrate import from_file

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
PARTS = {
    "right": {"backends", "parity", "kernels", "kernels not run"},
    "fast": {"ceilings", "attention", "attention not run", "same", "updates"},
    "lean": {"logprobs", "host link", "put away", "memory"},
    "weights": {"export", "in place", "shared memory"},
    "forecast": {"costs", "fit", "forecast", "calibration", "plan"},
}
HIDE = """
import importlib.machinery
hidden, find = frozenset({hidden!r}), importlib.machinery.PathFinder.find_spec
def only(name, path=None, target=None):
    return None if name.partition(".")[0] in hidden else find(name, path, target)
importlib.machinery.PathFinder.find_spec = only
"""


def requirements(name: str) -> set[str]:
    """Distributions that one asks for, those of its extras not counted."""
    lines = [line for line in importlib.metadata.requires(name) or [] if "extra ==" not in line]
    return {canonical(re.match(r"[\w.-]+", line)[0]) for line in lines}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def closure(names: tuple[str, ...]) -> set[str]:
    found, left = set(), [canonical(name) for name in names]
    while left:
        name = left.pop()
        if name not in found:
            found.add(name)
            try:
                left += requirements(name)
            except importlib.metadata.PackageNotFoundError:
                found.discard(name)  # of another system
    return found


def hidden_modules() -> set[str]:
    """What is installed here and may not be there: engines, Ray, the rest of what YATT asks for, tools."""
    there = closure(wheels.THERE) | {canonical(name) for name in wheels.CARRIED}
    # In a process of its own: setuptools, once imported, shows distributions within itself.
    ask = "import importlib.metadata as m, json; print(json.dumps(m.packages_distributions()))"
    found = json.loads(subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True).stdout)
    return {module for module, owners in found.items() if not {canonical(o) for o in owners} & there} - {"yatt"}


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory):
    """What `--device cpu --quick --json` prints, by part; the longest parts side by side."""
    hidden = hidden_modules()
    assert {"ray", "vllm", "sglang", "datasets", "accelerate", "openai", "reasoning_gym"} <= hidden
    place = tmp_path_factory.mktemp("hidden")
    (place / "sitecustomize.py").write_text(HIDE.format(hidden=sorted(hidden)))
    environment = os.environ | {"PYTHONPATH": f"{place}{os.pathsep}{ROOT}"}
    out, running = tmp_path_factory.mktemp("gpu"), []
    for parts in (("right", "lean"), ("fast", "weights", "forecast")):
        words = [word for part in parts for word in ("--part", part)]
        command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--quick", "--json", *words]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        running.append(subprocess.Popen([*command, "--out", str(out)], cwd=ROOT, env=environment, **pipes))
    results = {}
    for process in running:
        printed, complaints = process.communicate(timeout=1100)
        results |= {result["part"]: result for result in map(json.loads, printed.splitlines())}
        logs = {log.name: log.read_text()[-3000:] for log in out.glob("*.log")}
        assert process.returncode == 0, (complaints, logs)
    return results, out, environment


@pytest.mark.parametrize("part", PARTS)
def test_every_part_says_what_it_is_for(rehearsal, part):
    result = rehearsal[0][part]
    assert result["failed"] == [] and {row["table"] for row in result["results"]} == PARTS[part]
    assert not any(row.get("ok") is False for row in result["results"])
    assert result["device"].keys() >= {"name", "torch", "transformers", "megatron-core"}


def test_what_is_hidden_cannot_be_imported(rehearsal):
    _, _, environment = rehearsal
    for module in ("ray", "vllm", "datasets"):
        done = subprocess.run(
            [sys.executable, "-c", f"import {module}"], env=environment, capture_output=True, text=True
        )
        assert done.returncode and f"No module named '{module}'" in done.stderr


def test_the_comparison_has_all_sides_and_checks(rehearsal):
    results = rehearsal[0]
    updates = [row["side"] for row in results["fast"]["results"] if row["table"] == "updates"]
    assert updates == ["yatt", "transformers, padded", "transformers, packed"]
    parity = {(r["dtype"], r["recompute"], r["of"]) for r in results["right"]["results"] if r["table"] == "parity"}
    assert {("float32", "none", "after"), ("float32", "full", "after"), ("bfloat16", "full", "after")} <= parity
    one, other = (row["squares"] for row in results["lean"]["results"] if row["table"] == "logprobs")
    assert one == pytest.approx(other, rel=1e-2)


def test_a_plan_takes_the_calibration(rehearsal, capsys):
    file = rehearsal[1] / "calibration.json"
    words = [f"model.path={ROOT / 'examples/plan/policy-7b'}", "train.steps=2", "train.batch_size=4", "rollout.n=2"]
    words += ["rollout.max_tokens=50", "data.max_prompt_tokens=20", f"plan.calibration={file}"]
    config = load_config(None, words)
    assert from_file(str(file), config).trainer.per_update > 0
    assert plan(config, devices="2", controllers=1, steps=1, seed=0, as_json=True) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["calibrated"] and shown["costs"].startswith("calibration of a trainer on")


def test_a_part_that_fails_keeps_its_rows_and_the_others_go_on(tmp_path):
    """No GPU is in sight: every part fails by itself, and the status says so."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--json", "--part", "lean", "--part", "weights"]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([*command, "--out", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, env=environment)
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 1 and [result["part"] for result in results] == ["lean", "weights"]
    assert all("torch sees no GPU here; use --device cpu" in result["failed"][0] for result in results)
    assert json.loads((tmp_path / "lean.json").read_text()) == results[0]


class Told:
    """A pipe that a part tells things through."""

    def __init__(self):
        self.there, self.bench_end = os.pipe()

    def said(self):
        os.close(self.bench_end)
        with os.fdopen(self.there) as file:
            return [json.loads(line) for line in file]


def test_sections_fail_one_by_one(tmp_path):
    told, freed = Told(), []
    device = type("Some", (), {"kind": "cpu", "free": lambda self: freed.append(1)})()
    bench = Bench(device, True, tmp_path, told.bench_end)

    def broken():
        bench.row("t", known=1.23456)
        raise ValueError("no room\nat all")

    run(bench, iter([("first", broken), ("second", lambda: bench.row("t", known=float("nan"), ok=True))]))
    assert told.said() == [
        {"row": {"table": "t", "known": 1.235}},
        {"failed": "first: ValueError: no room"},
        {"row": {"table": "t", "known": "nan", "ok": True}},
    ]
    assert len(freed) == 2


SLOW = """
import json, os, subprocess, sys, time
told = int(sys.argv[sys.argv.index("--told") + 1])
inner = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
os.write(told, (json.dumps({"row": {"pid": inner.pid}}) + "\\n").encode())
time.sleep(600 if "slow" in sys.argv else 0)
sys.exit("of its own accord" if "slow" not in sys.argv else 0)
"""


@pytest.mark.parametrize(("word", "how"), [("slow", "its time was over"), ("quick", "status 1: of its own accord")])
def test_a_child_is_ended_with_all_it_started_and_what_it_said_is_kept(tmp_path, monkeypatch, word, how):
    package = tmp_path / "benchmarks" / "gpu"
    package.mkdir(parents=True)
    for file, content in (
        (package / "part.py", SLOW),
        (package / "__init__.py", ""),
        (package.parent / "__init__.py", ""),
    ):
        file.write_text(content)
    monkeypatch.chdir(tmp_path)
    child = Child([word], os.environ, tmp_path / "log")
    message = child.read(time.monotonic() + 60)
    assert child.read(time.monotonic() + (0 if word == "slow" else 60)) is None
    assert how in child.end()
    for _ in range(500):
        state = Path(f"/proc/{message['row']['pid']}/stat")
        if not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.01)
    raise AssertionError("what it started still runs")


def test_tables_have_a_heading_wherever_names_change():
    stream = io.StringIO()
    tables = Tables(stream)
    for row in (
        {"table": "a", "x": 0.00123456},
        {"table": "a", "x": 123456.0},
        {"table": "b", "ok": False, "why": None},
    ):
        tables.row(row)
    assert [line.split() for line in stream.getvalue().splitlines()] == [
        ["table", "x"],
        ["a", "0.00123"],
        ["a", "123,456"],
        ["table", "ok", "why"],
        ["b", "NO"],
    ]


def test_what_is_carried_is_whole():
    """Nothing that a carried wheel asks for is left behind."""
    there = closure(wheels.THERE) | {canonical(name) for name in wheels.CARRIED}
    assert {need for name in wheels.CARRIED for need in requirements(name)} <= there


def test_the_command_names_every_wheel():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "--wheels", "--python", "3.11"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "--python-version 3.11" in done.stdout and "--no-deps" in done.stdout
    for name in wheels.CARRIED:
        assert f"{name}=={importlib.metadata.version(name)}" in done.stdout


def test_a_missing_wheel_is_said_before_anything_runs(monkeypatch):
    monkeypatch.setitem(wheels.CARRIED, "no-such", "no_such.module")
    assert wheels.missing() == ["no-such"]


def test_the_checksum_by_hand():
    """Numbers 5, 7 and -1: 1 x 5 + 3 x 7 - 5 x 1 = 21; with the first two in turn 1 x 7 + 3 x 5 - 5 = 17."""
    for numbers, expected in (([5, 7, -1], 21), ([7, 5, -1], 17), ([-1], 2**64 - 1), ([2**62, 2**62], 0)):
        assert checksum(torch.tensor(numbers, dtype=torch.int64).view(torch.uint8)) == expected


def test_the_checksum_goes_on_from_chunk_to_chunk(monkeypatch):
    whole = torch.from_numpy(np.random.default_rng(0).integers(0, 256, 8 * 50, dtype=np.uint8))
    once = checksum(whole)
    monkeypatch.setattr("benchmarks.gpu.receiver.CHUNK", 7)
    assert checksum(whole) == once


# A layer: attention 2 * 8 * 4 * (2 + 1) = 192, MLP 3 * 8 * 16 = 384; two of them, and a head of 10 * 8.
SIZES = dict(hidden_size=8, intermediate_size=16, layers=2, heads=2, kv_heads=1, vocab_size=10, max_positions=64)
SMALL = ModelFacts(**SIZES, embedding_rows=10, head_dim=4, tied=False)


def test_operations_of_an_update_by_hand():
    """6 for each of 2 x 576 + 80 weights and each token; and three times 2 x 2 layers x 2 heads x 4 for each square."""
    assert models.update_flops(SMALL, [3, 5]) == pytest.approx(6 * 1232 * 8 + 3 * 2 * 2 * 2 * 4 * (9 + 25))


def test_activations_by_hand():
    """q 8, k 4: 4 x 8 + 3 x 8 + 3 x 4 + 4 x 16 = 132 numbers of 2 bytes a token and layer."""
    assert models.activations(SMALL, 10, "none") == 2 * 10 * 2 * 132
    assert models.activations(SMALL, 10, "full") == 2 * 10 * (2 * 8 + 132)


def test_activations_are_what_autograd_keeps(tmp_path):
    """Of one layer more, in a model of this trainer. In float32, numbers have 4 bytes."""
    kept, tokens = [], 256
    for layers in (1, 2):
        path = models.write_shape(tmp_path, models.SHAPES["toy"], num_hidden_layers=layers)
        settings = sides.config(path, "float32", tokens=tokens)
        sizes: dict[int, int] = {}

        def keep(tensor, sizes=sizes):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with sides.joined(settings) as layout:
            training = sides.open_yatt(settings, layout)
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                training.update(models.share(models.samples([tokens], 512, 0)))
            kept.append(sum(sizes.values()) - sum(p.nbytes for p in training.policy.bare.parameters()))
    one = models.facts(models.write_shape(tmp_path, models.SHAPES["toy"], num_hidden_layers=1))
    assert kept[1] - kept[0] == pytest.approx(2 * models.activations(one, tokens, "none"), rel=0.03)


def test_lengths_fill_the_tokens():
    for seed in range(20):
        lengths = models.lognormal(1001, seed, median=100, sigma=0.9, most=400)
        assert sum(lengths) == 1001 and min(lengths) >= 2


def test_padded_micro_batches_hold_their_budget():
    batch = models.samples([10, 4, 10, 30, 3], 50, 0)
    parts = sides.padded(batch, 20)
    # 2 x 10, 1 x 10 (30 would pad it to 60), 30 alone though it is over, 3.
    assert [[len(s.tokens) for s in part] for part in parts] == [[10, 4], [10], [30], [3]]


def test_plain_attention_by_hand():
    """One head of one dimension, keys 0: a token has the mean of the values it sees."""
    query, value = torch.ones(4, 1, 1), torch.tensor([2.0, 4.0, 6.0, 1.0]).view(4, 1, 1)
    key = torch.zeros(4, 1, 1)
    assert plain_attention(query, key, value, [3, 1], None, None).flatten().tolist() == [2.0, 3.0, 4.0, 1.0]
    assert plain_attention(query, key, value, [3, 1], 2, 5.0).flatten().tolist() == [2.0, 3.0, 5.0, 1.0]


@pytest.mark.parametrize(
    ("name", "sheet"),
    [
        ("NVIDIA H200", "H200"),
        ("NVIDIA H20", "H20"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100-PCIe"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA GeForce RTX 4090", None),
    ],
)
def test_the_data_sheet_of_a_name(monkeypatch, name, sheet):
    monkeypatch.setattr(Cuda, "__init__", lambda self: None)
    monkeypatch.setattr(Cuda, "name", lambda self: name)
    assert Cuda().data_sheet() == sheet

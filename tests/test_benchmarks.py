"""Every benchmark says what it should, with doubles in place of what it measures; how fast anything is does not matter
here."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks import (
    balance,
    checkpoint,
    common,
    datapath,
    generator,
    overhead,
    placement_crossover,
    placement_hindsight,
    placement_real,
    sampling,
    scale,
    trainer,
)
from benchmarks.datapath_parts import Size
from benchmarks.placement import Case
from tests.generator_double import DoubleGenerator
from yatt.cluster.clock import WallClock
from yatt.placement.forecast import Load, Speed
from yatt.simulation.loop import run
from yatt.types import Share

ROOT = Path(__file__).parents[1]
ALWAYS = {"benchmark", "date", "quick", "machine"}
RATIO = {"ratio", "ratio_middle_half"}
KEYS = {
    "balance": {"rounds", "results"},
    "rewards": {"ratio_of", "start_seconds", "rounds", "results"},
    "trainer": {"ratio_of", "rounds", "results"},
    "checkpoint": {"results"},
    "generator": {
        "engine",
        "ratio_of",
        "start_seconds",
        "sleep_seconds",
        "wake_seconds",
        "load_seconds",
        "rounds",
        "results",
    },
    "overhead": {"run", "steps"},
    "sampling": {"devices", "controllers", "seeds", "steps", "prompts", "results"}
    | {"local_over_lockstep", "local_over_lockstep_one"},
    "scale": {"steps", "results"},
    "placement_crossover": {"decode_step_ms", "costs", "results"},
    "datapath": {"results"},
}
RESULT_KEYS = {
    "balance": {"samples", "ranks", "max_over_mean", "floor", "seconds", "micro_batches"}
    | {"equal_counts", "equal_counts_seconds"},
    "sampling": {"side", "rollout_s", "step_s", "groups", "wasted", "rollout_s_per_group", "idle"},
    "scale": {"devices", "controllers", "image_bytes", "step_s", "rollout_s", "controller_bytes", "idle"},
    "rewards": {"items", "pool_us_per_item", "in_process_us_per_item", "added_us_per_item"} | RATIO,
    "generator": {"lengths", "sequences", "tokens", "yatt_tokens_per_s", "hugging_face_tokens_per_s"} | RATIO,
    "placement_crossover": {"slots", "longest", "judged", "colocated", "partial", "dynamic", "split"}
    | {"partial_to_colocated", "dynamic_to_colocated"},
    "trainer": {"algorithm", "model", "sequences", "tokens", "yatt_ms", "hugging_face_ms", "yatt_us_per_token"}
    | {"trl_ms", "ratio_to_trl"}
    | RATIO,
    "checkpoint": {"model", "ranks", "checkpoint_mib", "states_mib", "before_mib", "peak_mib", "peak_over_states"}
    | {"update_peak_over_states", "update_s", "begin_written_s"}
    | {"begin_s", "save_s", "begin_adds_s", "save_adds_s", "hurry_s"},
}


class PlainRank:
    """A rank's place in the trainer's benchmark, taken by the other side."""

    def __init__(self, folder: str, algorithm: str, context: int) -> None:
        self.plain = trainer.Plain(folder, algorithm)

    def start(self) -> None: ...

    def close(self) -> None: ...

    def update(self, shares: list[Share]) -> SimpleNamespace:
        ((samples,),) = shares[0].updates
        return SimpleNamespace(grad_norm=self.plain.update(list(samples)))


class InstantGenerator(DoubleGenerator):
    """The double, whose life is the benchmark's."""

    def __init__(self, folder: str, engine: str) -> None:
        super().__init__(clock=WallClock())

    async def start(self) -> None: ...


async def decode_steps(model: str) -> list[tuple[int, float, float]]:
    return [(1, 0.003, 5e-5), (16, 0.018, 5e-5)]


def moved(size: Size, central: str, steps: int) -> dict[str, Any]:
    """What the data path's benchmark measures of one side."""
    peaks = {name: 1 << 20 for name in ("driver_anon_peak", "object_store_peak", "moved_bytes")}
    row = size.as_dict() | {"central": central, "steps": steps, "cpu_tree_s": 2.0, "wall_s": 1.0}
    return row | peaks | {"controller_anon_peak": [1 << 20] * size.controllers}


TOOK = {kind: [checkpoint.Round(0.2, 0.5, 1.0, 5 << 30)] * 2 for kind in checkpoint.KINDS}
"""Two rounds of each kind of save."""


@pytest.fixture
def doubles(monkeypatch):
    """Nothing starts: engines, ranks and Ray have their place in a benchmark taken by what takes no time."""
    monkeypatch.setattr(trainer, "_rank", PlainRank)
    monkeypatch.setattr(
        checkpoint, "saving", lambda name, ranks, rounds: checkpoint.Saving(3e9, 4 << 30, 2 << 30, dict(TOOK))
    )
    monkeypatch.setattr(generator, "_generator", InstantGenerator)
    monkeypatch.setattr(generator, "plain_generate", lambda folder, tokens, length: len(tokens) * length)
    monkeypatch.setattr(generator, "ProcessPoolExecutor", lambda count, mp_context: ThreadPoolExecutor(count))
    monkeypatch.setattr(datapath, "apart", moved)
    monkeypatch.setattr(placement_crossover, "decode_steps", decode_steps)
    monkeypatch.setattr(sampling, "DEVICES", 8)
    monkeypatch.setattr(sampling, "CONTROLLERS", 2)
    short = ["rollout.max_tokens=40", "plan.response_median=10", "plan.response_p99=30"]
    monkeypatch.setattr(sampling, "BASE", [*sampling.BASE, *short, "reward.models.judge.max_tokens=8"])
    monkeypatch.setattr(scale, "IMAGES", (0,))
    monkeypatch.setattr(placement_crossover, "STEPS", 2)
    monkeypatch.setattr(placement_crossover, "LEARNING", 1)


def check(name: str, output: dict[str, Any]) -> None:
    assert output.keys() >= KEYS[name]
    if name in RESULT_KEYS:
        assert output["results"] and all(result.keys() == RESULT_KEYS[name] for result in output["results"])


@pytest.mark.slow
@pytest.mark.parametrize("name", KEYS)
def test_a_benchmark_says_what_it_should(doubles, name):
    measure = importlib.import_module(f"benchmarks.{name}").measure
    given = [key for key, value in inspect.signature(measure).parameters.items() if value.default is value.empty]
    output = measure(**dict.fromkeys(given) | {"quick": True})
    assert json.loads(json.dumps(output)) is not None
    check(name, output)


@pytest.mark.long
@pytest.mark.parametrize("name", [*KEYS, "chaos"])
def test_a_benchmark_runs(name):
    """At its smallest settings, on what it measures."""
    command = [sys.executable, "-m", "benchmarks", name, "--quick", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1000)
    assert done.returncode == 0, done.stderr[-4000:]
    output = json.loads(done.stdout)
    assert output.keys() >= ALWAYS and output["benchmark"] == name and output["quick"] is True
    assert output["machine"].keys() >= {"cpu", "cores", "load", "python", "torch"}
    if name == "chaos":
        assert [(row["status"], row["equal"]) for row in output["results"]] == [(0, True)] * 3, output["results"]
    else:
        check(name, output)


def test_what_cannot_be_measured_alike_is_refused(doubles, monkeypatch):
    """Sides that do not do the same work are not compared."""
    monkeypatch.setattr(generator, "plain_generate", lambda folder, tokens, length: 1)
    with pytest.raises(RuntimeError, match="another number of tokens"):
        generator.measure(quick=True, engine="vllm")


def test_overhead_of_a_run_by_hand(tmp_path):
    """Two steps of 10 s and 5 s + 5 s of saving: (0.1 x 10 + 0.4 x 5) / 15 = 0.2; 8 s of rollout are 8 / 15 = 0.533."""
    rows = [
        {"step": 0, "seconds": 99.0, "phases": {"evaluate": 99.0}, "overhead": 0.0},
        {"step": 1, "seconds": 10.0, "phases": {"rollout": 5.0, "train": 4.0, "balance": 1.0}, "overhead": 0.1},
        {"step": 2, "seconds": 10.0, "phases": {"rollout": 3.0, "balance": 2.0, "checkpoint": 5.0}, "overhead": 0.4},
    ]
    same = {"controllers": 2, "driver_payload_bytes": 0}
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row | same) + "\n" for row in rows))
    result = overhead.measure(quick=True, run=str(tmp_path))
    assert (result["steps"], result["controllers"]) == (2, 2)
    assert result["share_outside_work"] == pytest.approx(0.2)
    assert result["phase_shares"] == {"rollout": 0.533, "train": 0.267, "balance": 0.2}
    assert result["median_step_seconds"] == 7.5


def test_overhead_says_when_there_is_no_run(tmp_path):
    result = overhead.measure(quick=True, run=str(tmp_path / "none"))
    assert result["steps"] == 0 and "make quickstart" in result["missing"]


def test_unevenness_by_hand():
    """Costs 1 + 2 and 3 + 6: the mean is 6, the costliest 9."""
    assert balance.unevenness(np.array([1.0, 2.0, 3.0, 6.0]), np.array([0, 0, 1, 1]), 2) == 1.5


def test_equal_counts_by_hand():
    """9 and 5 first; then 4 to the 5 and 3 to the 9; the last goes to the 9 of 9 and 12."""
    assert balance.equal_counts(np.array([3.0, 9.0, 1.0, 5.0, 4.0]), 2).tolist() == [0, 0, 1, 1, 1]


def test_one_case_of_balance_is_one_object():
    """Seven samples on one rank: the mean is the most."""
    command = [sys.executable, "-m", "benchmarks.balance", "--samples", "7", "--ranks", "1", "--quick", "--json"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True).stdout
    result = json.loads(printed)
    assert result.keys() >= ALWAYS | RESULT_KEYS["balance"]
    assert (result["samples"], result["ranks"], result["max_over_mean"], result["floor"]) == (7, 1, 1.0, 1.0)


def test_sides_take_turns_and_the_first_round_is_not_counted():
    calls = []
    seconds = common.alternate(2, a=lambda: calls.append("a"), b=lambda: calls.append("b"))
    assert calls == ["a", "b"] * 3 and [len(s) for s in seconds.values()] == [2, 2]
    # Ratios 1, 2, 4: the median is 2, the quartiles lie half way to its neighbours.
    assert common.ratio([1.0, 2.0, 4.0], [1.0, 1.0, 1.0]) == {"ratio": 2.0, "ratio_middle_half": [1.5, 3.0]}


def test_costs_of_a_decode_step_by_hand():
    """2 ms and 1 ms a request: 3 ms at one request, 18 ms at sixteen. A prompt token is what the largest batch took."""
    costs = placement_crossover.engine([(1, 0.003, 9.0), (4, 0.006, 9.0), (16, 0.018, 5e-5)])
    assert (costs.step, costs.per_request, costs.prefill) == pytest.approx((0.002, 0.001, 5e-5))


def test_lengths_have_the_mean_and_the_longest_asked_for():
    """Of 384, the longest is at the 383 / 384 quantile, 2.794 standard deviations up."""
    found = placement_crossover.lengths(18.0, 108.0, 384)
    assert found.median * np.exp(found.sigma**2 / 2) == pytest.approx(18.0)
    assert found.median * np.exp(2.7936 * found.sigma) == pytest.approx(108.0, rel=1e-3)


def test_seconds_of_a_step_on_real_engines_by_hand():
    """Rollouts from 10 to 12 s and from 10.5 to 13 s: 3 s. The run computed from 1 + 1/2 x 2 = 2 to 5 CPU seconds in
    them, the machine from 4 to 10: others had 3."""
    meter = object.__new__(placement_real.Meter)
    meter.readings = [placement_real.Reading(*row) for row in ((9, 1, 2), (11, 3, 6), (13, 5, 10), (15, 9, 20))]

    def event(name, role, start, seconds, step=2, **args):
        return {
            "ph": "X",
            "name": name,
            "cat": role,
            "ts": start * 1e6,
            "dur": seconds * 1e6,
            "args": args | {"step": step},
        }

    events = [
        event("rollout", "", 1.0, 5.0, step=1),
        event("rollout", "", 10.0, 2.0),
        event("rollout", "", 10.5, 2.5),
        event("sample", "judge", 11.0, 1.0, tokens=30),
        event("sample", "judge", 11.0, 1.0, tokens=12),
        event("sample", "policy", 10.0, 1.0, tokens=99),
    ]
    row = {"step": 2, "response_tokens": 99, "longest_response": 40, "response_length_mean": 9.0, "decisions": [1, 2]}
    found = placement_real.step_figures(row, events, meter)
    assert (found["seconds"], found["cpu"], found["others"]) == pytest.approx((3.0, 3.0, 3.0))
    assert (found["judged"], found["moves"]) == (42, 1)


def test_placement_says_when_there_are_no_models(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = placement_real.measure(quick=True, slots=None, repeats=None, steps=None, workload=None)
    assert result["results"] == [] and "--models-only" in result["missing"]


def test_the_search_in_hindsight_finds_the_best_of_all_steps_and_of_each():
    """A step takes 1 s, and one more for each block and second that a schedule is off its best one."""
    best = [((0.0, 5),), ((0.0, 8), (20.0, 3))]

    def blocks(schedule):
        return np.array([[count for since, count in schedule if since <= second][-1] for second in range(60)])

    def measure(schedules):
        return [[1.0 + np.abs(blocks(s) - blocks(b)).sum() for b in best] for s in schedules]

    (whole, schedule), each = placement_hindsight.best_schedules(8, 60.0, 600, measure)
    assert whole == sum(measure([schedule])[0]) / 2
    assert [measure([found])[0][step] for step, (_, found) in enumerate(each)] == [seconds for seconds, _ in each]
    assert each[0][0] == 1.0 and each[1][0] < 10.0
    # Between the two nothing is good for both: they are 3 blocks apart for 20 s, and 2 for 40 s.
    assert 1.0 + (3 * 20 + 2 * 40) / 2 <= whole < 1.1 * (1.0 + (3 * 20 + 2 * 40) / 2)


def test_a_schedule_changes_at_its_second_and_judges_once_the_policy_is_done():
    speed = Speed(step=0.01, per_request=0.001, prefill=0.0, capacity=8, engines=1, per_kv_token=0.0)
    idle = Load(requests=0, coming=0.0, tokens=9.0, length=9.0, longest=9.0, prefix=9.0, speed=speed)
    drawing = {"policy": replace(idle, requests=5), "judge": idle}
    everything = {"policy": 8, "judge": 0}

    async def main():
        mode = placement_hindsight.scheduled(((0.0, 8), (3.0, 2)))
        assert mode.start(8, None, None, 0.0).split == everything
        await asyncio.sleep(2.9)
        assert mode.look(everything, drawing, 0.0) is None
        assert mode.look(everything, {"policy": idle, "judge": idle}, 0.0).split == {"policy": 0, "judge": 8}
        await asyncio.sleep(0.2)
        assert mode.look(everything, drawing, 0.0).split == {"policy": 2, "judge": 6}

    run(main())


def test_a_scheduled_run_keeps_to_its_schedule():
    case = Case(models="7B+7B", devices=8, median=200, drifting=False, tail=4.0, steps=2, prompts=1)
    schedule = ((0.0, 8), (3.0, 2))
    steady, changing = (placement_hindsight.run(case, s) for s in (((0.0, 4),), schedule))
    assert steady == pytest.approx(
        placement_hindsight.seconds(case.run("partial", {"policy": 4, "judge": 4})), rel=0.05
    )
    assert steady != changing


def test_an_unknown_name_is_refused():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "trainr"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2 and "trainr" in done.stderr and "trainer" in done.stderr

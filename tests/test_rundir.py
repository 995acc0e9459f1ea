"""The run directory: rows, rewinding, timeline, checkpoints and the lock."""

import json
import math
import subprocess
import sys

import pytest

from yatt.errors import ConfigError, DataError
from yatt.faces.metrics import first_row, metrics_row, overhead
from yatt.faces.rundir import RunDirectory
from yatt.types import EvaluationReport, PhaseSpan, RolloutCounts, StepReport, UpdateReport


@pytest.fixture
def run(tmp_path):
    return RunDirectory(tmp_path / "a").create()


def span(name, start, stop, actor="controller 0"):
    return PhaseSpan(name=name, actor=actor, start=start, stop=stop)


def step_report(**changes):
    counts = RolloutCounts(
        groups=2, groups_dropped=1, refills=1, reward_failures=1, responses=5, scored=4, truncated=2,
        response_tokens=60, reward_sum=2.0, reward_square_sum=2.0, longest_response=20, part_sums={"worked": 3.0},
    )  # fmt: skip
    update = UpdateReport(loss=0.1, grad_norm=1.0, learning_rate=1e-3, entropy=0.4, kl=1e-6, trained_tokens=50)
    values = {
        "step": 3, "epoch": 0.5, "policy_version": 3, "controllers": 2, "counts": counts, "update": update,
        "phases": {"rollout": 3.0, "train": 5.0}, "spans": (), "seconds": 10.0,
    }  # fmt: skip
    return StepReport(**(values | changes))


def test_rows_come_back_and_nan_becomes_null(run):
    run.append_metrics({"step": 1, "loss": math.nan, "phases": {"train": math.inf}, "list": [1.5, -math.inf]})
    run.append_metrics({"step": 2, "loss": 0.25})
    assert run.read_metrics() == [
        {"step": 1, "loss": None, "phases": {"train": None}, "list": [1.5, None]},
        {"step": 2, "loss": 0.25},
    ]


def test_a_half_written_last_line_is_left_out_and_rewinding_mends_it(run):
    run.append_metrics({"step": 1})
    with open(run.metrics, "a") as out:
        out.write('{"step": 2, "lo')
    assert run.read_metrics() == [{"step": 1}]
    run.rewind(1)
    run.append_metrics({"step": 2})
    assert [row["step"] for row in run.read_metrics()] == [1, 2]


def test_a_bad_line_in_the_middle_is_named(run):
    run.metrics.write_text('{"step": 1}\noops\n{"step": 2}\n')
    with pytest.raises(DataError, match=r"metrics\.jsonl, line 2: not JSON: 'oops'"):
        run.read_metrics()


def test_rewind_leaves_one_row_per_step(run):
    for step in range(6):
        run.append_metrics({"step": step})
        (run.samples / f"step-{step}.c1.jsonl").write_text("{}\n")
    (run.samples / "eval-5.c0.jsonl").write_text("{}\n")
    run.rewind(3)
    for step in (4, 5):
        run.append_metrics({"step": step})
    assert [row["step"] for row in run.read_metrics()] == [0, 1, 2, 3, 4, 5]
    assert sorted(p.name for p in run.samples.iterdir()) == [f"step-{step}.c1.jsonl" for step in range(4)]


def test_the_timeline_is_a_whole_trace_after_every_append_and_goes_on_after_a_crash(run):
    run.append_spans([span("rollout", 10.0, 12.5), span("train", 12.5, 13.0, actor="rank 0")])
    run.append_spans([span("rollout", 14.0, 15.0)])
    events = json.loads(run.timeline.read_text())
    threads = {e["args"]["name"]: e["tid"] for e in events if e["name"] == "thread_name"}
    slices = [(e["name"], e["tid"], e["ts"], e["dur"]) for e in events if e["ph"] == "X"]
    assert slices == [
        ("rollout", threads["controller 0"], 10_000_000, 2_500_000),
        ("train", threads["rank 0"], 12_500_000, 500_000),
        ("rollout", threads["controller 0"], 14_000_000, 1_000_000),
    ]
    run.timeline.write_text(run.timeline.read_text()[:-20])
    again = RunDirectory(run.path)
    again.append_spans([span("sync", 20.0, 21.0, actor="rank 0")])
    names = [(e["name"], e["tid"]) for e in json.loads(run.timeline.read_text()) if e["ph"] == "X"]
    assert names == [("rollout", threads["controller 0"]), ("train", threads["rank 0"]), ("sync", threads["rank 0"])]


def test_only_complete_checkpoints_count(run):
    for name in ("step-2", "step-10", "step-9", "step-11.new", "step-x"):
        (run.checkpoints_folder / name).mkdir()
    for name in ("step-2", "step-10", "step-11.new", "step-x"):
        (run.checkpoints_folder / name / "complete.json").write_text("{}")
    assert [p.name for p in run.checkpoints()] == ["step-2", "step-10"]
    assert run.latest_checkpoint() == run.checkpoints_folder / "step-10"


def test_an_empty_folder_holds_no_run(run):
    assert not run.holds_run() and run.latest_checkpoint() is None and run.read_metrics() == []
    run.append_metrics({"step": 1})
    assert run.holds_run()


def test_a_second_process_is_refused_with_the_first_ones_pid(run):
    code = f"""
from yatt.faces.rundir import RunDirectory
with RunDirectory({str(run.path)!r}).lock():
    print("held", flush=True)
    input()
"""
    holder = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(ConfigError, match=rf"run\.name=a: .* in use by process {holder.pid};"), run.lock():
            pass
    finally:
        holder.communicate(b"\n", timeout=30)
    with run.lock():
        pass


def test_metrics_row_by_hand():
    row = metrics_row(step_report(), driver_payload_bytes=0)
    assert row["reward_mean"] == 0.5  # 2 over 4 scored
    assert row["reward_std"] == 0.5  # sqrt(2 / 4 - 0.25)
    assert row["parts"] == {"worked": 0.75}
    assert row["response_length_mean"] == 12.0  # 60 over 5 responses
    assert row["truncated"] == 0.4
    assert row["tokens_per_s"] == 6.0
    assert row["overhead"] == pytest.approx(0.2)  # 2 of 10 s in no phase
    assert row["driver_payload_bytes"] == 0 and "accuracy_greedy" not in row


def test_overhead_counts_overlapping_spans_once_and_leaves_evaluation_aside():
    spans = (
        span("rollout", 0, 4), span("rollout", 1, 5, "controller 1"), span("reward", 2, 5),
        span("train/forward", 6, 9, "rank 0"), span("evaluate", 10, 20), span("balance", 5, 6),
    )  # fmt: skip
    # 20 s, of which 10 evaluate; rollout and reward cover [0, 5], training [6, 9]: 8 of 10
    assert overhead(step_report(spans=spans, seconds=20.0)) == pytest.approx(0.2)


def test_sft_has_every_key_with_zeros_and_counts_trained_tokens():
    sft, rl = metrics_row(step_report(counts=None)), metrics_row(step_report())
    assert sft.keys() == rl.keys()
    assert sft["tokens_per_s"] == 5.0 and sft["reward_mean"] == 0.0 and sft["groups"] == 0


def test_the_first_row_is_the_evaluation_before_training():
    evaluation = EvaluationReport(prompts=200, accuracy_greedy=0.02, accuracy_sampled=0.34, pass_at_k={4: 0.5})
    row = first_row(evaluation, controllers=2, phases={"evaluate": 2.0})
    assert row.keys() == metrics_row(step_report(), evaluation=evaluation).keys()
    assert (row["step"], row["accuracy_greedy"], row["accuracy_sampled"]) == (0, 0.02, 0.34)
    assert row["controllers"] == 2 and row["overhead"] == 0 and row["evaluation"]["pass_at_k"] == {"4": 0.5}
    json.dumps(row, allow_nan=False)

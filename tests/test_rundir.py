"""The run directory: rows, rewinding, timeline, checkpoints and the lock."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from types import MappingProxyType

import pytest

from yatt.errors import ConfigError, DataError
from yatt.faces import timeline
from yatt.faces.metrics import first_row, metrics_row, overhead
from yatt.faces.rundir import RunDirectory
from yatt.faces.timeline import mark
from yatt.reports import Decision, EvaluationReport, PhaseSpan, RolloutCounts, SourceReport, StepReport, UpdateReport


@pytest.fixture
def run(tmp_path):
    return RunDirectory(tmp_path / "a").create()


def span(name, start, stop, actor="controller 0", **more):
    return PhaseSpan(name=name, actor=actor, start=start, stop=stop, **more)


def events_of(run):
    return json.loads(run.timeline.read_text())


def steps_in(run):
    return list(dict.fromkeys(event["args"]["step"] for event in events_of(run) if event["ph"] == "X"))


def step_report(**changes):
    counts = RolloutCounts(
        groups=2, groups_dropped=1, refills=1, reward_failures=1, responses=5, scored=4, truncated=2,
        response_tokens=60, reward_sum=2.0, reward_deviations=1.0, longest_response=20, part_sums={"worked": 3.0},
        part_counts={"worked": 2},
        response_lengths={5: 1, 7: 1, 12: 2, 20: 1},
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
    on_slot = {"actor": "rank 0", "role": "trainer", "slots": (0,)}
    run.append_spans(1, [span("rollout", 10.0, 12.5), span("update", 12.5, 13.0, **on_slot, counts={"samples": 8})])
    run.append_spans(2, [span("rollout", 14.0, 15.0)])
    run.append_spans(2, [span("update", 15.0, 15.5, **on_slot)])
    events = events_of(run)
    threads = {e["args"]["name"]: (e["pid"], e["tid"]) for e in events if e["name"] == "thread_name"}
    slices = [(e["name"], (e["pid"], e["tid"]), e["ts"], e["dur"]) for e in events if e["ph"] == "X"]
    assert slices == [
        ("rollout", threads["controller 0"], 10_000_000, 2_500_000),
        ("update", threads["rank 0"], 12_500_000, 500_000),
        ("rollout", threads["controller 0"], 14_000_000, 1_000_000),
        ("update", threads["rank 0"], 15_000_000, 500_000),
    ]
    assert [e["args"] for e in events if e["ph"] == "X"][1] == {"step": 1, "actor": "rank 0", "samples": 8}
    run.timeline.write_text(run.timeline.read_text()[:-20])
    again = RunDirectory(run.path)
    again.append_spans(3, [span("sync", 20.0, 21.0)])
    names = [(e["name"], (e["pid"], e["tid"])) for e in events_of(run) if e["ph"] == "X"]
    assert names == [
        ("rollout", threads["controller 0"]), ("update", threads["rank 0"]), ("rollout", threads["controller 0"]),
        ("sync", threads["controller 0"]),
    ]  # fmt: skip
    assert [[(s.name, s.actor, s.slots) for s in spans] for spans in again.read_spans().values()] == [
        [("rollout", "controller 0", ()), ("update", "rank 0", (0,))],
        [("rollout", "controller 0", ())],
        [("sync", "controller 0", ())],
    ]


def test_a_process_per_slot_in_order_and_one_for_the_loop(run):
    spans = [
        span("update", 1, 2, "rank 10", role="trainer", slots=(10,)),
        span("update", 1, 2, "rank 2", role="trainer", slots=(2,)),
        span("sample", 0, 1, "generator 0", role="policy", slots=(2, 10)),
        span("rollout", 0, 1, "controller 1"),
        span("evaluate", 3, 4, "driver"),
    ]
    run.append_spans(1, spans)
    names = {e["pid"]: e["args"]["name"] for e in events_of(run) if e["name"] == "process_name"}
    order = {e["pid"]: e["args"]["sort_index"] for e in events_of(run) if e["name"] == "process_sort_index"}
    assert [names[pid] for pid in sorted(names, key=order.get)] == ["driver, controllers", "slot 2", "slot 10"]
    threads = {(e["pid"], e["tid"]): e["args"]["name"] for e in events_of(run) if e["name"] == "thread_name"}
    places = {(e["pid"], e["tid"]): e["args"]["sort_index"] for e in events_of(run) if e["name"] == "thread_sort_index"}
    assert [threads[at] for at in sorted(threads, key=places.get)] == [
        "driver", "controller 1", "generator 0", "rank 2", "generator 0", "rank 10",
    ]  # fmt: skip
    assert sorted((s.actor, s.slots) for s in run.read_spans()[1] if s.slots) == [
        ("generator 0", (2,)), ("generator 0", (10,)), ("rank 10", (10,)), ("rank 2", (2,)),
    ]  # fmt: skip


def test_a_decision_is_an_instant_of_the_driver(run, monkeypatch):
    monkeypatch.setattr(timeline, "MOST_OF_STEP", 3)
    decision = Decision(at=12.25, text="slot 1 judges", slots={"policy": 1, "step": 1})  # a judge may have any name
    run.append_spans(4, [span("rollout", 10, 13), *(span("load", k, k + 1) for k in range(3)), mark(decision)])
    (event,) = (event for event in events_of(run) if event["ph"] == "i")
    threads = {(e["pid"], e["tid"]): e["args"]["name"] for e in events_of(run) if e["name"] == "thread_name"}
    assert threads[event["pid"], event["tid"]] == "driver" and "dur" not in event
    assert (event["name"], event["ts"]) == ("slot 1 judges", 12_250_000)
    assert event["args"] == {"policy": 1, "step": 4, "actor": "driver"}
    found = RunDirectory(run.path).read_spans()[4]
    assert [s.name for s in found if s.role == timeline.DECISION] == ["slot 1 judges"] and len(found) == 3


def test_the_timeline_is_bounded_and_keeps_its_ends(run, monkeypatch):
    monkeypatch.setattr(timeline, "MOST_EVENTS", 40)
    monkeypatch.setattr(timeline, "MOST_OF_STEP", 5)
    written, write = [], timeline.Timeline._write

    def counting(self, steps, first):
        written.append(first)
        write(self, steps, first)

    monkeypatch.setattr(timeline.Timeline, "_write", counting)
    sizes = []
    for step in range(1, 201):
        # 3 spans a step: 13 steps fit into 40 events. Step 150 has 6, of which the shortest is left out.
        run.append_spans(step, [span("rollout", step, step + 0.1 * k) for k in range(1, 7 if step == 150 else 4)])
        sizes.append(sum(event["ph"] == "X" for event in events_of(run)))
        if step == 150:
            assert sorted(s.stop for s in run.read_spans()[150]) == pytest.approx([150.2, 150.3, 150.4, 150.5, 150.6])
    assert max(sizes) <= 40
    # 1 to 3 and 197 to 200 stay: 7 steps, 21 events. Between them 6 more steps fit, 18 events: the multiples of 32
    # below 197 are 6 (32 to 192), those of 16 would be 12.
    assert steps_in(run) == [1, 2, 3, 32, 64, 96, 128, 160, 192, 197, 198, 199, 200]
    # Everything is written anew once for its names, and from the first steps on once for each of 2, 4, 8, 16, 32.
    assert sum(first <= 32 < step - 8 for step, first in enumerate(written, 1)) <= 5
    assert run.read_spans().keys() == set(steps_in(run))


def test_rewinding_takes_spans_along(run):
    for step in range(4):
        run.append_spans(step, [span("rollout", step, step + 1)])
    again = RunDirectory(run.path)
    again.rewind(1)
    assert steps_in(run) == [0, 1]
    again.append_spans(2, [span("rollout", 20, 21)])
    assert [event["ts"] for event in events_of(run) if event["ph"] == "X"] == [0, 1_000_000, 20_000_000]
    again.rewind(-1)
    again.append_spans(1, [span("rollout", 30, 31)])
    assert steps_in(run) == [1]


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
    assert row["parts"] == {"worked": 1.5}  # 3 over the two that have it
    assert row["response_length_mean"] == 12.0  # 60 over 5 responses
    # half of 5 is 2.5: both of 5 and 7, and 0.5 of the 2 in bin 12 to 13; 4.5: 0.5 of the 1 in bin 20 to 23, at most 20
    assert row["response_length_p50"] == 12.25 and row["response_length_p90"] == 20.0
    assert row["truncated"] == 0.4
    assert row["tokens_per_s"] == 6.0
    assert row["overhead"] == pytest.approx(0.2)  # 2 of 10 s in no phase
    assert row["driver_payload_bytes"] == 0 and "accuracy_greedy" not in row
    assert row["response_lengths"] == [(5, 1), (7, 1), (12, 2), (20, 1)] and row["decisions"] == []
    decision = Decision(at=2.5, text="all write", slots=MappingProxyType({"policy": 2}))
    (told,) = json.loads(json.dumps(metrics_row(step_report(decisions=(decision,)))))["decisions"]
    assert told == {"at": 2.5, "text": "all write", "slots": {"policy": 2}}


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
    assert sft["tokens_per_s"] == 5.0 and sft["reward_mean"] is None and sft["groups"] == 0


def test_rewards_that_all_failed_have_no_mean():
    failed = RolloutCounts(responses=4, reward_failures=4, failures=("reward: KeyError: 'x'",))
    row = json.loads(json.dumps(metrics_row(step_report(counts=failed), warnings=["step 3 has no reward"])))
    assert row["reward_mean"] is row["reward_std"] is row["reward_min"] is row["reward_max"] is None
    assert row["parts"] == {} and row["failures"] == ["reward: KeyError: 'x'"]
    assert row["warnings"] == ["step 3 has no reward"]


def test_numbers_that_only_some_algorithms_have_are_in_the_row_like_the_others():
    update = UpdateReport(
        loss=0.5, grad_norm=1.0, learning_rate=0.1, numbers={"critic_loss": 0.25, "pair_accuracy": 0.75, "loss": 9.0}
    )
    row = metrics_row(replace(step_report(), update=update))
    assert (row["critic_loss"], row["pair_accuracy"]) == (0.25, 0.75) and "numbers" not in row
    assert row["loss"] == 0.5  # a name that every row has stays what it is


def test_an_evaluation_is_in_the_row_with_its_intervals_and_sources():
    web = SourceReport(prompts=2, accuracy_greedy=0.5, accuracy_sampled=None, intervals={"accuracy_greedy": (0.1, 0.9)})
    evaluation = EvaluationReport(
        prompts=4, accuracy_greedy=0.25, accuracy_sampled=0.5, pass_at_k={1: 0.5, 2: 0.75}, failures=1,
        intervals={"accuracy_greedy": (0.05, 0.7), "pass@2": (0.5, 1.0)}, sources={"web": web},
    )  # fmt: skip
    row = json.loads(json.dumps(metrics_row(step_report(), evaluation=evaluation)))
    assert (row["accuracy_greedy"], row["accuracy_sampled"]) == (0.25, 0.5) and "held_out_loss" not in row
    told = row["evaluation"]
    assert told["intervals"] == {"accuracy_greedy": [0.05, 0.7], "pass@2": [0.5, 1.0]}
    assert told["sources"]["web"]["intervals"] == {"accuracy_greedy": [0.1, 0.9]} and told["failures"] == 1
    assert told["sources"]["web"]["accuracy_greedy"] == 0.5 and told["sources"]["web"]["accuracy_sampled"] is None
    assert told["pass_at_k"] == {"1": 0.5, "2": 0.75} and "loss" not in told


def test_an_evaluation_on_rows_is_in_the_row():
    evaluation = EvaluationReport(
        prompts=9, accuracy_greedy=None, accuracy_sampled=None, loss=0.5, pair_accuracy=0.75,
        intervals={"pair_accuracy": (0.4, 0.9)},
    )  # fmt: skip
    row = metrics_row(step_report(), evaluation=evaluation)
    assert (row["held_out_loss"], row["held_out_pair_accuracy"]) == (0.5, 0.75)
    assert row["evaluation"]["intervals"] == {"pair_accuracy": (0.4, 0.9)} and "accuracy_greedy" not in row


def test_the_first_row_is_the_evaluation_before_training():
    evaluation = EvaluationReport(prompts=200, accuracy_greedy=0.02, accuracy_sampled=0.34, pass_at_k={4: 0.5})
    row = first_row(evaluation, controllers=2, phases={"evaluate": 2.0})
    assert row.keys() == metrics_row(step_report(), evaluation=evaluation).keys()
    assert (row["step"], row["accuracy_greedy"], row["accuracy_sampled"]) == (0, 0.02, 0.34)
    assert row["controllers"] == 2 and row["overhead"] == 0 and row["evaluation"]["pass_at_k"] == {"4": 0.5}
    json.dumps(row, allow_nan=False)


def test_what_ranks_did_before_a_step_is_not_taken_off_it():
    """An evaluation between steps is told with the next one: 10 s from 100 on, of which 8 are a rollout or training."""
    spans = (
        span("rollout", 100, 104), span("train", 104, 108), span("report", 108, 110),
        span("evaluate", 60, 100, "rank 0", slots=(0,)), span("move", 95, 99), span("move", 101, 102),
    )  # fmt: skip
    assert overhead(step_report(spans=spans, seconds=10.0)) == pytest.approx(0.2)

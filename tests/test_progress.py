"""What the terminal shows: plain lines without a terminal, a live region on one, and nothing too wide."""

import io
import re

import pytest
from rich.console import Console

from yatt.config.load import load_config
from yatt.errors import RunEnded
from yatt.faces.progress import Progress
from yatt.faces.rundir import RunDirectory
from yatt.faces.train import RunJournal
from yatt.reports import Decision, RolloutCounts, StepReport, UpdateReport


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def row(step, **changes):
    values = {
        "step": step, "reward_mean": 0.5, "loss": 0.25, "kl": 1.2e-6, "response_length_mean": 17.4,
        "longest_response": 60, "tokens_per_s": 3456.0, "seconds": 2.0, "reward_failures": 0, "groups_dropped": 0,
        "skipped_updates": 0, "phases": {"rollout": 1.5, "train": 0.5},
    }  # fmt: skip
    return values | changes


def make(total, kind="rl", *, terminal=False, width=100, **options):
    out, clock = io.StringIO(), Clock()
    console = Console(file=out, force_terminal=terminal, width=width, highlight=False, **options)
    return Progress(total, kind, console=console, clock=clock), out, clock


def test_without_a_terminal_every_step_is_one_plain_line():
    progress, out, clock = make(3)
    progress.phase("engine 0", "loading")
    clock.now += 12.3
    progress.phase("engine 0", "ready")
    progress.warn("2 rows skipped")
    for step in (1, 2, 3):
        clock.now += 2
        progress.step(row(step, reward_failures=int(step == 2), kl_ref=1.2e-6 * (step == 3)))
    progress.finish(["report  runs/a/report.html", "next    yatt eval runs/a"])
    assert out.getvalue().splitlines() == [
        "  engine 0: ready, 12.3 s",
        "warning: 2 rows skipped",
        "len: tokens of a response, mean/longest; dropped: groups left out of training",
        "step 1/3  reward 0.500  len 17/60  2.00 s  ETA 0:04  tok/s 3.5k",
        "step 2/3  reward 0.500  len 17/60  failed 1  2.00 s  ETA 0:02  tok/s 3.5k",
        "step 3/3  reward 0.500  kl 1.2e-06  len 17/60  2.00 s  tok/s 3.5k",
        "report  runs/a/report.html",
        "next    yatt eval runs/a",
    ]


def test_it_is_said_what_is_waited_for_where_something_new_is_and_every_ten_seconds():
    progress, out, clock = make(3)
    said = []

    def tick(seconds=0.0):
        clock.now += seconds
        progress.remind()
        said.append(out.getvalue())
        out.seek(0), out.truncate()

    tick()
    progress.phase("imports", "libraries")
    tick(), tick(9), tick(1)
    progress.phase("imports", "ready")
    for name in ("generator 0", "generator 1", "generator 2", "generator 7", "rank 0"):
        progress.phase(name, "loading weights")
    tick(1)
    progress.phase("generator 1", "ready")
    tick(9.5)
    tick(0.5)
    for name in ("generator 0", "generator 2", "generator 7", "rank 0"):
        progress.phase(name, "ready")
    tick(20)
    for done in (3, 5):
        progress.phase("evaluation", f"{done} of 400 prompts")
        tick(10)
    assert said == [
        "", "  imports: libraries (0 s)\n", "", "  imports: libraries (10 s)\n",
        "  imports: ready, 10.0 s\n  generators 0-2, 7, rank 0: loading weights (1 s)\n", "",
        "  generators 0, 2, 7, rank 0: loading weights (11 s)\n",
        "  generators 0-2, 7, rank 0: ready, 11.0 s\n",
        "  evaluation: 3 of 400 prompts (10 s)\n", "  evaluation: 5 of 400 prompts (20 s)\n",
    ]  # fmt: skip


def test_what_is_waited_for_is_one_line_of_the_terminal():
    progress, out, clock = make(3, terminal=True, width=40, legacy_windows=False)
    for number in range(0, 128, 2):
        progress.phase(f"generator {number}", "loading weights")
    clock.now += 75
    (line,) = _plain(progress._region(), 40)
    assert len(line) <= 40 and line.endswith("… (75 s)") and out.getvalue() == ""


def test_the_evaluation_before_the_first_step_shows_accuracies_only():
    progress, out, _ = make(40)
    progress.step(row(0, accuracy_greedy=0.02, accuracy_sampled=0.34, evaluation={}))
    assert out.getvalue() == "step  0/40  held-out:  greedy 2.0%  sampled 34.0%\n"


@pytest.mark.parametrize("size", [0.0, 1e-300, 0.5, -0.5, 999_999.4, 1e299, -1e299])
@pytest.mark.parametrize("kind", ["rl", "offline"])
def test_lines_of_a_step_have_at_most_80_columns_at_any_size(size, kind):
    progress, out, _ = make(100_000, kind)
    shares = dict.fromkeys(("accuracy_greedy", "accuracy_sampled", "held_out_pair_accuracy", "pair_accuracy"), 0.99999)
    numbers = dict.fromkeys(("reward_mean", "loss", "critic_loss", "held_out_loss", "chosen_reward", "kl_ref"), size)
    counts = dict.fromkeys(("reward_failures", "groups_dropped", "skipped_updates", "longest_response"), 123_456)
    more = {"tokens_per_s": abs(size), "seconds": 1e5, "rejected_reward": -size}
    progress.step(row(99_999, **(shares | numbers | counts | more | {"response_length_mean": 131_072.0})))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= 80 and f"99999/100000  {'reward' if kind == 'rl' else 'loss'} " in out.getvalue()
    assert not re.search(r"\d{10}", out.getvalue()) and "held-out:  greedy 100.0%" in out.getvalue()


def test_notes_on_a_step_are_broken_where_a_line_ends():
    progress, out, _ = make(4)
    progress.detail("step 1, placement: " + "policy 3, judge 1 " * 8)
    lines = out.getvalue().splitlines()
    assert len(lines) == 3 and max(map(len, lines)) <= 80 and lines[1].startswith("  ")


def test_fast_offline_steps_are_shown_each_tenth_and_every_five_seconds():
    progress, out, clock = make(1000, "offline")
    with progress:
        for step in range(1, 1001):
            clock.now += 1 / 8 if step <= 200 else 1 / 128
            progress.step(row(step))
    shown = [int(line.split()[1].split("/")[0]) for line in out.getvalue().splitlines()]
    # the first; each 5 s = 40 steps, and each tenth = 100 steps, while slow; then the tenths alone
    assert shown == [1, 41, 81, 100, 140, 180, 200, 300, 400, 500, 600, 700, 800, 900, 1000]
    assert "loss 0.2500" in out.getvalue() and "reward" not in out.getvalue()


def test_what_a_run_learns_from_rows_is_told_with_the_margin_of_what_is_preferred():
    progress, out, _ = make(10, "offline")
    with progress:
        progress.step(row(0, held_out_loss=0.6931, held_out_pair_accuracy=0.5))
        progress.step(row(1, pair_accuracy=0.625, chosen_reward=0.25, rejected_reward=-0.5))
        progress.step(row(2, desirable_reward=0.125, undesirable_reward=0.25, held_out_loss=0.5))
        progress.step(row(3, pair_accuracy=None, chosen_reward=None, rejected_reward=None))  # were not finite
    first, second, third, more, fourth = out.getvalue().splitlines()
    assert first == "step  0/10  held-out:  loss 0.6931  pairs 50.0%"
    assert second.startswith("step  1/10  loss 0.2500  pairs 62.5%  margin +0.750  2.00 s")
    assert third.startswith("step  2/10  loss 0.2500  margin -0.125  2.00 s")
    assert more == "step  2/10  held-out:  loss 0.5000" and fourth.startswith("step  3/10  loss 0.2500  2.00 s")


def test_a_critic_tells_its_loss():
    progress, out, _ = make(2)
    with progress:
        progress.step(row(1, critic_loss=0.1234))
        progress.step(row(2, critic_loss=None))
    assert "reward 0.500  critic 0.123  len" in out.getvalue() and "critic -" in out.getvalue()


@pytest.mark.parametrize("width", [30, 50, 80, 140])
def test_lines_fit_the_terminal_and_the_live_region_is_taken_down(width):
    progress, out, _ = make(40, terminal=True, width=width, legacy_windows=False)
    with progress:
        progress.phase("engine 0", "loading")
        progress.phase("engine 0", "ready")
        for step in range(1, 4):
            progress.step(row(step, accuracy_greedy=0.5))
            rendered = progress._region()
            assert all(len(line) <= width for line in _plain(rendered, width))
            told = row(step)
            assert len(_plain(progress._line(told, progress._fields(told)), width)) == 1
        progress.finish(["report  runs/a/report.html"])
    text = out.getvalue()
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1  # the cursor is hidden, and shown again


def _plain(renderable, width):
    console = Console(file=io.StringIO(), width=width)
    console.print(renderable)
    return console.file.getvalue().splitlines()


def test_no_color_leaves_no_colour_codes():
    progress, out, _ = make(4, terminal=True, no_color=True, legacy_windows=False)
    with progress:
        progress.step(row(1))
        progress.finish(["done"])
    assert "\x1b[3" not in out.getvalue() and "\x1b[38" not in out.getvalue()


def test_the_remaining_time_follows_the_latest_steps():
    progress, _, clock = make(100)
    for step in range(1, 41):
        clock.now += 1 if step <= 20 else 3
        progress.step(row(step))
    assert progress._eta() == pytest.approx(60 * 3)
    clock.now += 10
    assert progress._eta() == pytest.approx(60 * 3 - 10)


def test_missing_numbers_do_not_end_a_run():
    progress, out, _ = make(2)
    with progress:
        progress.step(row(1, reward_mean=None, kl=None, phases={}))
        progress.step(row(2, loss=None))
    assert "reward -  len" in out.getvalue()


def test_signs_the_output_cannot_show_are_replaced():
    raw = io.BytesIO()
    console = Console(file=io.TextIOWrapper(raw, encoding="ascii", write_through=True), width=80)
    with Progress(1, console=console) as progress:
        progress.note("naïve ✓")
    assert raw.getvalue() == b"na?ve ?\n"


@pytest.fixture
def journal(tmp_path):
    """A journal of a run of 4 steps of 2 groups; what it is told of, and the lines it says."""
    progress, out, _ = make(4)
    words = ["model.path=m", "train.steps=4", "train.batch_size=2", f"run.dir={tmp_path}", "log.trackers=[]"]
    journal = RunJournal(load_config(None, words), RunDirectory(tmp_path).create(), progress)

    learned = UpdateReport(loss=0.0, grad_norm=1.0, learning_rate=1e-6, trained_tokens=9)

    def step(number, decisions=(), update=learned, **counts):
        journal.step(
            StepReport(
                step=number, epoch=0.0, policy_version=number, controllers=1, phases={}, spans=(), seconds=1.0,
                counts=RolloutCounts(**{"groups": 2, "responses": 4} | counts), decisions=decisions,
                update=update,
            ), None, (),
        )  # fmt: skip

    step.journal = journal
    with progress:
        yield step, lambda word: [line for line in out.getvalue().splitlines() if word in line]


def test_what_is_found_is_said_and_kept_in_the_rows(journal, tmp_path):
    step, said = journal
    step(1, scored=1, reward_failures=3, failures=("reward: KeyError: 'x'",))
    step(2, scored=0, groups=0, reward_failures=4, reward_timeouts=1)
    lines = [
        "step 1: 3 of 4 rewards failed; the first failures: \"reward: KeyError: 'x'\"",
        "step 2 has no reward: all 4 failed, 1 of them out of time",
    ]
    assert said("warning") == [f"warning: {line}" for line in lines]
    assert [row["warnings"] for row in step.journal._run.read_metrics()] == [[line] for line in lines]
    assert "reward -" in said("2/4")[-1]


def test_enough_idle_steps_have_the_run_stopped_after_the_step(journal):
    step, said = journal
    stopped = []
    step.journal.stop = lambda: stopped.append(len(step.journal._run.read_metrics()))
    for number in (1, 2, 3):
        step(number, scored=0, groups=0, reward_failures=4, failures=("no such column",))
    assert stopped == [3] and len(said("warning")) == 3
    assert step.journal.ending.startswith("3 steps in a row taught nothing: step 3 has no reward")
    assert "'no such column'" in step.journal.ending
    assert step.journal._run.read_metrics()[-1]["warnings"][-1] == step.journal.ending


def test_a_gap_beyond_rounding_ends_the_run_at_once_its_row_written(journal):
    step, said = journal
    update = UpdateReport(
        loss=0.1, grad_norm=1.0, learning_rate=1e-6, trained_tokens=90, fresh_tokens=90, fresh_gap_mean=1.5
    )
    with pytest.raises(RunEnded, match=r"1\.5 apart on average"):
        step(1, update=update)
    assert len(step.journal._run.read_metrics()) == len(said("1/4")) == 1 and step.journal.ending is None


def test_decisions_are_said_once_until_others_come(journal, tmp_path):
    step, said = journal

    def split(*policies):
        return tuple(
            Decision(at=float(k), text=f"{p} of 4 write, at {k}", slots={"policy": p, "judge": 4 - p})
            for k, p in enumerate(policies)
        )

    for number, policies in enumerate([(3, 2), (3, 2), (3,), (1, 2, 3, 2, 1, 2)], 1):
        step(number, decisions=split(*policies))
    assert said("placement") == [
        "step 1, placement: 3 of 4 write, at 0", "step 1, placement: 2 of 4 write, at 1",
        "step 3, placement: 3 of 4 write, at 0", "step 4, placement: 1 of 4 write, at 0",
        "step 4, placement: 2 of 4 write, at 1", "step 4, placement: 3 of 4 write, at 2",
        "step 4, placement: 2 of 4 write, at 3",
        "step 4, placement: 2 more decisions, all in metrics.jsonl",
    ]  # fmt: skip
    run = RunDirectory(tmp_path)
    assert [len(row["decisions"]) for row in run.read_metrics()] == [2, 2, 1, 6]
    assert [s.name for s in run.read_spans()[3]] == ["3 of 4 write, at 0"]

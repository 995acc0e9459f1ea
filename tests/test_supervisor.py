"""The driver's part: what it does from step to step, what it keeps, and that no data passes through it."""

import asyncio
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from doubles import Ticks

from yatt.cluster.crew import ClusterCrew
from yatt.cluster.payload import payload_bytes
from yatt.config.load import load_config
from yatt.errors import ConfigError, ProcessDied, RunEnded
from yatt.faces import train as faces_train
from yatt.faces.checkpoints import Checkpoints
from yatt.faces.rundir import RunDirectory
from yatt.reports import EvaluationReport, RolloutCounts, StepReport, UpdateReport
from yatt.supervisor import Supervisor
from yatt.types import Prompt

EVALUATION = EvaluationReport(prompts=1, accuracy_greedy=1.0, accuracy_sampled=0.5)
REPORT = StepReport(
    step=0,
    epoch=0.0,
    policy_version=0,
    controllers=1,
    counts=RolloutCounts(part_sums={"r": 1.0}, part_counts={"r": 1}),
    update=UpdateReport(loss=0.0, grad_norm=0.0, learning_rate=0.0),
    phases={"train": 1.0},
    spans=(),
    seconds=1.0,
)


class Crew:
    def __init__(self, events, stop_at=None, full_at=None, dies_at=(), recovers=True):
        self.events, self.stop_at, self.full_at = events, stop_at, full_at
        self.dies_at, self.recovers = list(dies_at), recovers
        self.saved = 0
        self.supervisor = None

    async def step(self, step):
        self.events.append(f"step {step}")
        if step in self.dies_at:
            self.dies_at.remove(step)
            raise ProcessDied(f"rank 0 died in step {step}")
        if step == self.stop_at:
            self.supervisor.stop()
        return replace(REPORT, step=step, policy_version=step, epoch=step / 4)

    async def evaluate(self, step):
        self.events.append(f"evaluate {step}")
        return EVALUATION

    async def save(self, step, go_on=bool):
        if step == self.full_at:
            self.full_at = None
            raise OSError(28, "No space left on device")
        self.events.append(f"save {step}")
        self.saved = step

    async def recover(self, error):
        if not self.recovers:
            raise error
        self.events.append(f"back to {self.saved}")
        return self.saved


class Journal:
    def __init__(self, events):
        self.events = events

    def start(self, evaluation, spans):
        self.events.append("row 0")

    def step(self, report, evaluation, spans):
        assert [s.name for s in spans].count("evaluate") == (evaluation is not None)
        self.events.append(f"row {report.step}{' evaluated' if evaluation else ''}")

    def recovered(self, step):
        self.events.append(f"goes on from {step}")

    def saved(self, step):
        self.events.append(f"saved {step}")

    def save_failed(self, step, error):
        self.events.append(f"not saved {step}: {error}")


def settings(*words):
    return load_config(None, ["model.path=m", "train.batch_size=1", "evaluate.path=e", "data.path=d", *words])


async def play(config, first=1, **crew):
    events = []
    crew = Crew(events, **crew)
    crew.supervisor = Supervisor(config, crew, Journal(events), Ticks())
    return await crew.supervisor.run(first), events


async def test_evaluates_before_the_first_step_when_due_and_after_the_last():
    last, events = await play(settings("train.steps=3", "evaluate.every=2", "checkpoint.every=2"))
    assert last == 3
    assert events == [
        *("evaluate 0", "row 0"),
        *("step 1", "row 1"),
        *("step 2", "evaluate 2", "row 2 evaluated", "save 2", "saved 2"),
        *("step 3", "evaluate 3", "row 3 evaluated", "save 3", "saved 3"),
    ]


async def test_a_resumed_run_does_not_begin_again():
    assert (await play(settings("train.steps=3"), first=3))[1][0] == "step 3"
    assert await play(settings("train.steps=3"), first=4) == (3, [])


async def test_stop_ends_after_the_step_under_way_with_a_checkpoint():
    last, events = await play(settings("train.steps=9"), stop_at=2)
    assert last == 2
    assert events[-3:] == ["row 2", "save 2", "saved 2"]


async def test_a_full_disk_is_said_and_the_run_goes_on():
    last, events = await play(settings("train.steps=2", "checkpoint.every=1"), full_at=1)
    assert last == 2
    assert "not saved 1: [Errno 28] No space left on device" in events
    assert events[-1] == "saved 2"


async def test_after_a_death_the_steps_since_the_last_checkpoint_are_done_again():
    last, events = await play(settings("train.steps=4", "checkpoint.every=2"), dies_at=[1, 4])
    assert last == 4
    done = [event for event in events if event.startswith(("step", "back"))]
    assert done == [
        *("step 1", "back to 0", "step 1", "step 2"),
        *("step 3", "step 4", "back to 2", "step 3", "step 4"),
    ]


class Writing(Crew):
    """Writes until it is told that the disk is done; the next step may begin before."""

    def __init__(self, events, **crew):
        super().__init__(events, **crew)
        self.disk = asyncio.Event()

    async def save(self, step, go_on=bool):
        self.events.append(f"begin {step}")
        go_on()
        await self.disk.wait()
        self.disk.clear()
        await super().save(step)

    async def step(self, step):
        if step in (3, 4):
            self.disk.set()
            await asyncio.sleep(0.01)
        return await super().step(step)


def supervised(config, crew):
    crew.supervisor = Supervisor(config, crew, Journal(crew.events), Ticks())
    return crew.supervisor


async def test_steps_go_on_while_a_checkpoint_is_written_and_the_next_one_and_the_end_wait():
    crew = Writing(events := [])
    run = asyncio.create_task(supervised(settings("train.steps=4", "checkpoint.every=1"), crew).run(1))
    await asyncio.sleep(0.01)
    assert events[-2:] == ["step 2", "row 2"] and not run.done(), "the second save waits for the first"
    while not run.done():
        crew.disk.set()
        await asyncio.sleep(0.001)
    assert run.result() == 4
    said = [f"{word} {step}" for step in (1, 2, 3, 4) for word in ("begin", "saved")]
    assert [event for event in events if event in said] == said


async def test_a_failed_write_is_told_before_the_next_step():
    crew = Writing(events := [], full_at=2)
    config = settings("train.steps=4", "checkpoint.every=2")
    run = asyncio.create_task(supervised(config, crew).run(1))
    while not run.done():
        await asyncio.sleep(0.001)
        if "step 4" in events:
            crew.disk.set()
    assert "not saved 2: [Errno 28] No space left on device" in events
    assert events.index("not saved 2: [Errno 28] No space left on device") == events.index("step 4") - 1
    assert events[-1] == "saved 4"


async def test_a_run_that_is_cancelled_cancels_what_is_being_written():
    crew = Writing(events := [])
    run = asyncio.create_task(supervised(settings("train.steps=1"), crew).run(1))
    while "begin 1" not in events:
        await asyncio.sleep(0.001)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert crew.saved == 0 and len(asyncio.all_tasks()) == 1


async def test_a_death_waits_for_what_is_being_written_and_goes_back_to_it():
    crew = Writing(events := [], dies_at=[3])
    run = asyncio.create_task(supervised(settings("train.steps=3", "checkpoint.every=2"), crew).run(1))
    while not run.done():
        await asyncio.sleep(0.001)
        if "row 3" in events:
            crew.disk.set()
    assert "back to 2" in events and run.result() == 3


async def test_minutes_and_a_signal_ask_for_a_checkpoint():
    class Clock:
        def now(self):
            return 60.0 * len([event for event in crew.events if event.startswith("step")])

    crew = Crew(events := [])
    config = settings("train.steps=8", "checkpoint.every=5", "checkpoint.minutes=2")
    await Supervisor(config, crew, Journal(events), Clock()).run(1)
    assert [event for event in events if event.startswith("saved")] == [
        "saved 2",
        "saved 4",
        "saved 5",
        "saved 7",
        "saved 8",
    ]
    crew = Crew(events := [])
    supervisor = supervised(settings("train.steps=5", "checkpoint.every=0"), crew)
    supervisor.save_soon()
    await supervisor.run(1)
    assert [event for event in events if event.startswith("saved")] == ["saved 1", "saved 5"]


async def test_a_death_while_evaluating_at_the_start_or_at_the_very_end_is_recovered_from():
    """The first evaluation is done once; what comes after the last step is done again."""

    class Mortal(Crew):
        async def evaluate(self, step):
            report = await super().evaluate(step)
            if self.events.count("evaluate 0") == 1:
                raise ProcessDied("generator 0 died")
            return report

    crew = Mortal(events := [])
    supervisor = supervised(settings("train.steps=2", "checkpoint.every=1"), crew)

    async def finish():
        events.append("export")
        if events.count("export") == 1:
            raise ProcessDied("rank 0 died")

    assert await supervisor.run(1, finish) == 2
    done = [event for event in events if event.startswith(("evaluate 0", "step", "back", "goes", "row 0", "export"))]
    assert done == [
        *("evaluate 0", "back to 0", "goes on from 0", "evaluate 0", "row 0"),
        *("step 1", "step 2", "export", "back to 2", "goes on from 2", "export"),
    ]


async def test_a_run_that_is_stopped_while_it_recovers_ends_at_its_checkpoint():
    class Slow(Crew):
        async def recover(self, error):
            assert self.supervisor.stop() is True
            return await super().recover(error)

    crew = Slow(events := [], dies_at=[3])
    assert await supervised(settings("train.steps=9", "checkpoint.every=2"), crew).run(1) == 2
    assert events[-2:] == ["back to 2", "goes on from 2"]


async def test_a_death_ends_the_run_where_nothing_can_be_brought_up_anew():
    with pytest.raises(ProcessDied, match="rank 0 died in step 2"):
        await play(settings("train.steps=4"), dies_at=[2], recovers=False)


async def test_held_out_rows_are_evaluated_whatever_is_trained():
    for name in ("sft", "dpo", "grpo"):
        _, events = await play(settings("train.steps=1", f"algorithm.name={name}"))
        assert events == ["evaluate 0", "row 0", "step 1", "evaluate 1", "row 1 evaluated", "save 1", "saved 1"], name
    _, events = await play(settings("train.steps=1", "algorithm.name=sft", "evaluate.path=null"))
    assert events == ["step 1", "row 1", "save 1", "saved 1"]


def test_numbers_about_data_are_not_payload_and_data_is():
    assert payload_bytes([REPORT, EVALUATION]) == 0
    tokens = np.arange(10, dtype=np.int32)
    assert payload_bytes(Prompt(uid=0, text="", tokens=tokens)) == 40
    assert payload_bytes({"a": [tokens, b"12345"]}) == 45
    assert payload_bytes(list(range(1000))) == 8000
    assert payload_bytes("x" * 5000) == 5000


def writing(state):
    async def write(folder):
        (folder / "trainer").mkdir()
        (folder / "trainer" / "shard").write_text("weights")
        (folder / "controllers" / "controller-0.jsonl").write_text("")
        return state

    return write


async def test_checkpoints_are_complete_or_absent_and_the_last_k_stay(tmp_path):
    run = RunDirectory(tmp_path / "a").create()
    checkpoints = Checkpoints(run, settings("train.steps=9", "checkpoint.keep=2", "resume=auto"))
    assert checkpoints.choose().resume is None
    for step in (1, 2, 3):
        await checkpoints.save(step, writing({"policy_version": step}))
    assert [c.name for c in run.checkpoints()] == ["step-2", "step-3"]

    async def full(folder):
        await writing({})(folder)
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        await checkpoints.save(4, full)
    assert sorted(p.name for p in run.checkpoints_folder.iterdir()) == ["step-2", "step-3"]
    resume = checkpoints.choose().resume
    assert (resume.step, resume.state) == (3, {"policy_version": 3})
    assert (Path(resume.trainer) / "shard").read_text() == "weights"
    assert [p.name for p in Path(resume.controllers).iterdir()] == ["controller-0.jsonl"]


async def test_a_killed_save_leaves_nothing_that_resume_would_take(tmp_path):
    run = RunDirectory(tmp_path / "a").create()
    checkpoints = Checkpoints(run, settings("train.steps=9", "resume=auto"))
    await checkpoints.save(1, writing({}))
    (run.checkpoints_folder / ".step-2.part").mkdir()
    (run.checkpoints_folder / "step-3").mkdir()
    assert checkpoints.choose().resume.step == 1
    await checkpoints.save(2, writing({}))
    assert checkpoints.choose().resume.step == 2


def test_resume_auto_begins_anew_where_nothing_was_saved(tmp_path, monkeypatch):
    begun = []

    async def begin(config, run, checkpoints, resume, progress, began):
        begun.append((resume, run.read_metrics()))
        return 0

    for name, stand_in in {
        "check_data": lambda config: [],
        "check_scoring": lambda config: None,
        "contents": lambda config: {},
        "_train": begin,
    }.items():
        monkeypatch.setattr(faces_train, name, stand_in)
    run = RunDirectory(tmp_path / "a").create()
    run.append_metrics({"step": 0})
    config = settings("train.steps=1", "run.name=a", f"run.dir={tmp_path}")
    with pytest.raises(ConfigError, match="holds a run already; resume=auto goes on with it"):
        faces_train.train(config)
    assert faces_train.train(config.model_copy(update={"resume": "auto"})) == 0
    assert begun == [(None, [])]


async def test_stop_during_the_first_evaluation_does_not_wait_for_a_step():
    asked = []

    class Stopping(Crew):
        async def evaluate(self, step):
            asked.append(self.supervisor.stop())
            return EVALUATION

    crew = Stopping([])
    crew.supervisor = Supervisor(settings("train.steps=3"), crew, Journal([]), Ticks())
    await crew.supervisor.run(1)
    assert asked[0] is False


class Idle(ClusterCrew):
    """A crew of nobody: every reward of every step fails, or, with a gap, engine and trainer differ."""

    def __init__(self, config, run_path, on_phase, checkpoints, tell):
        super().__init__(config, run_path, on_phase, tell=tell)
        self.checkpoints = checkpoints

    async def start(self, *, model, train, generate):
        pass

    async def step(self, step):
        gap = {"fresh_tokens": 50, "fresh_gap_mean": 2.5} if self._config.run.name == "gap" else {}
        counts = RolloutCounts(responses=4, reward_failures=4, failures=(f"<b>no column {step}",))
        update = UpdateReport(loss=0.0, grad_norm=0.0, learning_rate=0.0, **gap)
        return replace(REPORT, step=step, counts=counts, update=update)

    async def save(self, step, go_on=bool):
        await self.checkpoints.save(step, writing({}))

    async def evaluate(self, step):
        return EVALUATION


@pytest.mark.parametrize(("name", "steps", "saved"), [("idle", 3, ["step-3"]), ("gap", 1, [])])
def test_a_run_that_its_numbers_end_leaves_a_report_and_is_an_error(tmp_path, monkeypatch, capsys, name, steps, saved):
    monkeypatch.setattr(faces_train, "check_data", lambda config: [])
    monkeypatch.setattr(faces_train, "check_scoring", lambda config: None)
    monkeypatch.setattr(faces_train, "contents", lambda config: {})
    monkeypatch.setattr(faces_train, "ray_session", lambda cluster: nullcontext())
    monkeypatch.setattr(faces_train, "CheckpointingCrew", Idle)
    config = settings("train.steps=9", f"run.name={name}", f"run.dir={tmp_path}", "log.trackers=[]")
    with pytest.raises(RunEnded) as ended:
        faces_train.train(config)
    assert ended.value.exit_status == 1 and "\n" not in str(ended.value)
    run = RunDirectory(tmp_path / name)
    assert [row["step"] for row in run.read_metrics()] == list(range(steps + 1))
    assert [folder.name for folder in run.checkpoints()] == saved
    report = run.report.read_text()
    assert "has no reward: all 4 failed" in report and "&lt;b&gt;no column 1" in report and "<b>no" not in report
    said = capsys.readouterr().out
    if name == "idle":
        assert str(ended.value).startswith("3 steps in a row taught nothing: step 3 has no reward: all 4 failed")
        assert "'<b>no column 1'; '<b>no column 2'; '<b>no column 3'" in str(ended.value)
        assert said.count("warning: ") == 3 and "resume=auto" in said
    else:
        assert "2.5 apart on average, where rounding in bfloat16 stays under 0.25" in str(ended.value)

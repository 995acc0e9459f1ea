"""YATT from Python: settings by keywords, objects in place of names, and a command in a process of its own."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import save_tiny

import yatt
from yatt.algorithm.load import load_estimator, load_loss
from yatt.config.load import load_config, save_config
from yatt.errors import ConfigError
from yatt.faces import waiting
from yatt.faces.given import copy, kept
from yatt.faces.keywords import nested
from yatt.faces.rundir import RunDirectory
from yatt.faces.start import ready
from yatt.packed_objects import pack, source_of
from yatt.reward.pool import check_reward
from yatt.user_functions import find

HEAVY = {"torch", "transformers", "ray", "vllm", "megatron", "datasets", "pyarrow", "pandas", "cloudpickle"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and data as GSM8K has them."""
    folder = tmp_path_factory.mktemp("api")
    save_tiny(folder / "model")
    rows = [{"question": f"{n}+1=", "answer": f"we add.\n#### {n + 1}"} for n in range(30)]
    (folder / "gsm.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def python(code: str, *words: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run code as a script's: its functions belong to __main__."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, words)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(Path(yatt.__file__).parents[1])},
    )


def test_importing_yatt_imports_nothing_but_its_names() -> None:
    done = python("import yatt, sys; print(*sys.modules); print(*dir(yatt)); yatt.nothing")
    modules, names = done.stdout.splitlines()
    assert [name for name in modules.split() if name.startswith("yatt")] == ["yatt"]
    assert {"train", "evaluate", "plan", "configure", "Run", "Config", "ConfigError"} <= set(names.split())
    assert done.stderr.endswith("AttributeError: module 'yatt' has no attribute 'nothing'\n")


def test_a_call_that_is_refused_has_imported_nothing_heavy(place: Path) -> None:
    code = """
        import sys, yatt
        try:
            yatt.configure(model="model", data="gsm.jsonl", reward="math_verify", steps=0)
        except yatt.ConfigError as error:
            print(error)
        print(*sys.modules)
    """
    error, modules = python(code, cwd=place).stdout.splitlines()[-2:]
    assert error == "train.steps=0 is not a whole number >= 1"
    assert not HEAVY - {"cloudpickle"} & set(modules.split())


# --- settings by keywords --------------------------------------------------------------------------------------------


def settings(**keywords: Any) -> dict[str, Any]:
    def folder() -> Path:
        raise AssertionError("nothing is to be written")

    return nested(keywords, folder)


def test_the_ways_to_say_a_setting() -> None:
    said = settings(
        model="M", reward="math_verify", steps=3, train={"batch_size": 4}, data=None, **{"train.optimizer.eps": 1e-6}
    )
    assert said == {
        "model": {"path": "M"},
        "reward": {"function": "math_verify"},
        "train": {"steps": 3, "batch_size": 4, "optimizer": {"eps": 1e-6}},
    }
    assert settings(model={"path": Path("a"), "dtype": "float32"}) == {"model": {"path": "a", "dtype": "float32"}}
    assert settings(model="a$b", steps=np.int64(3), rollout={"stop": ("x",)}) == {
        "model": {"path": "a$$b"},
        "train": {"steps": 3},
        "rollout": {"stop": ["x"]},
    }


def test_several_rewards() -> None:
    both = {"functions": {"exact_match": {"function": "exact_match"}, "math_verify": {"function": "math_verify"}}}
    assert settings(reward=["exact_match", "math_verify"]) == {"reward": both}
    named = settings(reward={"a": "exact_match", "b": {"function": "math_verify", "weight": 0.5}})
    functions = {"a": {"function": "exact_match"}, "b": {"function": "math_verify", "weight": 0.5}}
    assert named == {"reward": {"functions": functions}}
    assert settings(reward={"timeout": 5.0}) == {"reward": {"timeout": 5.0}}


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"steps": 1, "train.steps": 2}, "train.steps is given twice, by steps and by train.steps; keep one of them"),
        ({"steps": 1, "train": {"steps": 1}}, "train.steps is given twice, by steps and by train; keep one of them"),
        ({"seed": print}, "run.seed takes no builtin_function_or_method; give text, a number, or true or false"),
        ({"reward": 3}, "reward.function=3 is a int; give a function, or the name of one"),
        ({"reward": [len, len]}, "reward has two functions of one name; give them as a mapping, from names of yours"),
    ],
)
def test_keywords_that_are_refused(keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        settings(**keywords)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        (
            {"learning_rat": 1},
            "unknown setting learning_rat; did you mean learning_rate, which is train.optimizer.learning_rate?",
        ),
        ({"top_pe": 1}, "unknown setting top_pe; did you mean rollout.top_p?"),
        ({"train.stepps": 1}, "unknown setting train.stepps; did you mean train.steps?"),
        ({"steps": "many"}, "train.steps='many' is not a whole number >= 1"),
    ],
)
def test_settings_that_are_refused(keywords: dict[str, Any], message: str, place: Path) -> None:
    with pytest.raises(ConfigError) as error:
        yatt.configure(model=place / "model", data=place / "gsm.jsonl", reward="math_verify", **keywords)
    assert str(error.value) == message


def test_a_config_and_a_call_are_the_same(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through keywords, nested settings, a Config and a file: all settings, and a path with a dollar sign."""
    monkeypatch.chdir(place)
    (tmp_path / "a$b.jsonl").write_bytes((place / "gsm.jsonl").read_bytes())
    config = yatt.configure(
        model="model", data=tmp_path / "a$b.jsonl", reward=["math_verify"], steps=3, seed=7, rollout={"stop": ["x"]}
    )
    assert config.data.path == str(tmp_path / "a$b.jsonl")
    assert yatt.configure(**config.model_dump()) == config == yatt.configure(config.model_dump())
    assert yatt.configure(config) == config
    assert yatt.configure(config, steps=4).train.steps == 4
    yatt.save_config(config, tmp_path / "config.yaml")
    again = yatt.configure(tmp_path / "config.yaml")
    assert again.model_copy(update={"run": config.run, "model": config.model}) == config
    assert again.model.path == str(place / "model")
    assert yatt.configure(tmp_path / "config.yaml", seed=8).run.seed == 8


def test_rows_in_place_of_a_file(place: Path) -> None:
    rows = [{"prompt": "1+1=", "answer": "2"}, {"prompt": "2+2=", "answer": "4"}]
    config = yatt.configure(model=place / "model", data=rows, reward="exact_match", steps=1)
    assert [json.loads(line) for line in Path(str(config.data.path)).read_text().splitlines()] == rows
    assert config.train.batch_size == 2
    with pytest.raises(ConfigError, match=r"data.path: row 2 is not what JSON has .*; save the rows as Parquet"):
        yatt.configure(model=place / "model", data=[rows[0], {"prompt": b"1"}], reward="exact_match", steps=1)


# --- objects in place of names ---------------------------------------------------------------------------------------


MADE = """
    import sys, threading
    from pathlib import Path
    from yatt.packed_objects import pack

    BONUS = 2.0
    offset = [0.5]

    def helper(text):
        return len(text) + BONUS

    def outer(weight):
        def judged(response, answer):
            return weight * sum(helper(text) for text in [response]) + offset[0]
        return judged

    class Adder:
        def __init__(self, start: int = 0):
            self.start = start

        def add(self, a: int, b: int) -> int:
            '''Add numbers.

            Args:
                a: a number
                b: a number
            '''
            return self.start + a + b

    folder = Path(sys.argv[1])
    print(pack(outer(3.0), "reward.function", folder))
    print(pack(Adder, "environment.function", folder))
    print(pack(lambda rewards: False, "rollout.filter", folder))
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """References of objects that a script has made which is gone."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "script.py").write_text(textwrap.dedent(MADE))
    done = python("import runpy, sys; runpy.run_path(sys.argv[2], run_name='__main__')", folder, folder / "script.py")
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_function_is_found_with_all_that_it_closes_over(made: list[str]) -> None:
    function = find("reward.function", made[0])
    assert made[0].endswith("reward.function.given.pkl:judged")
    assert function(response="four", answer=None) == 3 * (4 + 2) + 0.5
    assert find("rollout.filter", made[2])([1.0]) is False and made[2].endswith(":given")


def test_a_class_is_found_as_an_environment(made: list[str]) -> None:
    from yatt.environments.worker import _play_of  # noqa: PLC0415

    assert find("environment.function", made[1])(1).add(2, 3) == 6
    assert _play_of(made[1], {}).tools


def test_the_source_is_kept_beside(made: list[str]) -> None:
    text = source_of(Path(made[0].rpartition(":")[0])).read_text()
    assert "def judged(response, answer):\n    return weight * sum(helper(text)" in text
    assert "closes over: helper, offset, weight." in text


def test_advantages_and_losses_are_given_too(place: Path) -> None:
    """As the ranks and controllers load them."""
    scale = 3.0

    def scaled(outcomes: Any, settings: Any) -> Any:
        return scale * outcomes.rewards

    def loss(tokens: Any, settings: Any) -> Any:
        return scale * tokens.logprobs, tokens.mask

    algorithm = {"name": "grpo", "advantage": scaled, "loss": loss}
    calls = {"model": place / "model", "data": place / "gsm.jsonl", "reward": "math_verify"}
    config = yatt.configure(algorithm=algorithm, **calls).algorithm
    outcomes = SimpleNamespace(rewards=torch.tensor([1.0, 2.0]))
    assert load_estimator(config)(outcomes, config).tolist() == [3.0, 6.0]  # type: ignore[arg-type]
    tokens = SimpleNamespace(logprobs=torch.tensor([-1.0]), mask=torch.tensor([True]))
    assert load_loss(config)(tokens, None)[0].tolist() == [-3.0]  # type: ignore[arg-type]


@pytest.mark.slow
def test_reward_workers_are_given_it(made: list[str]) -> None:
    config = load_config(None, ["model.path=m", "train.steps=1", "train.batch_size=1", f"reward.function={made[0]}"])
    check_reward(config.reward)


def test_what_cannot_be_pickled_is_refused_in_one_line(tmp_path: Path) -> None:
    lock, number = threading.Lock(), 1

    def judged(response: str) -> float:
        with lock:
            return float(number)

    with pytest.raises(ConfigError) as error:
        pack(judged, "reward.function", tmp_path)
    assert str(error.value) == (
        "reward.function: judged cannot be sent to another process: it uses 'lock', and that cannot be pickled (cannot "
        "pickle '_thread.lock' object); make it inside the function"
    )
    with pytest.raises(ConfigError, match=r"reward.function: lock cannot be sent to another process: cannot pickle"):
        pack(lock, "reward.function", tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_another_python_has_written_is_refused_in_one_line(made: list[str], tmp_path: Path) -> None:
    head, _, content = Path(made[0].rpartition(":")[0]).read_bytes().partition(b"\n")
    file = tmp_path / "reward.function.given.pkl"

    def written(**changes: Any) -> str:
        file.write_bytes(json.dumps(json.loads(head) | changes).encode() + b"\n" + content)
        with pytest.raises(ConfigError) as error:
            find("reward.function", f"{file}:judged")
        return str(error.value).replace(str(file), "FILE")

    now = ".".join(map(str, sys.version_info[:2]))
    assert written(python=[3, 8]) == (
        f"reward.function=FILE:judged was made by Python 3.8, and this is {now}; use that Python, or write it to a "
        "file (its source is beside reward.function.given.pkl) and name FILE.py:NAME"
    )
    file.write_bytes(b"nothing of ours")
    with pytest.raises(ConfigError, match=r"is not what a call from Python has written; name FILE.py:NAME$"):
        find("reward.function", f"{file}:judged")
    file.unlink()
    with pytest.raises(ConfigError, match="there is no file"):
        find("reward.function", f"{file}:judged")


def test_a_module_that_is_gone_is_named(tmp_path: Path) -> None:
    """A function of a module beside the notebook goes by the module's name; that is looked for where it was."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "beside_the_notebook.py").write_text("def judged(response):\n    return 1.0\n")
    code = """
        import sys; from pathlib import Path
        from yatt.packed_objects import pack
        from beside_the_notebook import judged
        print(pack(judged, "reward.function", Path(sys.argv[1])))
    """
    done = python(code, tmp_path, cwd=tmp_path / "mine")
    reference = done.stdout.strip()
    load = "import sys; from yatt.user_functions import find; print(find('reward.function', sys.argv[1])(response=''))"
    assert python(load, reference, cwd=tmp_path).stdout == "1.0\n"
    (tmp_path / "mine" / "beside_the_notebook.py").unlink()
    error = python(load, reference, cwd=tmp_path).stderr.splitlines()[-1]
    assert error.startswith("yatt.errors.ConfigError: reward.function=") and "No module named" in error


def test_a_run_keeps_what_it_was_given(made: list[str], place: Path, tmp_path: Path) -> None:
    rows = [{"question": "1+1=", "answer": "2"}]
    config = yatt.configure(model=place / "model", data=rows, reward={"ours": made[0]}, steps=1)
    run = RunDirectory(tmp_path / "run")
    mine, moves = kept(config, run.given)
    assert not run.path.exists()
    copy(moves)
    ours = mine.reward.functions["ours"].function
    assert ours == f"{run.given}/reward.function.given.pkl:judged" and find("x", ours)("four", None) == 18.5
    assert (run.given / "reward.function.given.py").is_file()
    assert mine.data.path == f"{run.given}/data.path.given.jsonl" and Path(mine.data.path).is_file()
    assert kept(mine, run.given) == (mine, {})
    plain = yatt.configure(model=place / "model", data=place / "gsm.jsonl", reward="math_verify", steps=1)
    assert kept(plain, run.given) == (plain, {})


def test_two_configs_keep_their_own(place: Path) -> None:
    """A later call writes over nothing that an earlier one was given."""
    calls = {"model": place / "model", "data": place / "gsm.jsonl", "steps": 1}
    first = yatt.configure(reward=lambda response: 1.0, **calls)
    second = yatt.configure(reward=lambda response: 2.0, **calls)
    values = [find("reward.function", str(config.reward.function))("") for config in (first, second)]
    assert values == [1.0, 2.0]


def earning(value: float, response: str) -> float:
    return value


def test_a_saved_config_has_its_functions_beside(place: Path, tmp_path: Path) -> None:
    for value in (1.0, 2.0):
        calls = {"model": place / "model", "data": place / "gsm.jsonl", "steps": 1}
        config = yatt.configure(reward=partial(earning, value), **calls)
        yatt.save_config(config, tmp_path / f"config-{value:g}.yaml")
    again = [yatt.configure(tmp_path / f"config-{value}.yaml") for value in (1, 2)]
    assert [find("reward.function", str(config.reward.function))("") for config in again] == [1.0, 2.0]
    assert str(again[1].reward.function).startswith(f"{tmp_path}/config-2.given/")


def test_a_run_that_has_moved_has_what_it_was_given(made: list[str], place: Path, tmp_path: Path) -> None:
    rows = [{"question": "1+1=", "answer": "2"}]
    config = yatt.configure(model=place / "model", data=rows, reward=made[0], steps=1)
    run = RunDirectory(tmp_path / "here").create()
    config, moves = kept(config, run.given)
    copy(moves)
    step = run.checkpoints_folder / "step-1"
    step.mkdir()
    for folder, beside in ((run.path, "metrics.jsonl"), (step, "complete.json")):
        save_config(config, folder / "config.yaml")
        (folder / beside).touch()
    shutil.move(run.path, tmp_path / "there")
    for folder in (tmp_path / "there", tmp_path / "there" / "checkpoints" / "step-1"):
        moved = load_config(str(folder / "config.yaml"), [])
        assert moved.reward.function == f"{tmp_path}/there/given/reward.function.given.pkl:judged"
        assert moved.data.path == f"{tmp_path}/there/given/data.path.given.jsonl"


# --- a run ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def finished(place: Path, tmp_path: Path) -> yatt.Run:
    config = yatt.configure(model=place / "model", data=place / "gsm.jsonl", reward="math_verify", steps=2, name="done")
    folder = RunDirectory(tmp_path / "runs" / "done").create()
    yatt.save_config(config, folder.config)
    for step in range(3):
        rewards = {"reward_mean": 0.1 * step, "phases": {"rollout": 1.0 + step}, "note": "a"}
        folder.append_metrics({"step": step, "accuracy_greedy": 0.5} | (rewards if step else {"reward_mean": 0.0}))
        for controller in range(2):
            file = folder.samples / f"step-{step}.c{controller}.jsonl"
            file.write_text(json.dumps({"step": step, "response": f"{controller}"}) + "\n" + '{"half')
    return yatt.Run.open(folder.path)


def test_a_run_is_read(finished: yatt.Run) -> None:
    assert finished.name == "done" and finished.config.train.steps == 2 and finished.checkpoints == []
    assert [row["step"] for row in finished.metrics] == [0, 1, 2]
    assert [row["response"] for row in finished.samples(2)] == ["0", "1"]
    assert [row["step"] for row in finished.samples()] == [0, 0, 1, 1, 2, 2]
    assert finished.samples(held_out=True) == []
    assert repr(finished) == f"Run({str(finished.path)!r}, step 2 of 2)"


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is not a run folder: it has no config.yaml; give runs/NAME"):
        yatt.Run.open(tmp_path)


def test_curves_of_a_run(finished: yatt.Run, tmp_path: Path) -> None:
    plot = finished.plot("reward_mean", "phases.rollout")
    assert plot.count == 2 and 'srcdoc="&lt;!doctype html&gt;' in plot._repr_html_()
    page = plot.save(tmp_path / "page.html").read_text()
    # Steps 1 and 2 have rewards; what stands in the row of step 0 has not been measured.
    assert "reward_mean, , step 1 to 2: reward_mean 0.1 to 0.2" in page
    assert "phases.rollout, , step 1 to 2: phases.rollout 2 to 3" in page
    assert finished.plot().count == 2 and "accuracy_greedy, , step 0 to 2" in finished.plot().page
    with pytest.raises(ConfigError, match="done: no step has a number under 'reward_men'; try reward_mean"):
        finished.plot("reward_men")


def test_overwriting_removes_the_run_and_nothing_else(finished: yatt.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunDirectory(finished.path)
    for name in ("mine.txt", "given/reward.function.given.pkl"):
        (folder.path / name).parent.mkdir(exist_ok=True)
        (folder.path / name).write_text("mine")
    config = yatt.configure(finished.config, **{"run.dir": finished.path.parent})
    with pytest.raises(ConfigError, match="holds a run already; resume=auto goes on with it, --overwrite begins anew"):
        ready(config)
    assert ready(config, overwrite=True).path == finished.path
    with pytest.raises(ConfigError, match="--overwrite begins anew, and resume=auto goes on; give one of them"):
        ready(yatt.configure(config, resume="auto"), overwrite=True)
    with folder.lock():
        folder.clear()
        assert sorted(path.name for path in folder.path.iterdir()) == [".lock", "given", "mine.txt"]


def test_the_commands_that_calls_become(place: Path, finished: yatt.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    words: list[list[str]] = []
    monkeypatch.setattr(waiting, "run", lambda asked, answer=False: words.append(list(asked)) or "{}")
    calls = {"model": place / "model", "data": place / "gsm.jsonl", "reward": "math_verify"}
    assert yatt.plan(devices=[8, 16], controllers=2, **calls) == {}
    assert words[-1][0] == "plan" and words[-1][2:] == ["--json", "--devices=8,16", "--controllers=2", "--steps=10"]
    assert load_config(words[-1][1], []).reward.function == "math_verify"
    finished.evaluate("held out$.jsonl", rollout={"stop": ["a: b"]}, samples=2, **{"data.answer_after": "####"})
    assert words[-1][:2] == ["eval", str(finished.path)] and words[-1][-2:] == ["--samples=2", "--json"]
    given = load_config(str(finished.path / "config.yaml"), words[-1][2:-2])
    assert (given.data.path, given.rollout.stop, given.data.answer_after) == ("held out$.jsonl", ["a: b"], "####")
    finished.resume(steps=9)
    again = load_config(words[-1][1], [])
    assert (again.resume, again.train.steps, Path(again.run.dir) / again.run.name) == ("auto", 9, finished.path)


# --- waiting for a command -------------------------------------------------------------------------------------------


def test_a_command_is_shown_and_its_errors_are_raised(capsys: pytest.CaptureFixture[str]) -> None:
    """Under a running event loop, as in a notebook, too."""

    async def cell() -> str:
        return waiting.run(["--version"]) + waiting.run(["--version"], answer=True)

    assert asyncio.run(cell()) == capsys.readouterr().out == f"yatt {yatt.__version__}\n"
    with pytest.raises(ConfigError) as error:
        waiting.run(["train", "nowhere.yaml"])
    assert str(error.value) == "cannot read the config nowhere.yaml: No such file or directory"
    assert error.value._render_traceback_() == [f"ConfigError: {error.value}"]
    with pytest.raises(ConfigError, match="the command was refused; what it said is above"):
        waiting.run(["train", "--nothing"])
    assert "No such option" in capsys.readouterr().out


CHILD = """
import signal, sys, time
def main():
    stops = []
    signal.signal(signal.SIGINT, lambda number, frame: stops.append(number))
    print("ready", flush=True)
    while not stops:
        time.sleep(0.01)
    print("saved", flush=True)
    sys.exit(130)
def killed():
    import os
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Where tests run in the background of a shell, it has interrupts ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_is_handed_on_and_the_end_awaited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "interrupted_child.py").write_text(CHILD)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(waiting, "MAIN", "interrupted_child:main")
    said: list[str] = []

    class Shown:
        def write(self, text: str) -> None:
            said.append(text)
            if text == "ready\n":
                os.kill(os.getpid(), signal.SIGINT)

        def flush(self) -> None:
            pass

    monkeypatch.setattr(sys, "stdout", Shown())
    with pytest.raises(KeyboardInterrupt):
        waiting.run([])
    assert said == ["ready\n", "saved\n"]


def test_a_command_that_is_killed_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "killed_child.py").write_text(CHILD)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(waiting, "MAIN", "killed_child:killed")
    with pytest.raises(yatt.YattError, match="yatt ended with signal SIGKILL; what it said is above"):
        waiting.run([])


def test_a_command_ends_with_who_waits_for_it(tmp_path: Path) -> None:
    """A kernel that is killed leaves no run behind."""
    code = """
        from yatt.faces import waiting
        waiting.run(["stay"])
    """
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "if 'stay' in sys.orig_argv:\n"
        "    import os, time, yatt.cli\n"
        "    def main(tell):\n"
        f"        open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\n"
        "        time.sleep(90)\n"
        "    yatt.cli.main = main\n"
    )
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{Path(yatt.__file__).parents[1]}"}
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], env=environment) as parent:
        deadline = time.monotonic() + 60
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            assert time.monotonic() < deadline and parent.poll() is None
            time.sleep(0.05)
        parent.kill()
    child = int((tmp_path / "pid").read_text())
    while Path(f"/proc/{child}").exists() and "Z" not in Path(f"/proc/{child}/stat").read_text().split(")")[1][:3]:
        assert time.monotonic() < deadline
        time.sleep(0.05)

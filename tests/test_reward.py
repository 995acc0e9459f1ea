"""Reward workers: judgements, failures as statuses, limits by kill, and no process left behind."""

import asyncio
import os
import subprocess
import sys
import textwrap
import time
from dataclasses import replace

import numpy as np
import psutil
import pytest

from yatt.config.schema import RewardConfig
from yatt.errors import BackendError, ConfigError
from yatt.reward.function import Item
from yatt.reward.mixed import check_rewards, mix, open_scorer
from yatt.reward.pool import FunctionScorer, check_reward
from yatt.types import Prompt, Score, Trajectory

REWARDS = """
import asyncio, os, sys, time, subprocess

def length(response): return len(response)
async def later(response, answer, **rest):
    await asyncio.sleep(0.001)
    return {"reward": response == answer, "size": len(response), "told": len(rest)}
def scaled(response, factor=1.0): return len(response) * factor
def by_text(response, metadata):
    if response == "hang": time.sleep(600)
    if response == "child": subprocess.Popen(["sleep", "613"]); time.sleep(600)
    if response == "exit": os._exit(3)
    if response == "quit": sys.exit(4)
    if response == "raise": raise KeyError("no such thing")
    if response == "print": print("loud" * 20000); os.write(1, b"raw"); sys.stdout.flush()
    if response == "close": os.close(0); os.close(1)
    if response == "cwd": os.chdir("/")
    return {"none": None, "nan": float("nan"), "inf": float("inf"), "text": "1.0", "bool": True,
            "nothing": {"a": 1}, "bad part": {"reward": 1, "a": "x"}, "list": [1], **metadata}.get(response, 1.0)
"""


def trajectory(text, answer="yes", metadata=None, sibling=0):
    prompt = Prompt(uid=1, text="say", tokens=np.arange(2), answer=answer, metadata=metadata or {})
    return Trajectory(
        prompt=prompt,
        sibling=sibling,
        tokens=np.arange(4),
        loss_mask=np.array([False, False, True, True]),
        rollout_logprobs=np.zeros(4, dtype=np.float32),
        spans=(),
        finish="stop",
        text=text,
    )


@pytest.fixture(autouse=True)
def nothing_left():
    yield
    left = psutil.Process().children(recursive=True)
    assert not [p for p in left if "yatt.reward.worker" in " ".join(p.cmdline())], left


@pytest.fixture
def rewards(tmp_path):
    path = tmp_path / "rewards.py"
    path.write_text(REWARDS)
    return path


def check_reference(reference, arguments=None):
    check_reward(RewardConfig(functions={"r": {"function": reference, "arguments": arguments or {}}}))


async def judge(texts, /, function, **settings):
    scorer = FunctionScorer(RewardConfig(**({"function": str(function)} if function else {}), **settings))
    await scorer.start()
    try:
        return await asyncio.wait_for(scorer.score([trajectory(text) for text in texts]), 60)
    finally:
        await scorer.close()


async def test_sync_and_async_functions(rewards):
    scores = await judge(["a", "bcd"], f"{rewards}:length")
    assert [(s.status, s.value, s.parts) for s in scores] == [
        ("ok", 1.0, {"reward": 1.0}),
        ("ok", 3.0, {"reward": 3.0}),
    ]
    scores = await judge(["yes", "no"], f"{rewards}:later")
    # **rest takes what is left of the four: prompt and metadata.
    assert scores[0].parts == {"reward": 1.0, "size": 3.0, "told": 2.0} and scores[0].value == 1.0
    assert scores[1].value == 0.0 and scores[1].status == "ok"


async def test_a_weighted_sum_with_arguments(rewards):
    functions = {
        "fit": {"function": f"{rewards}:later", "weight": 2.0},
        "long": {"function": f"{rewards}:scaled", "weight": -0.5, "arguments": {"factor": 10}},
    }
    (score,) = await judge(["yes"], None, functions=functions)
    # 2 * 1 - .5 * (3 * 10)
    assert score.value == 2.0 - 15.0
    assert score.parts == {"fit": 1.0, "fit.size": 3.0, "fit.told": 2.0, "long": 30.0}
    functions["bad"] = {"function": f"{rewards}:by_text"}
    (score,) = await judge(["none"], None, functions=functions)
    assert score.status == "failed" and score.value is None and score.detail.startswith("bad returned None")


async def test_what_is_no_reward_is_a_failure(rewards):
    wrong = {
        "none": "returned None, not a number",
        "nan": "returned nan; a reward must be finite",
        "inf": "returned inf",
        "text": "returned '1.0', not a number",
        "list": "returned [1]",
        "nothing": "without 'reward' (it has a)",
        "bad part": "returned a = 'x', not a number",
        "raise": "KeyError: 'no such thing' (rewards.py, line 14)",
        "quit": "SystemExit: 4",
    }
    scores = await judge([*wrong, "bool", "fine"], f"{rewards}:by_text")
    for score, (text, detail) in zip(scores, wrong.items(), strict=False):
        assert score.status == "failed" and score.value is None and detail in score.detail, text
    assert [s.value for s in scores[-2:]] == [1.0, 1.0]


@pytest.mark.parametrize("workers", [1, 2])
async def test_hanging_and_dying_items_leave_the_others_alone(rewards, workers):
    texts = ["a", "hang", "b", "exit", "print", "close", "cwd", "child", "c"] + ["d"] * 20
    scores = await judge(texts, f"{rewards}:by_text", timeout=2.5, workers=workers)  # within a minute, not 600 s each
    found = dict(zip(texts, scores, strict=True))
    assert found["hang"].status == found["child"].status == "timed_out"
    assert "2.5 s" in found["hang"].detail and found["hang"].value is None
    assert found["exit"].status == "failed" and "exit status 3" in found["exit"].detail
    assert [s.status for t, s in found.items() if t not in ("hang", "child", "exit")] == ["ok"] * 7
    children = [p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == ["sleep", "613"]]
    assert not psutil.wait_procs(children, timeout=30)[1]


async def test_the_limit_is_for_each_item(tmp_path):
    (tmp_path / "slow.py").write_text("import time\ndef f(response): time.sleep(0.25); return 1\n")
    # 12 items take 3 s on one worker: more than the limit, which each keeps, also where it stalls for a second.
    scores = await judge(["x"] * 12, f"{tmp_path}/slow.py:f", timeout=2.5)
    assert [s.status for s in scores] == ["ok"] * 12


async def test_a_busy_parent_does_not_time_items_out(rewards):
    scorer = FunctionScorer(RewardConfig(function=f"{rewards}:length", timeout=2.0))
    await scorer.start()
    scoring = asyncio.create_task(scorer.score([trajectory("ab")] * 8))
    await asyncio.sleep(0.001)
    time.sleep(2.5)  # the loop is kept from reading replies past the limit
    assert [s.status for s in await scoring] == ["ok"] * 8
    await scorer.close()


async def test_calls_may_overlap(rewards):
    scorer = FunctionScorer(RewardConfig(function=f"{rewards}:length", workers=2))
    await scorer.start()
    calls = [scorer.score([trajectory("x" * (i + j)) for j in range(30)]) for i in range(20)]
    for i, scores in enumerate(await asyncio.gather(*calls)):
        assert [s.value for s in scores] == [float(i + j) for j in range(30)]
    assert await scorer.score([]) == []
    await scorer.close()
    with pytest.raises(BackendError, match="closed"):
        await scorer.score([trajectory("x")])


async def test_closing_fails_what_is_under_way(rewards):
    scorer = FunctionScorer(RewardConfig(function=f"{rewards}:by_text", timeout=60))
    await scorer.start()
    scoring = asyncio.create_task(scorer.score([trajectory("hang"), trajectory("a")]))
    await asyncio.sleep(0.2)
    await scorer.close()
    with pytest.raises(BackendError, match="closed"):
        await scoring


async def test_workers_that_no_longer_start_end_the_scoring(tmp_path):
    """The file works once; after its first death it dies on import."""
    path = tmp_path / "once.py"
    path.write_text(
        "import os, pathlib\n"
        f"seen = pathlib.Path({str(tmp_path / 'seen')!r})\n"
        "if seen.exists(): os._exit(7)\n"
        "def f(response): seen.touch(); os._exit(1)\n"
    )
    scorer = FunctionScorer(RewardConfig(function=f"{path}:f"))
    await scorer.start()
    with pytest.raises(BackendError, match=r"once.py:f: its process died while starting \(exit status 7\), 3 times"):
        await asyncio.wait_for(scorer.score([trajectory("a"), trajectory("b"), trajectory("c")]), 30)
    await scorer.close()
    with pytest.raises(BackendError, match=r"once.py:f"):
        await FunctionScorer(RewardConfig(function=f"{path}:f")).start()


@pytest.mark.slow
def test_no_orphan_when_the_parent_is_killed(rewards):
    """Killed in the middle of a hanging item, a parent takes its worker along."""
    script = textwrap.dedent(f"""
        import asyncio, sys
        sys.path.insert(0, {os.path.dirname(__file__)!r})
        from test_reward import FunctionScorer, RewardConfig, trajectory
        async def main():
            scorer = FunctionScorer(RewardConfig(function={f"{rewards}:by_text"!r}, timeout=600))
            await scorer.start()
            print(scorer._workers[0]._process.pid, flush=True)
            await scorer.score([trajectory("hang")])
        asyncio.run(main())
    """)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=env) as parent:
        worker = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    psutil.wait_procs([worker], timeout=60)
    assert not worker.is_running()


def test_a_light_worker():
    """A worker imports no heavy library."""
    code = "import sys, yatt.reward.worker; print({'torch', 'ray', 'numpy', 'pydantic'} & set(sys.modules))"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.check_output([sys.executable, "-c", code], text=True, env=env).strip() == "set()"


@pytest.mark.parametrize(
    ("source", "name", "complaint"),
    [
        (
            "import nothing_like_it\ndef f(response): return 1",
            "f",
            "ModuleNotFoundError: No module named 'nothing_like_it'",
        ),
        ("def f(response) return 1", "f", "SyntaxError: .*line 1"),
        ("1 / 0", "f", r"does not import: ZeroDivisionError: division by zero \(mine.py, line 1\)"),
        ("raise SystemExit(5)", "f", "SystemExit: 5"),
        ("import os; os._exit(9)", "f", r"died while starting \(exit status 9\)"),
        ("def reward(response): return 1", "rewrd", r"has no 'rewrd' \(did you mean 'reward'\?\)"),
        ("f = 3", "f", "is a int, not a function"),
        ("def f(): return 1", "f", "takes none of prompt, response, answer, metadata"),
        ("def f(response, answr): return 1", "f", r"requires 'answr' \(did you mean 'answer'\?\)"),
        ("def f(response, /): return 1", "f", "takes none of"),
        ("def f(response): pass", "f", "returned None, not a number; return a number or a dict"),
        ("def f(response): return 'good'", "f", "returned 'good', not a number"),
        ("async def f(response): return float('nan')", "f", "returned nan; a reward must be finite"),
        ("import numpy as np\ndef f(response): return np.array([1.0, 0.0])", "f", r"returned array.*, not a number"),
        ("import numpy as np\ndef f(response): return np.array([1.0])", "f", r"returned array\(\[1.\]\), not a number"),
        ("import numpy as np\ndef f(response): return np.array('x')", "f", "returned array.*, not a number"),
        ("import numpy as np\ndef f(response): return {'reward': 1, 'a': np.zeros(3)}", "f", "returned a = array"),
        ("def f(response): return (1.0, 0.0)", "f", r"returned \(1.0, 0.0\), not a number"),
        ("def f(response): return 1j", "f", "returned 1j, not a number"),
        ("def f(response): return 10 ** 400", "f", "returned 1000.*; a reward must be finite"),
        ("def f(response): return 1e300", "f", "returned 1e.300; a reward must be finite, and a float32 must hold it"),
        ("from decimal import Decimal\ndef f(response): return Decimal('sNaN')", "f", "a reward must be finite"),
        ("def f(response): yield 1.0", "f", "returned <generator object f at .*, not a number"),
        ("async def f(response): yield 1.0", "f", "returned <async_generator object f at .*, not a number"),
        ("def f(response): return {'score': 1.0}", "f", r"a dict without 'reward' \(it has score\)"),
        ("def f(response): return {'reward': 1.0, 2: 3.0}", "f", "a dict with the key 2; keys are short, printable"),
        ("def f(response): return {'reward': 1.0, 'a\\n': 3.0}", "f", r"a dict with the key 'a\\n'"),
        ("def f(response): return {'reward': 1.0, 'a': {'b': 1}}", "f", "returned a = {'b': 1}, not a number"),
        ("def f(response): return {'reward': 1.0, 'a': None}", "f", "returned a = None, not a number"),
        (
            "class R:\n    def __repr__(self): raise self\ndef f(response): return R()",
            "f",
            "returned a R, not a number",
        ),
        ("class A:\n    def item(self): 1 / 0\ndef f(response): return A()", "f", "returned <.*, not a number"),
        (
            "def g(answer): return 1.0\ndef f(*args, **kwargs): return g(*args, **kwargs)",
            "f",
            r"cannot be called with prompt, response, answer, metadata: g\(\) got an unexpected keyword",
        ),
    ],
)
def test_the_check_names_what_is_wrong(tmp_path, source, name, complaint):
    (tmp_path / "mine.py").write_text(source)
    with pytest.raises(ConfigError, match=rf"^reward.function=.*mine.py:{name}.*{complaint}"):
        check_reward(RewardConfig(function=f"{tmp_path}/mine.py:{name}"))


NUMBERS = """
from decimal import Decimal
from fractions import Fraction
import numpy as np, torch
VALUES = {"bool": True, "int": 10**30, "decimal": Decimal("0.25"), "fraction": Fraction(1, 4), "np": np.float32(0.25),
          "np bool": np.bool_(True), "array": np.array(0.25), "int8": np.int8(-3), "tensor": torch.tensor(0.25),
          "grad": torch.tensor(0.25, requires_grad=True), "bf16": torch.tensor(0.25, dtype=torch.bfloat16)}
def f(response): return {"reward": VALUES[response], "x": VALUES[response]}
"""


async def test_every_single_number_is_a_reward(tmp_path):
    (tmp_path / "numbers_of_all_kinds.py").write_text(NUMBERS)
    wanted = {"bool": 1.0, "int": 1e30, "np bool": 1.0, "int8": -3.0}
    names = ["bool", "int", "decimal", "fraction", "np", "np bool", "array", "int8", "tensor", "grad", "bf16"]
    for name, score in zip(names, await judge(names, f"{tmp_path}/numbers_of_all_kinds.py:f"), strict=True):
        assert score.parts == dict.fromkeys(["reward", "x"], wanted.get(name, 0.25)), (name, score.detail)


async def test_weights_that_add_up_to_one_give_one(rewards):
    """0.7 + 0.2 + 0.1 is 0.9999999999999999 where each sum is rounded."""
    weights = (("a", 0.7), ("b", 0.2), ("c", 0.1))
    functions = {name: {"function": f"{rewards}:by_text", "weight": w} for name, w in weights}
    (score,) = await judge(["fine"], None, functions=functions)
    assert score.value == 1.0
    parts = [Score(status="ok", value=1.0, parts={name: 1.0}) for name in "abc"]
    assert mix([0.7, 0.2, 0.1], parts).value == 1.0
    assert mix([1e30, 1.0, -1e30], parts).value == 1.0


async def test_a_sum_that_no_float32_holds_and_a_part_told_twice_are_failures(rewards):
    functions = {"a": {"function": f"{rewards}:by_text", "weight": 1e39}}
    (score,) = await judge(["fine"], None, functions=functions)
    assert score.status == "failed" and score.detail.startswith("the weighted sum is 1e+39; a reward must be finite")
    one = Score(status="ok", value=1.0, parts={"a": 1.0})
    assert mix([1.0, 1.0], [one, one]).detail == "two rewards report a part 'a'; rename one"
    assert mix([1e38, 4e38], [one, replace(one, parts={})]).status == "failed"
    assert mix([-1.0, 0.0], [one, replace(one, parts={})]).value == -1.0


def test_a_part_with_the_name_of_its_function_is_refused(tmp_path):
    (tmp_path / "mine.py").write_text("def f(response): return {'reward': 1.0, 'right': 0.5}")
    with pytest.raises(ConfigError, match=r"right reports 'right', which is the name of another part; rename it"):
        check_reward(RewardConfig(functions={"right": {"function": f"{tmp_path}/mine.py:f"}}))


def test_the_check_passes_what_may_work(tmp_path, monkeypatch):
    (tmp_path / "neighbour.py").write_text("VALUE = 1.0")
    (tmp_path / "mine.py").write_text(
        "import neighbour\n"
        "def good(response): return neighbour.VALUE\n"
        "def picky(response): return 1 / len(response)\n"
        "def stuck(response):\n    while True: pass\n"
        "def wants(response, limit): return limit\n"
    )
    monkeypatch.chdir(tmp_path)
    check_reference("mine.py:good")
    check_reference("mine.py:picky")
    check_reference("mine.py:wants", {"limit": 3})
    check_reward(RewardConfig(function="mine.py:stuck", timeout=0.2))
    with pytest.raises(ConfigError, match=r"takes no argument 'limt' .did you mean 'limit'"):
        check_reference("mine.py:wants", {"limt": 3})


@pytest.mark.parametrize(
    ("reference", "complaint"),
    [
        ("exact_mtch", r"is not built in \(did you mean 'exact_match'\?\)"),
        ("/nowhere/mine.py:f", "there is no file /nowhere/mine.py"),
        ("no_such_package.rewards:f", "No module named 'no_such_package'"),
    ],
)
def test_the_check_of_a_wrong_reference(reference, complaint):
    with pytest.raises(ConfigError, match=complaint):
        check_reference(reference)


def test_one_way_to_name_rewards():
    with pytest.raises(ConfigError, match=r"reward.function is not set"):
        check_reward(RewardConfig())
    with pytest.raises(ConfigError, match="both set"):
        check_reward(RewardConfig(function="exact_match", functions={"a": {"function": "exact_match"}}))
    with pytest.raises(ConfigError, match=r"^reward.functions.a.function=nowhere"):
        check_reward(RewardConfig(functions={"a": {"function": "nowhere:f"}}))


async def test_a_run_without_a_reward_has_one_of_zero():
    check_rewards(RewardConfig(), Item("say", "", None, {}))
    scorer = open_scorer(RewardConfig())
    await scorer.start()
    assert await scorer.score([trajectory("a"), trajectory("b")]) == [Score(status="ok", value=0.0)] * 2
    await scorer.close()

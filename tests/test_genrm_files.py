"""The judged example's files: its judge's tokenizer and lessons, its settings, and what it measures and prints."""

from __future__ import annotations

import importlib.util
import json
import pickle
import random
import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from yatt.config.load import load_config
from yatt.config.rules import check
from yatt.faces.rundir import RunDirectory
from yatt.reward.function import Item, RewardFunction
from yatt.reward.judge import render
from yatt.reward.parsers import load_parser
from yatt.reward.pool import function_specs
from yatt.reward.worker import judge as score
from yatt.types import Prompt

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "examples" / "genrm"


def load(folder: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def modules():
    """The example's modules, which import each other and the quickstart's by name; forgotten afterwards."""
    before, path = dict(sys.modules), list(sys.path)
    try:
        found = {}
        for name in ("judge", "check_judge"):
            found[name] = sys.modules[name] = load(FOLDER, name)
        sys.modules["run"] = load(ROOT / "examples" / "quickstart", "run")
        found["run"] = load(FOLDER, "run")
        yield found
    finally:
        for name in ("judge", "check_judge", "prepare", "run"):
            sys.modules.pop(name, None)
            if name in before:
                sys.modules[name] = before[name]
        sys.path[:] = path


@pytest.fixture(scope="module")
def judge(modules):
    return modules["judge"]


@pytest.fixture(scope="module")
def work(judge, tmp_path_factory):
    out = tmp_path_factory.mktemp("genrm") / "work"
    assert judge.prepare(0, out)
    return out


@pytest.fixture(scope="module")
def words(work):
    return AutoTokenizer.from_pretrained(work / "model")


FILES = ("judge.jsonl", "judge_eval.jsonl")


@pytest.fixture(scope="module")
def lessons(work):
    return {name: [json.loads(line) for line in (work / name).read_text().splitlines()] for name in FILES}


# --- the judge's words -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "written"),
    [
        # 583 + 767: 3+7 = 10 carries 1; 8+6+1 = 15 carries 1; 5+7+1 = 13; so 1350.
        ("1350", "<think>3+7+0=10 0,8+6+1=15 5,5+7+1=13 13</think><correct>"),
        ("1340", "<think>3+7+0=10 0,8+6+1=15/4,5+7+1=13 13</think><wrong>"),
        ("350", "<think>3+7+0=10 0,8+6+1=15 5,5+7+1=13/3</think><wrong>"),
        ("11350", "<think>3+7+0=10 0,8+6+1=15 5,5+7+1=13/113</think><wrong>"),
        ("01350", "<think>3+7+0=10 0,8+6+1=15 5,5+7+1=13/013</think><wrong>"),
        ("50", "<think>3+7+0=10 0,8+6+1=15 5,5+7+1=13/</think><wrong>"),
        ("9", "<think>3+7+0=10/9,8+6+1=15/,5+7+1=13/</think><wrong>"),
    ],
)
def test_judgement_by_hand(judge, answer, written):
    assert judge.judgement(583, 767, answer) == written


def test_judgement_of_a_sum_with_three_digits(judge):
    # 100 + 205 = 305, no carries: the last column is compared with the one digit left.
    assert judge.judgement(100, 205, "305") == "<think>0+5+0=5 5,0+0+0=0 0,1+2+0=3 3</think><correct>"


def test_tokenizer_adds_the_verdicts_and_reads_all_the_policy_may_write(judge, words, work):
    text = judge.asked("583+767=", "<answer>1350</answer>") + judge.judgement(583, 767, "1350")
    tokens = words.encode(text)
    # Answer 1 + 4 + 1, "?" 1, question 8; <think> 1, columns 10 + 1 + 10 + 1 + 11, </think> 1, verdict 1.
    assert len(tokens) == 15 + 1 + 33 + 1 + 1
    assert words.decode([*tokens, words.eos_token_id], skip_special_tokens=True) == text
    assert len(words) == 66 and words.chat_template is None
    policys = judge.sums.CHARACTERS + "".join(judge.sums.TAGS)
    assert words.decode(words.encode(policys)) == policys
    model = AutoModelForCausalLM.from_pretrained(work / "model")
    # The quickstart's 525,376 parameters, and two more rows of the embedding.
    assert sum(p.numel() for p in model.parameters()) == 525_376 + 2 * 128


# --- the lessons -----------------------------------------------------------------------------------------------------

READ = re.compile(r"(?P<response>[\s\S]*)\?(?P<a>\d{3})\+(?P<b>\d{3})=")


def test_lessons_tell_the_truth(judge, lessons):
    reward = load(ROOT / "examples" / "quickstart", "reward")
    for row in (row for rows in lessons.values() for row in rows):
        read = READ.fullmatch(row["prompt"])
        a, b = int(read["a"]), int(read["b"])
        truth = reward.addition(judge.sums.prompt(a, b), read["response"], str(a + b), {})["reward"] == 1
        assert row["right"] is truth, row
        assert row["response"].endswith("<correct>" if truth else "<wrong>"), row
        assert ("/" in row["response"].replace("</think>", "")) <= (not truth), row


def test_lessons_are_varied(lessons):
    rows = lessons["judge.jsonl"]
    assert (len(rows), len(lessons["judge_eval.jsonl"])) == (30_000, 1_000)
    assert 0.48 < sum(row["right"] for row in rows) / len(rows) < 0.54
    worked = [row for row in rows if row["prompt"].startswith("<think>")]
    assert 0.38 < len(worked) / len(rows) < 0.42
    # Without one answer at the end: 6 % of the slips, which are 0.5 * (0.6 + 0.4 * 0.2) = 34 % of all.
    assert 0.015 < sum(row["response"] == "<wrong>" for row in rows) / len(rows) < 0.026
    # Wrong work that leads to the wrong answer: its digits are those of the columns.
    led = [row for row in worked if not row["right"] and consistent(row["prompt"])]
    assert len(led) > 0.6 * sum(not row["right"] for row in worked)


def consistent(text: str) -> bool:
    """Whether the answer of a worked response is what its own columns say."""
    totals = re.findall(r"=(\d+)(?=[,<])", text)
    answer = re.search(r"<answer>(\d+)</answer>", text)
    return len(totals) == 3 and answer is not None and answer[1] == totals[2] + totals[1][-1] + totals[0][-1]


def test_lessons_share_no_sum_with_the_policys_data(judge, lessons):
    def pair(text: str) -> tuple[int, ...]:
        return tuple(sorted(int(number) for number in re.search(r"(\d{3})\+(\d{3})=$", text).groups()))

    asked = [pair(row["prompt"]) for rows in lessons.values() for row in rows]
    policys = [pair(row["prompt"]) for rows in judge.sums.rows(0).values() for row in rows]
    assert len(set(asked)) == len(asked) == 31_000
    assert not set(asked) & set(policys)


def test_every_slip_is_wrong(judge):
    draw = random.Random(5)
    for kind in judge.SLIPS:
        for _ in range(200):
            a, b = draw.randint(100, 999), draw.randint(100, 999)
            answer = judge.slip(draw, a, b, kind)
            assert answer.isdigit() and answer != str(a + b), (kind, a, b)
    # 111 + 111 = 222: swapping its digits changes nothing, so it is another number near it.
    assert 162 <= int(judge.slip(draw, 111, 111, "swap")) <= 282


def test_same_seed_same_files(judge, work, tmp_path):
    def content(folder: Path) -> dict[str, bytes]:
        return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}

    assert not judge.prepare(0, work)
    assert judge.prepare(0, tmp_path / "again")
    assert content(tmp_path / "again") == content(work)
    assert judge.prepare(1, tmp_path / "again")
    assert content(tmp_path / "again")["judge.jsonl"] != (work / "judge.jsonl").read_bytes()


# --- the settings ----------------------------------------------------------------------------------------------------


def test_settings_pass_every_rule(judge, work, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    policy, rows = tmp_path / "policy", work / "judge_eval.jsonl"
    letters = judge.sums.tokenizer()
    letters.save_pretrained(policy)
    judge.sums.model(0, letters).save_pretrained(policy)
    places = [f"model.path={policy}", f"reward.models.judge.path={work / 'model'}"]
    data = [f"data.path={rows}", f"evaluate.path={rows}"]
    for mode in ("dynamic", "colocated", "weighted"):
        check(load_config("examples/genrm/dynamic.yaml", [*places, *data, f"placement.mode={mode}"]))
    split = ["placement.mode=partial", "placement.split={policy: 1, judge: 1}"]
    check(load_config("examples/genrm/dynamic.yaml", [*places, *data, *split]))
    check(load_config("examples/genrm/judge.yaml", [f"model.path={work / 'model'}", f"data.path={rows}"]))


def test_settings_fit_the_judges_lessons(judge, lessons, words, monkeypatch):
    monkeypatch.chdir(ROOT)
    sft, grpo = (load_config(f"examples/genrm/{name}", []) for name in ("judge.yaml", "dynamic.yaml"))
    served = grpo.reward.models["judge"]
    assert served.path == f"{sft.run.dir}/{sft.run.name}/model" and sft.checkpoint.export
    prompt = Prompt(uid=0, text="583+767=", tokens=np.arange(8), question="583+767=", answer="1350")
    assert render(served.template, prompt, "<answer>1350</answer>") == judge.asked("583+767=", "<answer>1350</answer>")
    parse = load_parser(served.parser, "parser")
    assert parse(judge.judgement(583, 767, "1350")) == 1 and parse(judge.judgement(583, 767, "1340")) == 0
    rows = lessons["judge_eval.jsonl"]
    reads, writes = (
        max(len(tokens) for tokens in words([r[k] for r in rows])["input_ids"]) for k in ("prompt", "response")
    )
    assert reads + writes + 1 <= sft.model.context_length and writes + 1 < served.max_tokens
    question = len(words.encode("?583+767="))
    assert grpo.rollout.max_tokens + question + served.max_tokens <= served.context_length
    # No lesson is taken twice, and no prompt of the policy is drawn twice.
    assert sft.train.steps * sft.train.batch_size <= judge.LESSONS
    assert grpo.train.steps * grpo.train.batch_size <= judge.sums.TRAIN_PROMPTS


def test_the_truth_is_recorded_and_counts_nothing(monkeypatch):
    monkeypatch.chdir(ROOT)
    (spec,) = function_specs(load_config(str(FOLDER / "dynamic.yaml"), []).reward)
    item = pickle.dumps(tuple(Item("583+767=", "<answer>1350</answer>", "1350", {})))
    assert score([RewardFunction(spec, None)], item) == ("ok", 0.0, {"worked": 0.0, "truth": 1.0}, "")


# --- what is measured and printed ------------------------------------------------------------------------------------


def test_balanced_accuracy_by_hand(modules):
    # 2 of 3 right ones called right, 1 of 2 wrong ones called wrong, and no verdict is a mistake.
    right, said = [True, True, True, False, False], [True, True, False, False, None]
    assert modules["check_judge"].balanced_accuracy(right, said) == pytest.approx((2 / 3 + 1 / 2) / 2)
    # Whoever says the same of all is at one half, however many are right.
    assert modules["check_judge"].balanced_accuracy(right, [True] * 5) == 0.5


def test_verdicts_are_those_of_the_model(modules, work, monkeypatch):
    # Untrained, it says neither: no verdict is not a guess.
    check_judge = modules["check_judge"]
    monkeypatch.setattr(check_judge, "BATCH", 2)
    texts = ["<answer>1350</answer>?583+767=", "?100+205=", "<answer>1</answer>?583+767="]
    said = list(check_judge.verdicts(work / "model", texts))
    assert len(said) == 3 and set(said) <= {True, False, None}


def test_run_shows_judge_beside_truth(modules, tmp_path, monkeypatch, capsys):
    run = modules["run"]
    monkeypatch.setattr(run.console, "width", 160)
    parts = [(0.25, 0.2), (0.75, 0.5)]
    rows = [
        {"step": s, "responses": 8, "parts": {"judge": j, "truth": t, "worked": 1.0}}
        for s, (j, t) in enumerate(parts, 1)
    ]
    for step, truth in ((0, 0.3), (2, 0.875)):
        of = {"truth": truth, "judge": truth + 0.1, "worked": 0.5}
        rows.append(
            {"step": step, "responses": 0, "evaluation": {"prompts": 200, "parts_greedy": of, "parts_sampled": of}}
        )
    run.show_steps(rows)
    run.show_evaluations(rows)
    shown = capsys.readouterr().out
    for cells in (
        ("25.0%", "20.0%"),
        ("75.0%", "50.0%"),
        ("truly right, greedy", "30.0%", "87.5%"),
        ("judge", "40.0%", "97.5%"),
    ):
        assert any(all(cell in line for cell in cells) for line in shown.splitlines()), cells
    monkeypatch.setattr(run, "GRPO", RunDirectory(tmp_path))
    with pytest.raises(SystemExit, match="holds 1 evaluations, not 2"):
        run.show_evaluations(rows[:3])

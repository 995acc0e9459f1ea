"""The chain's and the preferences' files: pairs and labels drawn from a policy, settings, and what is printed."""

from __future__ import annotations

import importlib.util
import json
import random
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Qwen3Config, Qwen3ForSequenceClassification

from yatt.config.load import load_config
from yatt.config.rules import check
from yatt.faces.rundir import RunDirectory

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
CHAIN, PREFERENCE = ROOT / "examples" / "chain", ROOT / "examples" / "preference"
BARE, WORKED = "<answer>1350</answer>", "<think>3+7+0=10,8+6+1=15,5+7+1=13</think><answer>1350</answer>"
WRONG_BARE, WRONG_WORKED = "<answer>1349</answer>", "<think>3+7+0=10,8+6+1=14,5+7+1=13</think><answer>1340</answer>"
ROW = {"prompt": "583+767=", "answer": "1350"}


def load(folder: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def modules():
    """The examples' modules, which import each other and the quickstart's by name; forgotten afterwards."""
    names = ("prepare", "reward", "run", "pairs", "check", "benchmarks.algorithms")
    before, path = dict(sys.modules), list(sys.path)
    for name in names:
        sys.modules.pop(name, None)
    try:
        found = {"pairs": load(CHAIN, "pairs")}
        sys.modules["pairs"] = found["pairs"]
        found["check"] = sys.modules["check"] = load(PREFERENCE, "check")
        found["run"], found["benchmark"] = load(CHAIN, "run"), importlib.import_module("benchmarks.algorithms")
        yield found
    finally:
        for name in names:
            sys.modules.pop(name, None)
            if name in before:
                sys.modules[name] = before[name]
        sys.path[:] = path


@pytest.fixture(scope="module")
def pairs(modules):
    return modules["pairs"]


@pytest.fixture(scope="module")
def policy(pairs, tmp_path_factory):
    """The quickstart's model before it learnt anything: it babbles."""
    folder = tmp_path_factory.mktemp("chain") / "model"
    words = pairs.sums.tokenizer()
    words.save_pretrained(folder)
    pairs.sums.model(0, words).save_pretrained(folder)
    return folder


# --- preferences -----------------------------------------------------------------------------------------------------


def test_each_answer_is_judged_once(pairs):
    found = pairs.judged(ROW, [WRONG_BARE, WORKED, "", WRONG_BARE, BARE])
    assert [(a["response"], a["right"], a["worked"]) for a in found] == [
        (WRONG_BARE, False, False),
        (WORKED, True, True),
        (BARE, True, False),
    ]


def test_pairs_of_one_style_come_first(pairs):
    answers = pairs.judged(ROW, [WORKED, WRONG_BARE, WRONG_WORKED])
    for seed in range(5):
        # Of both wrong answers only one is worked as the right one is.
        first, second = pairs.pairs(ROW["prompt"], answers, random.Random(seed))
        assert first == {"prompt": "583+767=", "chosen": WORKED, "rejected": WRONG_WORKED, "alike": True}
        assert second == {"prompt": "583+767=", "chosen": WORKED, "rejected": WRONG_BARE, "alike": False}


def test_no_pair_where_all_are_right_or_all_wrong(pairs):
    for some in ([WORKED, BARE], [WRONG_BARE, WRONG_WORKED], []):
        assert pairs.pairs(ROW["prompt"], pairs.judged(ROW, some), random.Random(0)) == []


def test_files_hold_out_the_first_prompts(pairs, monkeypatch):
    monkeypatch.setattr(pairs, "HELD_OUT", 1)
    other = {"prompt": "100+205=", "answer": "305"}
    drawn = iter([[BARE, WRONG_BARE], ["<answer>305</answer>", "<answer>306</answer>", "<answer>7</answer>"]])
    files = pairs.rows([ROW, other], drawn, seed=0)
    assert {name: len(lines) for name, lines in files.items()} == {
        "pairs.jsonl": 2,
        "labels.jsonl": 3,
        "pairs_eval.jsonl": 1,
        "labels_eval.jsonl": 2,
    }
    assert files["labels_eval.jsonl"] == [
        {"prompt": "583+767=", "response": BARE, "label": True},
        {"prompt": "583+767=", "response": WRONG_BARE, "label": False},
    ]
    assert {row["chosen"] for row in files["pairs.jsonl"]} == {"<answer>305</answer>"}
    assert {row["rejected"] for row in files["pairs.jsonl"]} == {"<answer>306</answer>", "<answer>7</answer>"}


def test_drawing_is_seeded_and_in_order(pairs, policy, monkeypatch):
    monkeypatch.setattr(pairs, "BATCH", 2)
    prompts = ["583+767=", "100+205=", "999+999="]

    def drawn(prompts, **how):
        return list(pairs.draw(policy, prompts, **{"samples": 2, "temperature": 1.0, "seed": 0} | how))

    first = drawn(prompts)
    assert [len(texts) for texts in first] == [2, 2, 2]
    assert drawn(prompts) == first and drawn(prompts, seed=1) != first
    greedy = drawn(prompts, samples=1, temperature=0.0)
    assert drawn(prompts[::-1], samples=1, temperature=0.0) == greedy[::-1]


def test_what_is_there_is_not_made_again(pairs, policy, tmp_path, monkeypatch):
    monkeypatch.setattr(pairs, "HELD_OUT", 1)
    pairs.sums.write_jsonl(tmp_path / "train.jsonl", [ROW] * 3)
    asked = []

    def draw(folder, prompts, **how):
        asked.append((folder, len(prompts)))
        return iter([[WORKED, WRONG_WORKED]] * len(prompts))

    monkeypatch.setattr(pairs, "draw", draw)
    out = tmp_path / "work"
    assert pairs.prepare(0, policy, tmp_path, out) and not pairs.prepare(0, policy, tmp_path, out)
    assert pairs.prepare(1, policy, tmp_path, out)
    assert asked == [(policy, 3)] * 2
    assert len((out / "pairs.jsonl").read_text().splitlines()) == 2
    # A half-written folder has no stamp.
    (out / "stamp.json").unlink()
    assert pairs.prepare(1, policy, tmp_path, out)


def test_without_a_policy_one_is_taught_beside_the_pairs(pairs, tmp_path, monkeypatch):
    commands = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pairs.quickstart, "yatt", lambda *words: commands.append(words))
    assert pairs.teach(3) == pairs.WORK / "sft" / "model"
    assert commands == [
        ("train", "examples/chain/sft.yaml", "run.dir=examples/chain/work", "run.name=sft", "run.seed=3")
    ]
    pairs.POLICY.mkdir(parents=True)
    assert pairs.teach(3) == pairs.POLICY and len(commands) == 1


# --- settings --------------------------------------------------------------------------------------------------------

SETTINGS = ("chain/sft", "chain/reward_model", "chain/ppo", "preference/dpo", "preference/kto")


@pytest.fixture
def folder(pairs, policy, tmp_path, monkeypatch):
    """A folder with all that the settings name, small."""
    monkeypatch.chdir(tmp_path)
    quickstart, work = Path("examples/quickstart"), Path("examples/chain/work")
    work.mkdir(parents=True)
    quickstart.mkdir()
    (quickstart / "reward.py").write_text((ROOT / quickstart / "reward.py").read_text())
    (quickstart / "work").mkdir()
    for name in ("train.jsonl", "eval.jsonl", "demonstrations.jsonl"):
        pairs.sums.write_jsonl(quickstart / "work" / name, [ROW | {"response": BARE}] * 4)
    for name, lines in pairs.rows([ROW] * 401, iter([[WORKED, WRONG_WORKED, BARE]] * 401), seed=0).items():
        pairs.sums.write_jsonl(work / name, lines)
    (quickstart / "work" / "model").symlink_to(policy)
    Path("runs/chain-sft").mkdir(parents=True)
    Path("runs/chain-sft/model").symlink_to(policy)
    classifier = Path("runs/chain-reward/model")
    words = AutoTokenizer.from_pretrained(policy)
    words.save_pretrained(classifier)
    Qwen3ForSequenceClassification(Qwen3Config.from_pretrained(policy, num_labels=1)).save_pretrained(classifier)
    return tmp_path


def settings(name):
    """An example's, of the copy in the working directory: its paths start there."""
    file = Path("examples", f"{name}.yaml")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text((ROOT / file).read_text())
    return load_config(str(file), [])


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_obey_the_rules(folder, name):
    assert check(settings(name)) == []


def test_settings_lead_from_one_to_the_next(folder, pairs):
    sft, scorer, ppo, dpo, kto = map(settings, SETTINGS)
    made = {f"{c.run.dir}/{c.run.name}/model" for c in (sft, scorer) if c.checkpoint.export}
    assert str(pairs.POLICY) in made
    assert {c.model.path for c in (scorer, ppo, dpo, kto)} == {str(pairs.POLICY)}
    judge = ppo.reward.models["preference"]
    assert judge.path == ppo.critic.path == f"{scorer.run.dir}/{scorer.run.name}/model" and judge.path in made
    assert ppo.reward.functions["truth"].weight == 0.0
    # What the reward model reads in PPO is what it was trained on: prompt, response and the end token.
    words = pairs.sums.tokenizer()
    read = words.encode(judge.template.format(question=ROW["prompt"], response=WORKED))
    assert read == [*words.encode(ROW["prompt"]), *words.encode(WORKED), words.eos_token_id]
    longest = len(words.encode(pairs.sums.prompt(999, 999))) + ppo.rollout.max_tokens + 1
    assert longest < min(judge.context_length, ppo.model.context_length, scorer.model.context_length)


# --- what is shown ---------------------------------------------------------------------------------------------------


def test_scores_are_read_at_the_end_token(modules, folder):
    run = modules["run"]
    texts = [ROW["prompt"] + WORKED, ROW["prompt"] + BARE]
    together = run.scores(Path("runs/chain-reward/model"), texts)
    model = AutoModelForSequenceClassification.from_pretrained("runs/chain-reward/model")
    words = AutoTokenizer.from_pretrained("runs/chain-reward/model")
    alone = [model(**words(t + "<eos>", return_tensors="pt", return_token_type_ids=False)).logits.item() for t in texts]
    assert together == pytest.approx(alone, abs=1e-5)


def test_pairs_are_shown_by_how_they_differ(modules, tmp_path, monkeypatch, capsys):
    run = modules["run"]
    both = [(WORKED, WRONG_WORKED, True), (BARE, WRONG_BARE, True), (WORKED, WRONG_BARE, False)]
    rows = [{"prompt": "583+767=", "chosen": c, "rejected": r, "alike": alike} for c, r, alike in both]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    # A scorer that only knows that work is good: it cannot tell two of one style apart.
    monkeypatch.setattr(run, "scores", lambda folder, texts: [float("<think>" in text) for text in texts])
    run.show_pairs(tmp_path, tmp_path / "pairs.jsonl")
    shown = capsys.readouterr().out
    assert "2 held-out pairs of one style: 0.0%" in shown and "1 held-out pairs of two styles: 100.0%" in shown


def test_run_shows_learned_reward_beside_truth(modules, tmp_path, monkeypatch, capsys):
    run = modules["run"]
    monkeypatch.setattr(run.console, "width", 160)
    rows = [
        {"step": step, "responses": 8, "explained_variance": 0.5, "parts": {"preference": p, "truth": t, "worked": 1.0}}
        for step, (p, t) in enumerate([(-1.25, 0.2), (2.5, 0.75)], 1)
    ]
    for step, truth in ((0, 0.3), (2, 0.875)):
        of = {"truth": truth, "preference": truth - 1, "worked": 0.5}
        rows.append(
            {"step": step, "responses": 0, "evaluation": {"prompts": 200, "parts_greedy": of, "parts_sampled": of}}
        )
    run.show_steps(rows)
    run.show_evaluations(rows)
    shown = capsys.readouterr().out
    for cells in (
        ("-1.25", "20.0%", "50%"),
        ("+2.50", "75.0%"),
        ("right, greedy", "30.0%", "87.5%"),
        ("learned reward", "-0.70", "-0.12"),
    ):
        assert any(all(cell in line for cell in cells) for line in shown.splitlines()), cells
    monkeypatch.setattr(run, "PPO", RunDirectory(tmp_path))
    with pytest.raises(SystemExit, match="holds 1 evaluations, not 2"):
        run.show_evaluations(rows[:3])


def test_check_counts_right_and_worked(modules, monkeypatch):
    checker = modules["check"]

    def draw(folder, prompts, *, samples, temperature, seed):
        return iter(
            [[WORKED]] * len(prompts) if not temperature else [[WORKED, BARE, WRONG_BARE, WRONG_WORKED]] * len(prompts)
        )

    monkeypatch.setattr(checker.pairs, "draw", draw)
    found = checker.check(Path("model"), [ROW, ROW | {"answer": "1"}])
    # Greedy: right for the first row only. Sampled: 2 of 4 for the first, 0 of 4 for the other; half are worked.
    assert found == {"right, greedy": 0.5, "worked, greedy": 1.0, "right, sampled": 0.25, "worked, sampled": 0.5}


# --- the benchmark of algorithms -------------------------------------------------------------------------------------


@pytest.fixture
def bench(modules, folder, monkeypatch):
    """One seed's folder with all that its runs start from, and the commands that were run, none of which is."""
    benchmark, own = modules["benchmark"], Path("runs/bench-algorithms/seed-3")
    for name, target in (("work", "examples/quickstart/work"), ("pairs", "examples/chain/work")):
        (own / name).parent.mkdir(parents=True, exist_ok=True)
        (own / name).symlink_to(folder / target)
    for name, target in (("sft", "chain-sft"), ("reward_model", "chain-reward")):
        (own / name).symlink_to(folder / "runs" / target)
    for file in ("quickstart/grpo.yaml", "chain/ppo.yaml", "preference/dpo.yaml", "preference/kto.yaml"):
        (folder / "examples" / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / "examples" / file).write_text((ROOT / "examples" / file).read_text())
    commands = []

    def run(command, **how):
        commands.append(command)
        config = load_config(command[4], command[5:])
        assert command[1:4] == ["-m", "yatt", "train"] and check(config) == []
        out = Path(config.run.dir) / config.run.name
        out.mkdir()
        (out / "metrics.jsonl").write_text(json.dumps({"step": config.train.steps}) + "\n")
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(benchmark.subprocess, "run", run)
    shares = {"right, greedy": 0.9, "worked, greedy": 1.0, "right, sampled": 0.8, "worked, sampled": 1.0}
    monkeypatch.setattr(benchmark.check, "check", lambda model, rows: shares)
    return benchmark.Bench(3, own, False), commands


def test_every_algorithm_of_the_benchmark_runs_once(modules, bench, capsys):
    one, commands = bench
    table = modules["benchmark"].ALGORITHMS
    results = [one.run(name, *table[name]) for name in table]
    assert all((result["greedy"], result["sampled"]) == (0.9, 0.8) for result in results)
    assert len(commands) == len(table) and all("run.seed=3" in command for command in commands)
    again = [one.run(name, *table[name]) for name in table]
    assert again == results and len(commands) == len(table)
    # Another setting, or other data, is another run.
    one.run("rloo", table["rloo"][0], ("algorithm.name=rloo", "train.steps=39"))
    assert len(commands) == len(table) + 1
    with open(one.folder / "pairs" / "pairs.jsonl", "a") as rows:
        rows.write(json.dumps({"prompt": "1+1=", "chosen": "2", "rejected": "3"}) + "\n")
    one.run("dpo", *table["dpo"])
    assert len(commands) == len(table) + 2
    capsys.readouterr()


def test_the_benchmarks_table_by_hand(modules):
    results = [{"steps": 40, "greedy": g, "sampled": g - 0.1, "seconds": 100.0} for g in (0.9, 1.0, 0.8)]
    line = modules["benchmark"].row("grpo", results)
    assert (line["greedy"], line["greedy_median"], line["greedy_least"]) == ([0.9, 1.0, 0.8], 0.9, 0.8)
    assert line["sampled_median"] == 0.8 and line["steps"] == 40

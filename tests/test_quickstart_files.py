"""The quickstart's files: model, tokenizer, data, reward, settings, and what it prints at the end."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from yatt.config.load import load_config
from yatt.faces.rundir import RunDirectory

FOLDER = Path(__file__).resolve().parents[1] / "examples" / "quickstart"
WORKED = "<think>3+7+0=10,8+6+1=15,5+7+1=13</think><answer>1350</answer>"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


prepare, reward = load("prepare"), load("reward")


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    out = tmp_path_factory.mktemp("quickstart") / "work"
    assert prepare.prepare(0, out)
    return out


@pytest.fixture(scope="module")
def words(work):
    return AutoTokenizer.from_pretrained(work / "model")


def rows(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_tokenizer_round_trip_adds_and_drops_nothing(words):
    tokens = words.encode("583+767=" + WORKED)
    # 8 of the question; "3+7+0=10,8+6+1=15,5+7+1=13" is 8 + 1 + 8 + 1 + 8 = 26; 4 tags; 4 digits of the answer.
    assert len(tokens) == 8 + 26 + 4 + 4
    assert words.decode(tokens) == "583+767=" + WORKED
    assert words.decode([*tokens, words.eos_token_id], skip_special_tokens=True) == "583+767=" + WORKED
    every = prepare.CHARACTERS + "".join(prepare.TAGS)
    assert len(words.encode(every)) == len(set(words.encode(every))) == 62 == len(words) - 2
    assert words.decode(words.encode(every)) == every
    assert words.chat_template is None


def test_tokenizer_refuses_what_it_cannot_say(words):
    with pytest.raises(Exception, match=r"UNK"):
        words.encode("583 Plus 767")


def test_model_is_the_one_described_and_starts_near_uniform(work, words):
    model = AutoModelForCausalLM.from_pretrained(work / "model")
    # Per layer: q, o 2 * 128*128; k, v 2 * 128*64; mlp 3 * 128*320; norms 2*128 + 2*32 = 172,352. Embedding 64*128.
    assert sum(p.numel() for p in model.parameters()) == 3 * 172_352 + 64 * 128 + 128 == 525_376
    tokens = torch.tensor([words.encode("583+767=" + WORKED)])
    assert model(tokens, labels=tokens).loss.item() == pytest.approx(torch.tensor(64.0).log().item(), abs=0.3)


def test_work_by_hand():
    # 583 + 767: 3+7 = 10 carries 1; 8+6+1 = 15 carries 1; 5+7+1 = 13; 1350.
    assert prepare.response(583, 767, worked=True) == WORKED
    assert prepare.response(583, 767, worked=False) == "<answer>1350</answer>"
    # 100 + 205: no carry, zeros kept. 999 + 999 = 1998.
    assert prepare.work(100, 205) == "0+5+0=5,0+0+0=0,1+2+0=3"
    assert prepare.work(999, 999) == "9+9+0=18,9+9+1=19,9+9+1=19"


@pytest.mark.parametrize(
    ("response", "right", "worked"),
    [
        (WORKED, 1, 1),
        ("<answer>1350</answer>", 1, 0),
        ("<answer>1349</answer>", 0, 0),
        ("<think>3+7+0=10</think><answer>1340</answer>", 0, 1),
        ("", 0, 0),
        ("1350", 0, 0),
        ("<answer></answer>", 0, 0),
        ("<answer>01350</answer>", 0, 0),
        ("<answer>1350", 0, 0),
        ("<answer>1350</answer>0", 0, 0),
        ("<answer>1349</answer><answer>1350</answer>", 0, 0),
        ("<think></think><answer>1350</answer>", 0, 0),
        ("<think>3+7<answer>1350</answer>", 0, 0),
        ("<think>3<think>4</think><answer>1350</answer>", 0, 0),
        ("x<answer>1350</answer>", 0, 0),
        ("<answer>1350</answer><think>3+7+0=10</think>", 0, 0),
        ("<answer>1350</answer>\n", 0, 0),
    ],
)
def test_reward(response, right, worked):
    assert reward.addition("583+767=", response, "1350", {}) == {"reward": right, "worked": worked}


def test_splits_share_no_sum_and_say_the_truth(work):
    evaluation, train, shown = (rows(work / f"{name}.jsonl") for name in ("eval", "train", "demonstrations"))
    assert (len(evaluation), len(train), len(shown)) == (200, 4_000, 20_000)
    questions = [row["prompt"] for row in (*evaluation, *train, *shown)]
    sums = [tuple(sorted(map(int, question.removesuffix("=").split("+")))) for question in questions]
    assert len(set(sums)) == len(sums)
    assert all(100 <= a <= 999 and 100 <= b <= 999 for a, b in sums)
    assert all(int(row["answer"]) == sum(pair) for row, pair in zip([*evaluation, *train], sums, strict=False))
    assert sum("<think>" in row["response"] for row in shown) == 8_000
    for row, pair in zip(shown, sums[-20_000:], strict=True):
        assert reward.addition(row["prompt"], row["response"], str(sum(pair)), {})["reward"] == 1


def test_same_seed_same_files_other_seed_other_files(work, tmp_path):
    def content(folder: Path) -> dict[str, bytes]:
        return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}

    before = content(work)
    assert not prepare.prepare(0, work)
    torch.rand(1)  # another state of the global generator must not matter
    assert prepare.prepare(0, tmp_path / "again")
    assert content(tmp_path / "again") == before
    assert prepare.prepare(1, tmp_path / "again")
    other = content(tmp_path / "again")
    changed = ("model/model.safetensors", "eval.jsonl", "train.jsonl", "demonstrations.jsonl")
    assert all(other[name] != before[name] for name in changed)


def test_settings_leave_room_for_the_longest_answer(words, monkeypatch):
    monkeypatch.chdir(FOLDER.parents[1])
    sft, grpo = (load_config(f"examples/quickstart/{name}", []) for name in ("sft.yaml", "grpo.yaml"))
    longest = len(words.encode(prepare.response(999, 999, worked=True))) + 1
    question = len(words.encode(prepare.prompt(999, 999)))
    assert (question, longest) == (8, 35)
    assert longest < grpo.rollout.max_tokens and question + grpo.rollout.max_tokens <= grpo.model.context_length
    assert question + longest <= sft.model.context_length
    assert grpo.model.path == f"{sft.run.dir}/{sft.run.name}/model" and sft.checkpoint.export
    # Drawing each prompt once at most: no epoch ends within the run.
    assert grpo.train.steps * grpo.train.batch_size <= prepare.TRAIN_PROMPTS


@pytest.fixture
def run(monkeypatch):
    monkeypatch.setitem(sys.modules, "prepare", prepare)
    return load("run")


def write_run(path: Path) -> None:
    (path / "samples").mkdir(parents=True)
    lines = []
    for step, greedy, sampled, worked, length in ((0, 0.01, 0.34, 0.39, 17.0), (40, 1.0, 0.9, 0.99, 33.0)):
        parts = {"parts_greedy": {"worked": worked}, "parts_sampled": {"worked": worked}}
        details = {"prompts": 200, "response_tokens_mean": length, **parts}
        scores = {"accuracy_greedy": greedy, "accuracy_sampled": sampled, "evaluation": details}
        lines.append({"step": step, "phases": {"rollout": 1.5 * step}, **scores})
        for controller in range(2):
            text = WORKED if step else f"<answer>{controller}</answer>"
            row = {"prompt": f"58{controller}+767=", "response": text, "reward": float(step > 0)}
            file = path / "samples" / f"eval-{step}.c{controller}.jsonl"
            file.write_text("".join(json.dumps(row | {"mode": mode}) + "\n" for mode in ("greedy", "sampled")))
    lines.insert(1, {"step": 1, "phases": {"rollout": 2.0}})
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_summary_shows_before_and_after(run, tmp_path, monkeypatch, capsys):
    write_run(tmp_path / "quickstart")
    monkeypatch.setattr(run, "GRPO", RunDirectory(tmp_path / "quickstart"))
    monkeypatch.setattr(run.console, "width", 160)
    before, after = run.outcomes()
    run.show_numbers(before, after)
    run.show_responses(before, after)
    run.show_times([("grpo", 61.2)])
    run.show_places()
    shown = capsys.readouterr().out
    for cells in (("greedy", "1.0%", "100.0%"), ("sampled", "34.0%", "90.0%"), ("tokens", "17.0", "33.0")):
        assert any(all(cell in line for cell in cells) for line in shown.splitlines()), cells
    for cells in (("580+767=", "<answer>0</answer>", WORKED), ("581+767=", "<answer>1</answer>", WORKED)):
        assert any(all(cell in line for cell in cells) for line in shown.splitlines()), cells
    assert "62 s" in shown  # rollout: 1.5 * 40 + 2 = 62
    assert "report.html" in shown and "yatt eval" in shown


def test_a_failing_stage_ends_the_quickstart_with_its_status(run, monkeypatch):
    monkeypatch.setattr(run.sys, "executable", "/bin/false")
    with pytest.raises(SystemExit) as ended:
        run.yatt("train")
    assert ended.value.code == 1

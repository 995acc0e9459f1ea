"""Whole runs on the real engines: Ray, vLLM and Megatron-Core at toy size, as a user starts them."""

import json
import os
import signal

import numpy as np
import pytest
import yaml
from real_runs import Driver, all_gone, descendants, make_place, rows, wait_for, yatt
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM

from yatt.faces.rundir import RunDirectory
from yatt.training.probe import TOKENS

pytestmark = pytest.mark.slow

REWARD = '''
import time

def even(prompt, response, answer, metadata):
    """The share of even digits: a random model earns some of it, and each response another amount."""
    if answer.endswith("7"):
        raise ValueError("no sevens")
    digits = [c for c in response if c.isdigit()]
    return {"reward": sum(int(c) % 2 == 0 for c in digits) / max(1, len(digits)), "digits": len(digits)}
'''

ROW_KEYS = {
    *("step", "reward_mean", "groups", "groups_dropped", "refills", "reward_failures", "response_tokens"),
    *("tokens_per_s", "rollout_gap_max", "kl", "entropy", "grad_norm", "loss", "policy_version", "phases"),
    *("controllers", "driver_payload_bytes"),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return make_place(tmp_path_factory.mktemp("run"), REWARD, "even", evaluate={"path": "work/eval.jsonl", "size": 8})


def uids(place, name, step):
    files = sorted((place / "runs" / name / "samples").glob(f"step-{step}.c*.jsonl"))
    return {json.loads(line)["uid"] for file in files for line in file.read_text().splitlines()}


def weights(place, folder):
    return load_file(place / folder / "model.safetensors")


@pytest.fixture(scope="module")
def straight(place):
    """Four steps without a stop, two controllers."""
    yatt(place, "train", "config.yaml", "run.name=straight", "checkpoint.export=true", "log.samples=8")
    return place


def test_a_run_leaves_everything_needed_to_understand_it(straight):
    run = straight / "runs" / "straight"
    table = rows(straight, "straight")
    assert [row["step"] for row in table] == [0, 1, 2, 3, 4]
    assert all(row.keys() >= ROW_KEYS for row in table)
    assert "accuracy_greedy" in table[0] and "accuracy_sampled" in table[-1]
    for row in table[1:]:
        assert row["controllers"] == 2 and row["policy_version"] == row["step"]
        assert row["groups"] + row["groups_dropped"] == 8 and row["reward_failures"] == 4 * row["groups_dropped"]
        assert 0 < row["rollout_gap_max"] <= 1e-4, "vLLM and Megatron-Core disagree about the same weights"
        assert row["driver_payload_bytes"] == 0
        assert row["grad_norm"] > 0 and row["entropy"] > 0
        assert {"rollout", "balance", "train", "sync"} <= row["phases"].keys()
    assert sum(row["reward_failures"] for row in table) > 0, "an answer that ends in 7 fails, as a status"
    assert "digits" in table[1]["parts"]
    for name in ("config.yaml", "timeline.json", "report.html", "checkpoints/step-4/complete.json", "tensorboard"):
        assert (run / name).exists(), name
    assert json.loads((run / "timeline.json").read_text())
    spans = RunDirectory(run).read_spans()
    for slot in (0, 1):
        done = {(span.role, span.name) for span in spans[3] if span.slots == (slot,)}
        assert done >= {("policy", "sample"), ("policy", "load"), ("trainer", "update"), ("trainer", "export")}
    assert sum(span.counts["requests"] for span in spans[3] if span.name == "sample") == 8 * 4 + 2 * TOKENS, (
        "and the probe's"
    )
    assert sum(span.counts["samples"] for span in spans[3] if span.name == "update") == table[3]["scored"]
    assert yaml.safe_load((run / "config.yaml").read_text())["rollout"]["temperature"] == 1.0


def test_weights_moved_and_transformers_loads_the_export(straight):
    before, after = weights(straight, "work/model"), weights(straight, "runs/straight/model")
    assert before.keys() == after.keys()
    assert any(not np.array_equal(before[name], after[name]) for name in before)
    yatt(straight, "export", "runs/straight", "out")
    exported = weights(straight, "out")
    assert all(np.array_equal(after[name], exported[name]) for name in after), "checkpoint and live weights differ"
    assert AutoModelForCausalLM.from_pretrained(straight / "out").config.model_type == "qwen3"


def test_a_run_resumed_by_one_controller_is_the_run_that_two_did_not_stop(straight):
    """What is drawn, and what is learnt of it, depends neither on a stop nor on the number of controllers."""
    words = ("train", "config.yaml", "run.name=resumed", "checkpoint.export=true", "log.samples=8")
    done = yatt(straight, *words, "cluster.controllers=1", "resume=runs/straight/checkpoints/step-2")
    assert "resumed after step 2" in done.stdout
    assert [row["step"] for row in rows(straight, "resumed")] == [3, 4]
    for step, one, two in zip((3, 4), rows(straight, "resumed"), rows(straight, "straight")[3:], strict=True):
        assert uids(straight, "resumed", step) == uids(straight, "straight", step)
        assert (one["controllers"], two["controllers"]) == (1, 2)
        for key in ("response_tokens", "reward_failures", "trained_tokens"):
            assert one[key] == two[key], key
        assert one["reward_mean"] == pytest.approx(two["reward_mean"], rel=1e-12)  # two add their sums
        for key in ("loss", "grad_norm", "entropy"):
            assert one[key] == pytest.approx(two[key], rel=1e-4, abs=1e-6), key
    one, other = weights(straight, "runs/straight/model"), weights(straight, "runs/resumed/model")
    for name in one:
        np.testing.assert_allclose(one[name], other[name], atol=1e-4, err_msg=name)
    assert "nothing to do" in yatt(straight, *words, "resume=auto").stdout


def test_eval_prints_pass_at_k(straight):
    done = yatt(
        straight, "eval", "runs/straight", "data.path=work/eval.jsonl", "evaluate.size=6", "--samples=2", "--json"
    )
    report = json.loads(done.stdout.strip().splitlines()[-1])
    assert report["step"] == 4 and report["prompts"] == 6
    assert set(report["pass_at_k"]) == {"1", "2"}
    assert set(report["intervals"]) == {"accuracy_greedy", "accuracy_sampled", "pass@1", "pass@2"}


def test_eval_of_what_learnt_from_pairs_finds_what_the_run_found(place):
    """The loss on held-out rows, with ranks and without engines."""
    config = yaml.safe_load((place / "config.yaml").read_text())
    for name in ("train", "eval"):
        prompts = [json.loads(line) for line in (place / "work" / f"{name}.jsonl").read_text().splitlines()[:24]]
        pairs = [{"prompt": row["prompt"], "chosen": row["answer"], "rejected": "7"} for row in prompts]
        (place / "work" / f"{name}-pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    changed = {
        "algorithm": {"name": "dpo", "precompute_reference": True},
        "evaluate": {"path": "work/eval-pairs.jsonl"},
    }
    changed["data"] = {"path": "work/train-pairs.jsonl"}
    changed["cluster"] = config["cluster"] | {"slots": 1, "controllers": 2}
    kept = {section: config[section] for section in ("model", "train", "checkpoint")}
    (place / "pairs.yaml").write_text(yaml.safe_dump(kept | changed))
    yatt(place, "train", "pairs.yaml", "run.name=pairs", "train.steps=2")
    first, *_, last = rows(place, "pairs")
    assert first["held_out_loss"] == pytest.approx(np.log(2)) and last["held_out_loss"] < first["held_out_loss"]
    report = json.loads(yatt(place, "eval", "runs/pairs", "--json").stdout.strip().splitlines()[-1])
    assert (report["step"], report["prompts"]) == (2, 24)
    assert report["loss"] == pytest.approx(last["held_out_loss"], rel=1e-6)
    assert report["pair_accuracy"] == last["held_out_pair_accuracy"]
    assert set(report["intervals"]) == {"pair_accuracy"}


def start_long_run(place, name, *more):
    words = (f"run.name={name}", "train.steps=1000", "evaluate.path=null", "evaluate.size=null", *more)
    driver = Driver(place, *words)
    before = driver.steps(name)
    wait_for(lambda: driver.ended() or driver.steps(name) > before, 600, "a step")
    assert not driver.ended(), driver.said()
    return driver, descendants(driver.pid)


def test_a_hangup_saves_and_a_killed_driver_takes_everything_with_it(place):
    driver, started = start_long_run(place, "interrupted")
    assert len(started) >= 6
    os.killpg(driver.pid, signal.SIGHUP)  # as where a terminal goes away
    driver.wait(timeout=400)
    output = driver.said()
    assert driver.returncode == 130, output
    assert "finishing the step under way" in output and "resume=auto" in output
    steps = [row["step"] for row in rows(place, "interrupted")]
    assert (place / "runs" / "interrupted" / "checkpoints" / f"step-{steps[-1]}" / "complete.json").exists()
    wait_for(lambda: all_gone(started), 200, "the processes of a stopped run to end")
    assert not [f for f in os.listdir("/dev/shm") if f.startswith(f"yatt-{driver.pid}")]

    driver, started = start_long_run(place, "interrupted", "resume=auto")
    assert f"resumed after step {steps[-1]}" in driver.said()
    table = RunDirectory(place / "runs" / "interrupted").read_metrics()  # its last line may be half-written
    assert [row["step"] for row in table][: len(steps) + 1] == [*steps, steps[-1] + 1]
    # Ray's own two agents notice by themselves, a minute or two later.
    ours = [p for p in started if not any("Agent" in word or "agent" in word for word in p.cmdline())]
    assert len(ours) >= 6
    driver.kill()
    driver.wait(timeout=30)
    wait_for(lambda: all_gone(ours), 200, "the processes of a killed driver to end")

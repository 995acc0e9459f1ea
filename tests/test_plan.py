"""`yatt plan`: what an estimate is made of, what a calibration finds, whether it predicts, and what is refused."""

import json
import math
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from statistics import mean

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yatt import cli
from yatt.config.facts import model_facts
from yatt.config.load import load_config
from yatt.errors import ConfigError
from yatt.faces.plan_words import remarks
from yatt.faces.rundir import RunDirectory
from yatt.models.facts import ModelFacts
from yatt.models.vision import VisionFacts
from yatt.placement.fit import least_squares
from yatt.simulation.calibrate import calibrate, lengths_of, workload
from yatt.simulation.calibrate_judged import calibrate_judged
from yatt.simulation.costs import (
    ControllerCosts,
    Costs,
    EngineCosts,
    JudgeCosts,
    Lengths,
    ScorerCosts,
    TrainerCosts,
    Workload,
    device,
    from_shape,
)
from yatt.simulation.simulate import simulate
from yatt.simulation.standing import costs_for, divided

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
RUN = ROOT / "tests/data/quickstart-run"
PAPER = "examples/plan/paper.yaml"
WORK = Workload(prompt_tokens=10, responses=(Lengths(median=100.0, p99=400.0),))
TINY = ModelFacts(
    hidden_size=4,
    intermediate_size=8,
    layers=2,
    heads=2,
    kv_heads=1,
    vocab_size=10,
    max_positions=64,
    embedding_rows=10,
    head_dim=2,
    tied=False,
    architecture="Qwen2ForCausalLM",
)


@pytest.fixture
def yatt(monkeypatch, capsys):
    """Runs a command line in the repository's root; returns its exit status, stdout, and the lines on stderr."""
    monkeypatch.chdir(ROOT)

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["yatt", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return ended.value.code or 0, out, err.splitlines()

    return run


@pytest.fixture(scope="module")
def calibrated():
    """The recorded run's settings and rows, without the row of step 0."""
    rows = RunDirectory(RUN).read_metrics()
    return load_config(str(RUN / "config.yaml"), []), [row for row in rows if row["step"] > 0]


# --- the estimate --------------------------------------------------------------------------------------------------


def test_parameters_by_hand():
    # q 4x4, k 4x2, v 4x2, o 4x4 = 48; MLP 3 x 4x8 = 96; two layers 288; embedding and head 2 x 10x4 = 80.
    assert TINY.parameters == 368
    assert replace(TINY, tied=True).parameters == 328
    assert replace(TINY, embedding_rows=12).parameters == 384


def test_the_examples_shape_is_a_7b():
    facts = model_facts(str(ROOT / "examples/plan/policy-7b"), weights=False)
    # Qwen2.5-7B has 7.62 billion parameters by its model card; norms and biases are left out.
    assert facts.parameters == pytest.approx(7.62e9, rel=2e-3)


def estimate(*words, facts=TINY):
    """An estimate for the paper's config with half of the memory and no tensor parallelism."""
    plain = ["rollout.engine_args.gpu_memory_utilization=0.5", "train.tp=1"]
    return from_shape(facts, load_config(str(ROOT / PAPER), [*plain, *words]), WORK)


def test_estimate_by_hand():
    costs = estimate("plan.device=H100", "train.tp=2")
    # 736 bytes of weights over 80 % of 3.35 TB/s, and 2 ms of launching; 2 x 368 FLOPs over half of 989 TFLOP/s.
    assert costs.engine.step == pytest.approx(2e-3 + 736 / (0.8 * 3.35e12))
    assert costs.engine.per_request == costs.engine.prefill == pytest.approx(736 / 494.5e12)
    # Keys and values of 2 layers x 1 head x 2 numbers x 2 bytes = 16 bytes a token; 40 GB less 4 GB hold 2.25e9.
    assert costs.engine.per_kv_token == pytest.approx(16 / (0.8 * 3.35e12))
    assert costs.engine.kv_tokens == pytest.approx(2.25e9)
    # Four passes of 736 FLOPs a token, over 40 % of two devices; attention 2 x 2 layers x width 4 a pass.
    assert costs.trainer.per_token == pytest.approx(4 * 736 / (0.8 * 989e12))
    assert costs.trainer.per_token_squared == pytest.approx(4 * 16 / (0.8 * 989e12))
    # 12 bytes a parameter, over two ranks, through half of 64 GB/s.
    assert costs.trainer.offload == costs.trainer.onload == pytest.approx(368 * 14 / 2 / 32e9)


def test_estimate_of_what_a_trainer_moves_by_hand():
    # Of the 368 parameters, float32 ones of 4 bytes are their own main weights: two moments of 4 beside them. An update
    # sums float32 gradients twice over 50 GB/s and goes through 12 bytes of a parameter.
    trainer = estimate("plan.device=H100", "model.dtype=float32").trainer
    assert trainer.offload == trainer.onload == pytest.approx(368 * 12 / 32e9)
    assert trainer.per_update == pytest.approx(368 * (8 / 50e9 + 12 / 3.35e12))
    # bfloat16, with a reference of 2 bytes and a critic that learns as the policy does.
    ppo = estimate("plan.device=H100", "algorithm.name=ppo", "algorithm.kl.coefficient=0.1").trainer
    assert ppo.offload == pytest.approx(368 * (3 * 2 + 2 * 12) / 32e9)
    assert ppo.per_update == pytest.approx(2 * 368 * (8 / 50e9 + 12 / 3.35e12))


def test_estimate_of_a_tower_by_hand():
    # Two images of 4 x 3 patches of 10 x 10 pixels: 2 x 2 x (5 x 12 + 3 x 144) = 1968 FLOPs a forward pass.
    tower = VisionFacts(parameters=100, patch=10, times=2, merge=2, deepstack=0, per_patch=5, per_pair=3)
    work = replace(WORK, images=2, image_pixels=1200)
    words = ["plan.device=H100", "train.tp=2", "rollout.engine_args.gpu_memory_utilization=0.5", "train.vision=trained"]
    costs = from_shape(replace(TINY, vision=tower), load_config(str(ROOT / PAPER), words), work)
    assert costs.engine.images == pytest.approx(1968 / 494.5e12)
    # Old log-probabilities, and an update of three passes; the tower is whole on each of the two devices.
    assert costs.trainer.images == pytest.approx(4 * 1968 / (0.4 * 989e12))
    assert costs.trainer.images_seen == pytest.approx(1968 / (0.4 * 989e12))
    frozen = from_shape(replace(TINY, vision=tower), load_config(str(ROOT / PAPER), words[:-1]), work)
    assert frozen.trainer.images == pytest.approx(2 * 1968 / (0.4 * 989e12))
    assert estimate("plan.device=H100").engine.images == 0


JUDGE = ["reward.models.j.path=x", "reward.models.j.template={response}", "reward.models.j.parser=number"]


def test_estimate_of_a_judge_by_hand():
    facts = replace(TINY, layers=4)  # twice the layers: 2 x 288 + 80 weights, and 32 bytes of keys and values a token
    words = [*JUDGE, "reward.models.j.max_tokens=200", "reward.models.j.engine_args={tensor_parallel_size: 2}"]
    config = load_config(str(ROOT / PAPER), [*words, "plan.device=H100"])
    judge = from_shape(TINY, config, WORK, {"j": facts}).judges["j"]
    assert judge.engine.step == pytest.approx(2e-3 + 2 * 656 / (0.8 * 3.35e12 * 2))
    assert judge.engine.per_kv_token == pytest.approx(32 / (0.8 * 3.35e12 * 2))
    assert judge.answers == (Lengths(median=50.0, p99=200.0),)
    # Its weights leave the device and come back: 656 bytes through half of 64 GB/s on each of two, beside 0.1 s.
    assert judge.engine.sleep == judge.engine.wake == pytest.approx(0.1 + 656 / 32e9)
    # A classifier gives its answer with the first token.
    config = load_config(str(ROOT / PAPER), ["reward.models.j.path=x", "reward.models.j.kind=classifier", *JUDGE[1:2]])
    assert from_shape(TINY, config, WORK, {"j": facts}).judges["j"].answers == (Lengths(median=1.0, p99=1.0),)


def test_no_room_for_a_judge():
    facts = model_facts(str(ROOT / "examples/plan/policy-7b"), weights=False)
    words = [*JUDGE, "plan.device=L40S", "reward.models.j.engine_args={gpu_memory_utilization: 0.3}"]
    with pytest.raises(ConfigError, match=r"no room for 15.2 GB .* in reward.models.j.engine_args"):
        from_shape(TINY, load_config(str(ROOT / PAPER), words), WORK, {"j": facts})


def test_estimate_of_other_layouts():
    plain, other = estimate(), estimate("algorithm.kl.coefficient=0.1", "model.dtype=float32")
    # A reference is a fifth pass; float32 runs at half the rate and reads twice the bytes.
    assert other.trainer.per_token == pytest.approx(2 * 5 / 4 * plain.trainer.per_token)
    assert other.engine.per_kv_token == pytest.approx(2 * plain.engine.per_kv_token)
    # Layers computed twice are a fifth pass too.
    twice = estimate("train.recompute=full")
    assert twice.trainer.per_token == pytest.approx(5 / 4 * plain.trainer.per_token)
    two = estimate("rollout.engine_args.tensor_parallel_size=2")
    assert two.engine.per_kv_token == pytest.approx(plain.engine.per_kv_token / 2)
    assert two.engine.kv_tokens == pytest.approx(2 * plain.engine.kv_tokens)


def test_no_room_for_a_cache():
    facts = model_facts(str(ROOT / "examples/plan/policy-7b"), weights=False)
    # 15.2 GB of weights and 4 GB of activations do not leave anything of 30 % of 48 GB = 14.4 GB.
    with pytest.raises(ConfigError, match=r"plan.device=L40S has 48 GB, of which an engine takes 30%.*15.2 GB"):
        estimate("plan.device=L40S", "rollout.engine_args.gpu_memory_utilization=0.3", facts=facts)


def test_unknown_device():
    with pytest.raises(ConfigError, match=r"plan\.device=h100-sxm is unknown; use H100"):
        device("h100-sxm")


def test_costs_survive_json():
    costs = estimate()
    assert Costs.from_json(json.loads(json.dumps(costs.to_json()))) == costs
    judged = replace(costs, judges={"j": JudgeCosts(engine=costs.engine, answers=WORK.responses)})
    assert Costs.from_json(json.loads(json.dumps(judged.to_json()))) == judged
    before = costs.to_json()
    del before["judges"]  # a file written before there were any
    assert Costs.from_json(before) == costs


@pytest.mark.parametrize(
    ("part", "key", "value", "message"),
    [
        ("engine", "step", -1.0, "engine.step: input should be greater"),
        ("engine", "kv_tokens", 0, "engine.kv_tokens: "),
        ("trainer", "per_token", "fast", "trainer.per_token: input should be a valid number"),
        ("workload", "responses", [], "workload.responses: "),
        ("controller", "link_bandwidth", math.inf, "controller.link_bandwidth: "),
    ],
)
def test_costs_refuse(part, key, value, message):
    values = estimate().to_json()
    values[part][key] = value
    with pytest.raises(ConfigError, match=message):
        Costs.from_json(values)


# --- the fit -------------------------------------------------------------------------------------------------------


def test_least_squares_by_hand():
    assert least_squares(np.array([[2.0, 1.0], [1.0, 2.0]]), np.array([3.0, 3.0])) == pytest.approx([1, 1])
    # Without the bound x = (11, -10). Clipping it would leave 11; the best with x2 = 0 is 1.
    assert least_squares(np.array([[1.0, 1.0], [0.0, 0.1]]), np.array([1.0, -1.0])) == pytest.approx([1, 0])
    assert least_squares(np.array([[1.0], [1.0]]), np.array([-1.0, -3.0])) == pytest.approx([0])


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5))
def test_least_squares_is_optimal(seed, size):
    """Karush-Kuhn-Tucker: no negative coefficient, no ascent at a positive one, no descent at a zero."""
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(12, size)), rng.normal(size=12)
    x = least_squares(a, b)
    gradient = a.T @ (b - a @ x)
    assert (x >= 0).all() and (gradient <= 1e-8).all() and np.abs(gradient[x > 0]).max(initial=0.0) <= 1e-8


def test_lengths_by_hand():
    # Of 100 responses the longest is at z = 2.3263, where only 1 % lie above: it is the 99th percentile.
    # sigma 0.5 about a median of 100: mean 100 exp(0.125) = 113.31, longest 100 exp(1.16317) = 320.01.
    row = {"response_length_mean": 113.3148, "longest_response": 320.0100, "responses": 100}
    assert lengths_of(row) == Lengths(median=pytest.approx(100, rel=1e-4), p99=pytest.approx(320.01, rel=1e-4))
    same = lengths_of({"response_length_mean": 7.0, "longest_response": 7, "responses": 8})
    assert (same.median, same.p99) == (pytest.approx(7), pytest.approx(7))


def planted(step, mean_length, longest, *, base=0.2):
    """A step of two engines and ranks: base + 0.01 s a decode step + 0.001 s a token of an engine's half; training
    0.5 s + 0.002 s a token of a rank's half."""
    responses, prompt = 8, 10
    tokens = responses * mean_length
    phases = {
        "rollout": base + 0.01 * longest + 0.001 * tokens / 2,
        "train": 0.5 + 0.002 * (tokens + responses * prompt) / 2,
        "sync": 0.03,
        "balance": 0.004,
        "report": 0.001,
    }
    counts = {"responses": responses, "response_tokens": tokens, "prompt_tokens": responses * prompt}
    lengths = {"response_length_mean": mean_length, "longest_response": longest}
    return {"step": step, "groups": 1, "groups_dropped": 0, "phases": phases, **counts, **lengths}


def test_a_planted_cost_is_found(calibrated):
    rows = [
        planted(step, mean_length, longest)
        for step, (mean_length, longest) in enumerate(
            [(9, 99), (10, 80), (30, 90), (50, 300), (20, 200), (40, 120), (60, 90)], start=1
        )
    ]
    rows[0]["phases"]["rollout"] = 100.0  # the first step warms up and does not count
    costs, fits = calibrate(calibrated[0], rows, source="planted", devices=2)
    engine, trainer = costs.engine, costs.trainer
    assert (engine.step, engine.per_request, engine.wake) == pytest.approx((0.01, 0.001, 0.2))
    assert (trainer.per_token, trainer.per_update) == pytest.approx((0.002, 0.5))
    assert (engine.load, costs.controller.per_step) == pytest.approx((0.03, 0.005))
    assert all(fit.residual < 1e-6 for fit in fits)


def test_what_does_not_vary_is_said(calibrated):
    rows = [planted(step, 30, 100, base=0.0) for step in range(1, 8)]
    costs, fits = calibrate(calibrated[0], rows, source="planted", devices=2)
    # 1 s of longest responses and 0.12 s of tokens: one number is seen, so each decode step takes 1.12 s / 100.
    assert costs.engine.step == pytest.approx(0.0112)
    assert fits[0].unidentified == ("sampled token", "KV token read", "fixed")


def test_workload_is_read_from_the_rows():
    rows = [planted(1, 10, 20) | {"groups_dropped": 3, "media_bytes": 4000}, planted(2, 30, 90)]
    work = workload(rows)
    assert (work.prompt_tokens, work.equal_groups, work.image_bytes) == (10, 3 / 5, 800)
    assert work.lengths(1) == lengths_of(rows[0]) and work.lengths(2) == work.lengths(9) == lengths_of(rows[1])


def test_conversations_are_read_from_the_rows_and_the_plan():
    rows = [
        {"conversations": 10, "turns": 30, "outside_seconds": 40.0, "responses": 10, "groups": 2, "groups_dropped": 0}
        | {"prompt_tokens": 100, "media_bytes": 0, "response_length_mean": 8.0, "longest_response": 9}
    ]
    work = workload(rows)
    assert work.turns == 3 and work.outside is not None  # 2 s in the mean, of 20 waits
    assert work.outside.median * math.exp(work.outside.sigma**2 / 2) == pytest.approx(2.0)
    assert work.outside.p99 == pytest.approx(4 * work.outside.median)

    def planned(*words):
        return costs_for(load_config("examples/plan/paper.yaml", list(words)), TINY).workload

    assert (planned().turns, planned().outside) == (1, None)
    talks = planned("plan.turns=3", "plan.tool_seconds=5", "plan.tool_tokens=7")
    assert (talks.turns, talks.outside, talks.outside_tokens) == (3, Lengths(median=5.0, p99=20.0), 7)
    played = planned("environment=calculator")
    assert (played.turns, played.outside, played.outside_tokens) == (2, Lengths(median=1.0, p99=4.0), 64)
    assert planned("environment=calculator", "plan.tool_seconds=0").outside is None


def judged_run(costs, mode="dynamic", devices=4):
    """A small simulated run with a judge: its config, its rows and its spans, as a run folder has them."""
    words = ["rollout.n=4", "rollout.max_tokens=1000", "train.batch_size=16", "train.tp=1", f"placement.mode={mode}"]
    words += ["reward.models.judge.engine_args.tensor_parallel_size=1", "reward.models.judge.max_tokens=80"]
    config = load_config(str(ROOT / PAPER), words)
    report = simulate(config, costs, devices=devices, controllers=2, steps=8, seed=1)
    rows = []
    for figures in report.steps:
        counts = figures.counts
        names = ("groups", "groups_dropped", "responses", "response_tokens", "prompt_tokens", "longest_response")
        row = {name: getattr(counts, name) for name in (*names, "media_bytes")}
        row |= {"step": figures.step, "phases": figures.phases}
        rows.append(row | {"response_length_mean": counts.response_tokens / counts.responses})
    return config, rows, {figures.step: figures.spans for figures in report.steps}, report


@pytest.fixture(scope="module")
def planted_costs():
    """Of a policy whose responses grow, and a judge."""
    engine = dict(per_kv_token=0.0, load=0.3, sleep=0.1, wake=0.2, max_running=8)
    growing = tuple(Lengths(median=40.0 * step, p99=120.0 * step) for step in (1, 1, 2, 3, 3))
    answers = (Lengths(median=30.0, p99=30.0),)
    return Costs(
        source="planted",
        engine=EngineCosts(step=0.01, per_request=0.002, prefill=1e-4, **engine),
        trainer=TrainerCosts(
            per_token=1e-3, per_token_squared=0.0, per_update=0.5, offload=0.05, onload=0.07, export=0.2
        ),
        scorer=ScorerCosts(seconds=0.0),
        controller=ControllerCosts(per_response=0.0, per_step=0.01, link_latency=0.0),
        workload=Workload(prompt_tokens=50, responses=growing),
        judges={
            "judge": JudgeCosts(
                engine=EngineCosts(step=0.02, per_request=0.001, prefill=2e-4, **engine),
                answers=answers,
                template_tokens=40,
            )
        },
    )


def test_planted_costs_of_a_judged_run_are_found(planted_costs):
    config, rows, spans, _ = judged_run(planted_costs)
    found, fits = calibrate_judged(config, rows, spans, source="x")
    assert [fit.phase for fit in fits] == ["policy, sampling", "judge, sampling", "update"]
    assert all(fit.residual < 0.01 for fit in fits)
    pairs = ((found.engine, planted_costs.engine), (found.judges["judge"].engine, planted_costs.judges["judge"].engine))
    for engine, planted in pairs:
        names = ("step", "per_request", "prefill")
        assert [getattr(engine, name) for name in names] == pytest.approx(
            [getattr(planted, name) for name in names], rel=0.02
        )
        assert (engine.sleep, engine.wake) == pytest.approx((0.1, 0.2))
    assert found.engine.load == pytest.approx(0.3)
    trainer = found.trainer
    assert (trainer.per_token, trainer.per_update) == pytest.approx((1e-3, 0.5), rel=0.05)
    assert (trainer.offload, trainer.onload, trainer.export) == pytest.approx((0.05, 0.07, 0.2))
    judge = found.judges["judge"]
    # A token that is being drawn when its request moves is drawn again, and counts twice.
    assert [answers.median for answers in judge.answers] == pytest.approx([30.0] * 8, rel=0.01)
    assert judge.template_tokens == pytest.approx(40, abs=1)


def test_one_slot_that_draws_is_taken_in_turns(planted_costs):
    *_, report = judged_run(planted_costs, "disaggregated", devices=2)
    assert len(report.steps) == 8 and report.steps[1].decisions[0].slots == {"policy": 1, "judge": 0}


@pytest.mark.parametrize("mode", ["colocated", "dynamic"])
def test_what_was_found_in_one_mode_predicts_another(planted_costs, mode):
    config, rows, spans, _ = judged_run(planted_costs, "partial")
    found, _ = calibrate_judged(config, rows, spans, source="x")
    *_, predicted = judged_run(found, mode)
    *_, real = judged_run(planted_costs, mode)
    for what in ("rollout", "train", "sync"):
        sums = [sum(step.phases[what] for step in report.steps) for report in (predicted, real)]
        assert sums[0] == pytest.approx(sums[1], rel=0.2)  # of the lengths it knows mean and longest alone


def test_a_timeline_without_decode_steps(planted_costs):
    config, rows, spans, _ = judged_run(planted_costs)
    older = {step: [replace(s, counts={"requests": 1, "tokens": 1}) for s in held] for step, held in spans.items()}
    with pytest.raises(ConfigError, match="x: the timeline has 0 stretches in which an engine of policy sampled"):
        calibrate_judged(config, rows, older, source="x")


def test_a_run_too_short(calibrated):
    with pytest.raises(ConfigError, match="3 steps with a rollout; a fit takes at least 5"):
        calibrate(calibrated[0], calibrated[1][:3], source="x", devices=2)


def test_the_quickstart_is_predicted(calibrated):
    """Costs from the first half of a recorded run, of 17 to 33 tokens a response, predict the second half's phases:
    lengths alone are taken from there."""
    config, rows = calibrated
    first, second = rows[:20], rows[20:]
    fitted, _ = calibrate(config, first, source="the first half", devices=2)
    report = simulate(
        config,
        replace(fitted, workload=workload(second)),
        devices=2,
        controllers=second[0]["controllers"],
        steps=len(second),
        seed=0,
    )
    tokens = mean(step.counts.response_tokens for step in report.steps)
    assert tokens == pytest.approx(mean(row["response_tokens"] for row in second), rel=0.05)
    for phase in ("rollout", "train", "sync"):
        measured = mean(row["phases"][phase] for row in second)
        assert mean(step.phases[phase] for step in report.steps) == pytest.approx(measured, rel=0.2), phase
    assert mean(step.seconds for step in report.steps) == pytest.approx(mean(r["seconds"] for r in second), rel=0.2)


# --- the command ---------------------------------------------------------------------------------------------------

SMALL = ("--steps", 1, "train.batch_size=16", "rollout.n=2")


def test_the_same_output_twice(yatt):
    status, once, _ = yatt("plan", PAPER, *SMALL, "--devices", 16, "--seed", 3, "--json")
    assert status == 0 and yatt("plan", PAPER, *SMALL, "--devices", 16, "--seed", 3, "--json")[1] == once
    assert yatt("plan", PAPER, *SMALL, "--devices", 16, "--seed", 4, "--json")[1] != once
    told = json.loads(once)
    assert (told["devices"], told["controllers"], told["seed"], told["steps"]) == (16, 8, 3, 1)
    assert told["costs"] == "estimate for H20" and told["calibrated"] is False
    assert list(told["modes"]) == ["colocated", "dynamic", "weighted", "partial", "disaggregated"]
    for name, mode in told["modes"].items():
        assert mode["rollout_s"] == mode["phases"]["rollout"] and 0 < mode["idle"] < 1, name
        assert sum(mode["split"].values()) == (8 if name == "disaggregated" else 16), name
    mode = told["modes"]["colocated"]
    assert mode["split"] == {"policy": 16, "judge": 0} and mode["moves"] >= 1
    seconds = mode["phases"].values()  # moves are within the rollout, and none of them
    assert sum(seconds) == pytest.approx(mode["step_s"], rel=0.05)
    # 8 blocks of two slots can be split between two roles in 7 ways.
    assert told["splits_tried"] == 7
    assert mode["controller_bytes"] > 2 * 1048576  # each of 8 controllers owns 2 prompts or more, an image each
    # By parameters: 7.6 to 14.8 thousand millions of 8 blocks of two slots, 2.7 blocks to 5.3.
    assert told["modes"]["weighted"]["split"] == {"policy": 6, "judge": 10}
    steps = {name: mode["step_s"] for name, mode in told["modes"].items()}
    assert steps[told["choice"]] <= 1.01 * min(steps.values())
    # An engine takes 60 % of 96 GB; while it is awake the rank has put everything away.
    memory = told["memory"]
    assert memory["slot"] == 96e9 and memory["judge"] == {"awake": pytest.approx(57.6e9), "asleep": 0.0}
    assert memory["trainer"]["asleep"] == 0.0


def test_the_fixed_split_is_the_best_of_those_tried(yatt):
    """Against every split given by hand, with a policy that has little and a judge that has much to do."""
    words = (*SMALL[2:], "plan.response_median=64", "plan.response_p99=128")
    told = json.loads(yatt("plan", PAPER, *SMALL[:2], "--devices", 8, "--seed", 3, *words, "--json")[1])
    config = load_config(PAPER, ["placement.mode=partial", *words])
    costs = costs_for(config, model_facts(config.model.path, weights=False))
    by_hand = {}
    for policy in (2, 4, 6):
        placement = config.placement.model_copy(update={"split": {"policy": policy, "judge": 8 - policy}})
        one = config.model_copy(update={"placement": placement})
        by_hand[policy] = simulate(one, costs, devices=8, controllers=8, steps=1, seed=3).steps[0].seconds
    found = told["modes"]["partial"]
    assert found["step_s"] == min(by_hand.values()) < max(by_hand.values()) and told["splits_tried"] == 3
    assert found["split"]["policy"] == min(by_hand, key=lambda policy: by_hand[policy])
    split = ", ".join(f"{role}: {slots}" for role, slots in found["split"].items())
    assert f"partial: placement.split={{{split}}} is the best of 3 splits simulated" in list(remarks(told, [told]))


def test_without_a_split_partial_has_a_good_one(yatt):
    """What a run takes without being told, on 32 blocks: as the simulation has it, close to the best of them."""
    config = load_config(str(ROOT / PAPER), ["placement.mode=partial", "train.batch_size=32", "rollout.n=4"])
    costs = costs_for(config, model_facts(config.model.path, weights=False))
    taken = divided(config, 64, costs).placement.split
    assert sum(taken.values()) == 64 and all(slots % 2 == 0 for slots in taken.values())

    def seconds(split):
        placement = config.placement.model_copy(update={"split": split})
        one = config.model_copy(update={"placement": placement})
        return simulate(one, costs, devices=64, controllers=8, steps=1, seed=0).steps[0].rollouts

    best = min(max(seconds({"policy": policy, "judge": 64 - policy})) for policy in (8, 12, 16, 20))
    assert max(seconds({})) == max(seconds(taken)) <= 1.15 * best
    # As the user gives one, it stays; and no other mode has one.
    given = config.placement.model_copy(update={"split": {"policy": 2, "judge": 62}})
    assert divided(config.model_copy(update={"placement": given}), 64, costs).placement == given
    dynamic = load_config(str(ROOT / PAPER), ["placement.mode=dynamic"])
    assert divided(dynamic, 64, costs) is dynamic


def test_without_judges_nothing_is_divided(yatt, tmp_path):
    page = tmp_path / "plan.html"
    words = ("reward.models.judge.path=null", "--devices", "16,32", "--controllers", 2, "--html", page)
    status, out, _ = yatt("plan", PAPER, *SMALL, *words)
    assert status == 0 and "estimate for H20" in out and "An estimate says what hardware could do" in out
    left_out = "weighted on 16, partial on 16, dynamic on 32, weighted on 32, partial on 32: reward.models has no judge"
    assert left_out in " ".join(out.split())
    rows = [row.replace("│", " ").split() for row in out.splitlines() if "colocated" in row and "│" in row]
    steps = {row[0]: float(row[2]) for row in rows}
    assert list(steps) == ["16", "32"] and steps["32"] < steps["16"]
    assert f"choose colocated on 32 devices: {steps['32']:.2f} s a step" in out
    html = page.read_text()
    assert "colocated on 16 devices" in html and "Seconds of a step" in html and "slot 15" in html
    table = [re.findall(r"<td>(.*?)</td>", row) for row in re.findall(r"<tr.*?</tr>", html.split("Modes</h3>")[1])]
    assert [[cell for cell in row[:7]] for row in table if row[1:2] == ["colocated"]] == [
        [row[0], row[1], f"{row[2]} s", f"{row[4]} s", f"{row[6]} s", row[8], row[9]] for row in rows
    ]
    assert html.count('class="chosen"') == 2 and "<h1>paper</h1>" in html and "GB of a slot" in html
    plans = json.loads(yatt("plan", PAPER, *SMALL, "reward.models.judge.path=null", "--devices", "16,32", "--json")[1])[
        "plans"
    ]
    assert [plan["devices"] for plan in plans] == [16, 32]
    assert set(plans[0]["left_out"]) == {"dynamic", "weighted", "partial"}


def test_calibrate_then_plan(yatt, tmp_path):
    run = shutil.copytree(RUN, tmp_path / "run")
    status, out, _ = yatt("plan", "--calibrate", run)
    assert status == 0 and "could not be told apart, and counted as 0: KV token read" in out and "s/decode step" in out
    told = run / "calibration.json"
    status, out, _ = yatt("plan", RUN / "config.yaml", f"plan.calibration={told}", "--steps", 2, "--json")
    assert status == 0
    plan = json.loads(out)
    # As run there, without the file of the model, the data or the reward being looked at.
    assert plan["calibrated"] and plan["costs"] == f"calibration of {run}" and plan["devices"] == 2
    assert yatt("plan", "--calibrate", run, "--out", tmp_path / "other.json")[0] == 0
    assert (tmp_path / "other.json").read_text() == told.read_text()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--devices", "0"], "--devices=0 must be whole numbers of at least 1, such as 64 or 16,64"),
        (["--devices", "8,x"], "--devices=8,x must be whole numbers"),
        (["--devices", "62"], "--devices=62 is not a multiple of train.tp=4 x train.pp=1; use 60 or 64"),
        (["--steps", "0"], "--steps=0 must be a whole number of at least 1"),
        (["--controllers", "0"], "--controllers=0 must be a whole number of at least 1"),
        (["--controllers", "999"], "train.batch_size=128 is under cluster.controllers=999"),
        (
            ["train.tp=3", "--devices", "63", "reward.models.judge.path=null"],
            "train.tp=3 does not divide 28 attention heads",
        ),
        (["plan.device=H-100"], "plan.device=H-100 is unknown; use H100"),
        (["plan.devise=H100"], "unknown setting plan.devise; did you mean plan.device"),
        (["plan.response_p99=9"], "plan.response_p99=9.0 is under plan.response_median=512.0; use at least 512.0"),
        (["plan.response_median=null"], "plan.response_p99=2048.0 needs plan.response_median; set both"),
        (["plan.prompt_tokens=4000"], "plan.prompt_tokens=4000 and rollout.max_tokens=2048 are together over"),
        (
            [
                "rollout.engine_args.tensor_parallel_size=4",
                "reward.models.judge.path=null",
                "train.tp=2",
                "--devices=62",
            ],
            "--devices=62 is not a multiple of rollout.engine_args.tensor",
        ),
        (
            ["rollout.engine_args.tensor_parallel_size=5", "reward.models.judge.path=null", "--devices=60"],
            "rollout.engine_args.tensor_parallel_size=5 does not divide 28 attention heads and 18944 MLP columns and",
        ),
        (
            ["rollout.engine_args.max_num_seqs=many"],
            "rollout.engine_args.max_num_seqs='many' must be a whole number above 0",
        ),
        (
            ["plan.tool_seconds=2"],
            "plan.tool_seconds=2.0 has no meaning for a single turn; set plan.turns to 2 or more",
        ),
        (
            ["environment=calculator", "environment.max_turns=3", "plan.turns=4"],
            "plan.turns=4 is over environment.max_turns=3; lower it to 3",
        ),
        (["plan.calibration=none.json"], "plan.calibration=none.json: No such file or directory; write one with"),
        (["plan.calibration=README.md"], "plan.calibration=README.md is not a calibration; write one with"),
        (["algorithm.name=sft"], "algorithm.name=sft has no rollout to plan"),
        (["model.path=nowhere"], "model.path=nowhere: no such folder"),
        (["--out", "x.json"], "--out=x.json is for --calibrate RUN"),
        (["--calibrate", "runs"], "yatt plan takes either a config to simulate or --calibrate RUN"),
    ],
)
def test_bad_input_is_a_line(yatt, words, line):
    status, out, lines = yatt("plan", PAPER, *words)
    assert (status, out) == (2, "") and len(lines) == 1, lines
    assert lines[0].startswith(f"yatt: {line}"), lines[0]


def test_bad_calibrations(yatt, tmp_path):
    assert yatt("plan", "--calibrate", tmp_path)[2] == [
        f"yatt: {tmp_path} is not a run folder: it has no config.yaml; name one that `yatt train` made"
    ]
    assert yatt("plan", "--calibrate", RUN, "--out", tmp_path / "c.json")[0] == 0
    file = tmp_path / "c.json"
    status, _, lines = yatt("plan", PAPER, f"plan.calibration={file}")
    assert (status, len(lines)) == (2, 1)
    assert f"plan.calibration={file} was measured with train.tp=1, not 4; write one" in lines[0]
    content = json.loads(file.read_text())
    content["costs"]["engine"]["step"] = None
    file.write_text(json.dumps(content))
    status, _, lines = yatt("plan", RUN / "config.yaml", f"plan.calibration={file}")
    assert (
        status == 2
        and f"plan.calibration={file} is not a calibration: engine.step: input should be a valid number" in lines[0]
    )

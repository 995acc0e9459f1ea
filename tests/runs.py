"""Run folders that look like real ones, made from a formula: for tests of what is read from them."""

import json
import math
import random
from dataclasses import replace
from functools import partial
from pathlib import Path

import yaml

from yatt.config.algorithms import RECIPES
from yatt.faces.metrics import first_row, metrics_row
from yatt.faces.rundir import RunDirectory
from yatt.faces.timeline import mark
from yatt.histogram import histogram
from yatt.reports import Decision, EvaluationReport, PhaseSpan, RolloutCounts, SourceReport, StepReport, UpdateReport

HTML = "\u2028<script>document.title='broken'</script> & \"quotes\" </pre>"


def fake_run(
    path: Path,
    *,
    steps: int,
    algorithm: str = "grpo",
    every: int = 0,
    failures: bool = False,
    judged: bool = False,
    by: str | None = None,
) -> RunDirectory:
    """A run of `steps` steps that learns, evaluated before the first, every `every` and after the last (sft: never);
    with `judged`, a judge has a share of four slots, which grows within each step; `by` has accuracies by source."""
    run, rng = RunDirectory(path).create(), random.Random(steps)
    offline, evaluates = not RECIPES[algorithm].reinforces, algorithm != "sft"
    told = partial(_pairs_evaluation if offline else _evaluation, by=by)
    config = {
        "run": {"name": path.name, "seed": 0}, "model": {"path": "models/adder"}, "rollout": {"engine": "vllm"},
        "algorithm": {"name": algorithm}, "train": {"steps": steps}, "cluster": {"slots": 2},
    }  # fmt: skip
    run.config.write_text(yaml.safe_dump(config))
    if evaluates:
        run.append_metrics(first_row(told(0.0), controllers=2, phases={"evaluate": 2.0}))
    if not offline:
        _samples(run, "eval-0", 0.0, rng)
    lines, now = [], 1_000_000.0
    for step in range(1, steps + 1):
        done = 1 / (1 + math.exp(-10 * (step / steps - 0.45)))
        evaluated = evaluates and (step == steps or (every and step % every == 0))
        report = _offline_report(step, steps, rng) if offline else _rl_report(step, steps, done, rng, failures)
        report = _judged(report, now, done) if judged else report
        report = replace(report, update=replace(report.update, numbers=_numbers(algorithm, done, rng)))
        lines.append(json.dumps(metrics_row(report, evaluation=told(done) if evaluated else None)))
        if not offline and steps <= 100:
            happened = judged_spans if judged else spans
            run.append_spans(step, [*happened(now, report.phases, report.counts), *map(mark, report.decisions)])
            now += report.seconds + 0.05 + 2.0 * evaluated
        if not offline and step in (1, steps):
            _samples(run, f"step-{step}", done, rng)
            _samples(run, f"eval-{step}", done, rng)
    with open(run.metrics, "a") as out:
        out.write("\n".join(lines) + "\n")
    return run


def spans(start, phases, counts, slots=2):
    """What two controllers, and an engine and a rank on each slot, do in a colocated step: slot 1 samples for 0.9 of
    the rollout, slot 0 for 0.8 of it; ranks update for 0.8 of the training."""
    found, at = [], {}
    for name, seconds in phases.items():
        at[name] = start
        for actor in ("controller 0", "controller 1"):
            found.append(PhaseSpan(name=name, actor=actor, start=start, stop=start + seconds))
        start += seconds

    def add(actor, role, slot, name, phase, begin, end, **numbers):
        times = {"start": at[phase] + begin * phases[phase], "stop": at[phase] + end * phases[phase]}
        found.append(PhaseSpan(name=name, actor=f"{actor} {slot}", role=role, slots=(slot,), counts=numbers, **times))

    for slot in range(slots):
        requests, tokens = counts.responses // slots, counts.response_tokens // slots
        add("generator", "policy", slot, "wake", "rollout", 0.0, 0.05)
        add(
            "generator",
            "policy",
            slot,
            "sample",
            "rollout",
            0.05,
            0.85 + 0.1 * (slot % 2),
            requests=requests,
            tokens=tokens,
        )
        add("generator", "policy", slot, "sleep", "train", 0.0, 0.05)
        add("rank", "trainer", slot, "onload", "train", 0.05, 0.1)
        add("rank", "trainer", slot, "update", "train", 0.15, 0.95, samples=requests, tokens=tokens)
        add("rank", "trainer", slot, "export", "sync", 0.0, 0.4)
        add("generator", "policy", slot, "load", "sync", 0.4, 0.9)
    return found


def judged_spans(start, phases, counts):
    """Four slots, each with an engine of the policy, one of a judge, and a rank. Slot 3 judges from the start, slot 2
    from two thirds of the rollout on."""
    found = [s for s in spans(start, phases, counts, slots=4) if s.name not in ("sample", "wake")]
    until = {0: (0.0, 0.9), 1: (0.0, 0.8), 2: (0.0, 0.66), 3: (0.0, 0.0)}
    for slot, (begin, end) in until.items():
        policy = {"actor": f"generator {slot}", "role": "policy", "slots": (slot,)}
        judge = {"actor": f"judge {slot}", "role": "judge", "slots": (slot,)}
        length, switch = phases["rollout"], max(0.02, end)
        times = [("sample", policy, begin, end)] if end else []
        if slot > 1:
            times += [("sleep", policy, end, end + 0.02), ("wake", judge, switch, switch + 0.02)]
            times += [("sample", judge, switch + 0.04, 0.97)]
        for name, whose, a, b in times:
            numbers = {"requests": counts.responses // 4} if name == "sample" else {}
            times_of = {"start": start + a * length, "stop": start + b * length}
            found.append(PhaseSpan(name=name, counts=numbers, **times_of, **whose))
    return found


def _judged(report, now, done):
    """Its decisions: every fifth step begins with two slots for the judge, and moves none."""
    counts, even = report.counts, report.step % 5 == 0
    parts = {
        "judge": (0.4 + 0.5 * done) * counts.scored, "truth": counts.reward_sum,
        "judge.judgements": float(counts.scored), "judge.unparsed": 0.02 * counts.scored,
    }  # fmt: skip
    split = {"policy": 2, "judge": 2} if even else {"policy": 3, "judge": 1}
    words = f"policy {split['policy']}, judge {split['judge']}"
    text = f"start with {words}: 384 responses of 17 tokens at 812 tokens/s, 384 judgements of 40 at 950; 1.05 s"
    decisions = [Decision(at=now, text=text, slots=split)]
    if not even:
        text = "3 + 1 -> policy 2, judge 2: 61 responses left, 180 judgements wait; 0.41 s in place of 0.62 s"
        at = now + 0.66 * report.phases["rollout"]
        decisions.append(Decision(at=at, text=text, slots={"policy": 2, "judge": 2}))
    counts = replace(counts, part_sums=parts, part_counts=dict.fromkeys(parts, counts.scored))
    return replace(report, counts=counts, decisions=tuple(decisions))


def _rl_report(step, steps, done, rng, failures):
    responses = 384
    right = (0.33 + 0.6 * done) * responses
    lengths = 17 + 16 * done + rng.random()
    rollout, train = 0.6 + 0.5 * done + 0.1 * rng.random(), 0.5 + 0.2 * done + 0.05 * rng.random()
    counts = RolloutCounts(
        groups=48, groups_dropped=int(20 * done * rng.random()), refills=int(12 * done * rng.random()),
        reward_failures=int(failures and step % 7 == 0) * 3, responses=responses, scored=responses,
        truncated=int(4 * rng.random()), response_tokens=int(lengths * responses), prompt_tokens=3000,
        reward_sum=right, reward_deviations=right * (1 - right / responses),
        longest_response=int(lengths + 12 + 8 * rng.random()),
        part_sums={"correct": right, "worked": (0.39 + 0.6 * done) * responses},
        part_counts={"correct": responses, "worked": responses},
        response_lengths=histogram(int(lengths) + k for k in range(-9, 10)),
    )  # fmt: skip
    update = UpdateReport(
        loss=0.02 * rng.gauss(0, 1), grad_norm=0.6 + 0.3 * rng.random(), learning_rate=3e-4 * min(1, step / 3),
        entropy=0.5 - 0.35 * done, kl=3e-7 * rng.random(), clip_fraction=0.01 * rng.random(),
        rollout_gap_max=10 ** rng.uniform(-5.6, -4.6), trained_tokens=int(lengths * responses),
        skipped_updates=int(failures and step == 5),
    )  # fmt: skip
    phases = {"rollout": rollout, "balance": 0.01, "train": train, "sync": 0.05, "report": 0.004}
    return StepReport(
        step=step, epoch=step / steps, policy_version=step, controllers=2, counts=counts, update=update,
        phases=phases, spans=(), seconds=sum(phases.values()),
    )  # fmt: skip


def _numbers(algorithm, done, rng):
    """What only this algorithm tells."""
    if algorithm == "ppo":
        return {
            "critic_loss": 0.25 * (1.1 - done) + 0.01 * rng.random(), "value_clip_fraction": 0.02 * rng.random(),
            "explained_variance": -0.4 + 1.2 * done, "return_mean": done, "kl_coefficient": 0.05 + 0.1 * done,
            "kl_reward": 0.01 * done, "corrected": 0.003 * rng.random(), "correction_weight": 1 - 0.01 * rng.random(),
        }  # fmt: skip
    if algorithm == "dpo":
        gap = 0.2 + done + 0.1 * rng.random()
        ordered = min(1.0, 0.5 + 0.45 * done + 0.05 * rng.random())
        return {"pair_accuracy": ordered, "chosen_reward": 0.3 * gap, "rejected_reward": -0.7 * gap}
    return {}


def _offline_report(step, steps, rng):
    update = UpdateReport(
        loss=0.35 + 2.5 * math.exp(-6 * step / steps) + 0.03 * rng.random(), grad_norm=0.5 + rng.random(),
        learning_rate=3e-3 * (1 + math.cos(math.pi * step / steps)) / 2, trained_tokens=1500,
    )  # fmt: skip
    phases = {"data": 0.01, "balance": 0.005, "train": 0.12 + 0.02 * rng.random()}
    return StepReport(
        step=step, epoch=0.2 * step / steps, policy_version=step, controllers=2, counts=None, update=update,
        phases=phases, spans=(), seconds=sum(phases.values()),
    )  # fmt: skip


def _evaluation(done, by):
    greedy, sampled = 0.02 + 0.98 * done, 0.34 + 0.56 * done
    easy, hard = min(1.0, 1.2 * greedy), 0.8 * greedy
    sources = {
        name: SourceReport(
            prompts=100, accuracy_greedy=share, accuracy_sampled=0.9 * share,
            intervals={"accuracy_greedy": _around(share), "accuracy_sampled": _around(0.9 * share)},
        )
        for name, share in {"easy": easy, HTML: hard}.items()
    }  # fmt: skip
    return EvaluationReport(
        prompts=200, accuracy_greedy=greedy, accuracy_sampled=sampled,
        pass_at_k={1: sampled, 4: 0.6 + 0.39 * done}, parts_greedy={"worked": 0.1 + 0.9 * done},
        parts_sampled={"worked": 0.39 + 0.6 * done}, response_tokens_mean=17 + 16 * done,
        intervals={"accuracy_greedy": _around(greedy), "accuracy_sampled": _around(sampled)},
        sources=sources if by else {},
    )  # fmt: skip


def _pairs_evaluation(done, by):
    ordered = 0.5 + 0.42 * done
    return EvaluationReport(
        prompts=300, accuracy_greedy=None, accuracy_sampled=None, loss=0.69 - 0.4 * done, pair_accuracy=ordered,
        intervals={"pair_accuracy": _around(ordered)},
    )  # fmt: skip


def _around(share):
    return max(0.0, share - 0.06), min(1.0, share + 0.05)


def _samples(run, stem, done, rng):
    step = int(stem.split("-")[1])
    for controller in range(2):
        with open(run.samples / f"{stem}.c{controller}.jsonl", "w", encoding="utf-8") as out:
            for i in range(4):
                uid = 2 * i + controller + (0 if stem.startswith("eval") else 48 * step)
                a, b = 300 + 37 * uid % 600, 200 + 53 * uid % 700
                worked = f"<think>{a % 10}+{b % 10}+0={a % 10 + b % 10},...</think>" if done > 0.5 else ""
                right = done > 0.5 or i == 3
                line = {
                    "step": step, "uid": uid, "sibling": 0, "prompt": f"{a}+{b}=", "answer": str(a + b),
                    "response": f"{worked}<answer>{a + b if right else a + b - 10}</answer>{HTML if i == 1 else ''}",
                    "reward": float(right), "parts": {"worked": float(bool(worked))}, "status": "ok",
                    "finish": "stop", "response_tokens": 40 if worked else 6, "mode": "greedy",
                }  # fmt: skip
                if i == 2 and not stem.startswith("eval"):
                    line |= {
                        "reward": None,
                        "status": "timed_out",
                        "parts": {},
                        "finish": "length",
                        "detail": "after 10 s",
                    }
                out.write(json.dumps(line, ensure_ascii=False) + "\n")

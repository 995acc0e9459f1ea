"""What one step of a trainer does: losses, several updates, odd shares, bad numbers. Megatron-Core and a double of a
backend, transformers' model with torch's AdamW, are held to the same."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from tests.megatron_cases import OPTIMIZER, Reference, config, denominator, hf_logprobs, make_samples, shares, worst
from tests.megatron_pool import play
from tests.tiny_models import save_tiny
from yatt.config.schema import OptimizerConfig
from yatt.training.schedule import learning_rate
from yatt.types import Denominator, Sample, Share

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny(tmp_path_factory.mktemp("model"), "qwen3", spread=2.0)


@pytest.fixture(params=["megatron", "fsdp", "plain"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def with_algorithm(base: dict[str, Any], **algorithm: Any) -> dict[str, Any]:
    return {**base, "algorithm": {**base["algorithm"], **algorithm}}


def step_of(*updates: list[Sample]) -> list[list[Share]]:
    """One controller, one replica, one micro-batch per update."""
    parts = tuple((tuple(samples),) for samples in updates)
    return [
        [
            Share(
                step=0,
                rank=0,
                controller=0,
                senders=(0,),
                updates=parts,
                denominators=tuple(denominator(u) for u in updates),
            )
        ]
    ]


def mask_of(sample: Sample) -> torch.Tensor:
    mask = torch.from_numpy(sample.loss_mask.copy())
    mask[0] = False
    return mask


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return all(np.array_equal(one[name], other[name]) for name in one)


def test_weights_do_not_depend_on_controllers_nor_on_the_run(folder: str, backend: str) -> None:
    samples = make_samples(0, 12)
    found = [
        play(2, config(folder), [("update", shares(samples, 2, 2, controllers)), ("export",)], backend=backend)[0]
        for controllers in (1, 2, 3, 1)
    ]
    for report, weights in found[1:]:
        assert (report.loss, report.grad_norm, report.entropy) == (
            found[0][0].loss,
            found[0][0].grad_norm,
            found[0][0].entropy,
        )
        assert same(weights, found[0][1])


def test_every_rank_reports_the_same_and_knows_its_place(folder: str) -> None:
    script = [("coordinates",), ("update", shares(make_samples(0), 2)), ("export",)]
    results = play(4, config(folder, tp=2), script)
    # Tensor-parallel neighbours first, then replicas.
    assert [r[0] for r in results] == [(0, 2), (0, 2), (1, 2), (1, 2)]
    reports = [replace(r[1], seconds={}) for r in results]
    assert all(report == reports[0] for report in reports)
    assert all(same(r[2], results[0][2]) for r in results)
    stages = play(2, config(folder, pp=2), [("coordinates",)])
    assert [r[0] for r in stages] == [(0, 1), (0, 1)]


def test_micro_batches_change_nothing(folder: str, backend: str) -> None:
    samples = make_samples(1, 9)
    (one, whole), *others = (
        play(1, config(folder), [("update", shares(samples, 1, count)), ("export",)], backend=backend)[0]
        for count in (1, 3, 9)
    )
    for report, weights in others:
        assert worst(weights, whole) <= 1e-5
        assert report.loss == pytest.approx(one.loss, abs=1e-6)
        assert report.entropy == pytest.approx(one.entropy, abs=1e-6)


def test_sft_matches_cross_entropy(folder: str, backend: str) -> None:
    samples = [replace(s, rollout_logprobs=None) for s in make_samples(2)]
    setting = with_algorithm(config(folder), name="sft")
    report, weights = play(2, setting, [("update", shares(samples, 2)), ("export",)], backend=backend)[0]
    reference = Reference(folder)
    loss, entropy, count = torch.zeros(()), 0.0, 0
    for s in samples:
        tokens = torch.from_numpy(s.tokens.astype(np.int64))
        # The temperature of the rollout is no matter of SFT.
        logits = reference.model(tokens[None]).logits[0]
        targets = tokens.clone()
        targets[~mask_of(s)] = -100
        loss = loss + torch.nn.functional.cross_entropy(logits[:-1], targets[1:], reduction="sum")
        entropy += torch.distributions.Categorical(logits=logits[:-1]).entropy()[mask_of(s)[1:]].sum().item()
        count += int(mask_of(s).sum())
    (loss / count).backward()
    torch.nn.utils.clip_grad_norm_(reference.model.parameters(), 1.0)
    for group in reference.optimizer.param_groups:
        group["lr"] = 5e-4
    reference.optimizer.step()
    assert report.loss == pytest.approx(loss.item() / count, abs=1e-5)
    assert report.entropy == pytest.approx(entropy / count, abs=1e-5)
    assert (report.kl, report.rollout_gap_max) == (0.0, 0.0)
    assert worst(weights, reference.weights()) <= 1e-5


def reference_step(folder: str, reference_folder: str, updates: list[list[Sample]]) -> dict[str, Any]:
    """PPO, clips .05 and .1, sequence means, 0.3 x k2 to the reference: two updates from one set of old logprobs."""
    policy, fixed = Reference(folder), Reference(reference_folder)
    with torch.no_grad():
        old = [[hf_logprobs(policy.model, s, 0.7) for s in u] for u in updates]
        ref = [[hf_logprobs(fixed.model, s, 0.7) for s in u] for u in updates]
    losses, clipped, tokens, kl_ref = [], 0, 0, 0.0
    for samples, old_columns, ref_columns, rate in zip(updates, old, ref, (5e-4, 1e-3), strict=True):
        policy.optimizer.zero_grad()
        total = torch.zeros(())
        for s, o, r in zip(samples, old_columns, ref_columns, strict=True):
            mask = mask_of(s)
            logprobs = hf_logprobs(policy.model, s, 0.7)[mask]
            ratio = (logprobs - o[mask]).exp()
            surrogate = torch.minimum(ratio * s.advantage, ratio.clamp(0.95, 1.1) * s.advantage)
            total = total + (-surrogate + 0.3 * (logprobs - r[mask]) ** 2 / 2).mean() / len(samples)
            clipped += int((ratio * s.advantage > ratio.clamp(0.95, 1.1) * s.advantage).sum())
            tokens += int(mask.sum())
            d = r[mask] - logprobs.detach()
            kl_ref += float((d.exp() - d - 1).sum())
        total.backward()
        torch.nn.utils.clip_grad_norm_(policy.model.parameters(), 1.0)
        for group in policy.optimizer.param_groups:
            group["lr"] = rate
        policy.optimizer.step()
        losses.append(total.item())
    every = [pair for u, columns in zip(updates, old, strict=True) for pair in zip(u, columns, strict=True)]
    gaps = [o[mask_of(s)].abs() for s, o in every]
    return {
        "loss": sum(losses) / 2,
        "clip_fraction": clipped / tokens,
        "kl_ref": kl_ref / tokens,
        # The samples say that the sampler gave every token logprob 0.
        "gap_mean": float(torch.cat(gaps).mean()),
        "fresh": torch.cat([o[10:][mask_of(s)[10:]].abs() for s, o in every]),
        "advantage_abs": sum(abs(s.advantage) * int(mask_of(s).sum()) for s, _ in every) / tokens,
        "weights": policy.weights(),
    }


@pytest.mark.parametrize(
    ("backend", "world", "train"),
    [
        ("megatron", 1, {}),
        ("megatron", 2, {"pp": 2}),
        ("megatron", 4, {"tp": 2, "pp": 2}),
        ("fsdp", 1, {}),
        ("plain", 1, {}),
    ],
)
def test_two_updates_keep_the_old_logprobs(
    folder: str, tmp_path_factory: pytest.TempPathFactory, backend: str, world: int, train: dict[str, Any]
) -> None:
    other = save_tiny(tmp_path_factory.mktemp("reference"), "qwen3", spread=2.0, seed=1)
    # From its tenth token on, a sample was drawn by the policy as it is.
    updates = [[replace(s, fresh=10) for s in make_samples(seed, 6) if mask_of(s).any()] for seed in (3, 4)]
    base = config(folder, updates_per_step=2, **train)
    base["model"]["reference"] = other
    base["train"] = {**base["train"], "steps": 5}
    setting = with_algorithm(
        base,
        clip_low=0.05,
        clip_high=0.1,
        aggregate="sequence_mean",
        kl={"coefficient": 0.3, "kind": "k2"},
    )
    report, weights = play(world, setting, [("update", step_of(*updates)), ("export",)], backend=backend)[0]
    expected = reference_step(folder, other, updates)
    assert report.loss == pytest.approx(expected["loss"], abs=1e-5)
    assert report.clip_fraction == pytest.approx(expected["clip_fraction"], abs=1e-9) and report.clip_fraction > 0
    assert report.kl_ref == pytest.approx(expected["kl_ref"], rel=1e-4)
    assert report.rollout_gap_mean == pytest.approx(expected["gap_mean"], rel=1e-5)
    assert report.fresh_gap_mean == pytest.approx(float(expected["fresh"].mean()), rel=1e-5)
    assert report.fresh_tokens == len(expected["fresh"]) > 0
    assert report.numbers["advantage_abs"] == pytest.approx(expected["advantage_abs"], rel=1e-6)
    assert worst(weights, expected["weights"]) <= 1e-5
    parts = {"pack", "reference", "old_logprobs", "advantages", "forward_backward", "optimizer"}
    assert set(report.seconds) == parts


@pytest.mark.parametrize(
    ("backend", "world", "train"),
    [
        ("megatron", 2, {}),
        ("megatron", 4, {"pp": 2}),
        ("megatron", 4, {"tp": 2, "sequence_parallel": True}),
        ("fsdp", 2, {}),
        ("plain", 2, {}),
    ],
)
def test_a_replica_may_have_nothing(folder: str, backend: str, world: int, train: dict[str, Any]) -> None:
    samples = make_samples(5, 4)
    total = denominator(samples)
    both = (tuple(samples[:2]), tuple(samples[2:]))
    full, none = (
        Share(step=0, rank=0, controller=0, senders=(0,), updates=(u,), denominators=(total,)) for u in (both, ((), ()))
    )
    expected, weights = play(1, config(folder), [("update", [[full]]), ("export",)], backend=backend)[0]
    for by_replica in ([[full], [none]], [[none], [full]]):
        report, found = play(world, config(folder, **train), [("update", by_replica), ("export",)], backend=backend)[0]
        assert report.loss == pytest.approx(expected.loss, abs=1e-6)
        assert report.trained_tokens == total.tokens
        assert worst(found, weights) <= 1e-6


def test_an_update_without_samples_is_no_update(folder: str, backend: str) -> None:
    samples, nothing = make_samples(6), Denominator(tokens=0, sequences=0)
    empty = Share(step=0, rank=0, controller=0, senders=(0,), updates=(((),),), denominators=(nothing,))
    half = Share(
        step=0,
        rank=0,
        controller=0,
        senders=(0,),
        updates=(((),), (tuple(samples),)),
        denominators=(nothing, denominator(samples)),
    )
    script = [("export",), ("update", [[empty]]), ("export",), ("update", [[half]])]
    before, report, after, second = play(1, config(folder), script, backend=backend)[0]
    assert same(before, after)
    assert (report.trained_tokens, report.loss, report.grad_norm, report.skipped_updates) == (0, 0.0, 0.0, 0)
    # It takes no place in the schedule: this is still the first rate of the warm-up.
    assert second.learning_rate == pytest.approx(5e-4)
    assert second.trained_tokens == denominator(samples).tokens


def test_a_gradient_that_is_not_finite_is_dropped(folder: str, backend: str) -> None:
    good = make_samples(7, 6)
    bad = [replace(good[0], advantage=math.inf), *good[1:]]
    script = [("export",), ("update", shares(bad, 2)), ("export",), ("update", shares(good, 2)), ("export",)]
    before, report, after, later, end = play(2, config(folder), script, backend=backend)[0]
    assert report.skipped_updates == 1 and math.isnan(report.grad_norm)
    assert same(before, after)
    assert later.skipped_updates == 0 and math.isfinite(later.grad_norm)
    assert not same(after, end) and all(np.isfinite(w).all() for w in end.values())


def test_shares_of_different_shapes_are_refused(folder: str, backend: str) -> None:
    first = shares(make_samples(8), 1, 2)[0][0]
    second = replace(shares(make_samples(8), 1, 3)[0][0], controller=1)
    kind, name, message = play(1, config(folder), [("update", [[first, second]])], backend=backend)[0][-1]
    assert (kind, name) == ("error", "BackendError")
    assert "controllers [0, 1] differ in shape" in message


def test_bfloat16_trains(folder: str) -> None:
    setting = config(folder)
    setting["model"]["dtype"] = "bfloat16"
    samples = Reference(folder).annotate(make_samples(9))
    script = [("export",), *[("update", shares(samples, 2))] * 3, ("export",)]
    before, first, *_, last, after = play(2, setting, script)[0]
    # bfloat16 has 8 bits: logits around 10 are off by some hundredths.
    assert 0 < first.rollout_gap_max < 0.5
    assert first.grad_norm == pytest.approx(play(2, config(folder), script)[0][1].grad_norm, rel=0.1)
    assert last.kl > first.kl and not same(before, after)


def test_ranks_that_do_not_make_replicas_are_refused(folder: str) -> None:
    message = "train.tp=2 x train.pp=1 does not divide 1 ranks; use cluster.slots=2"
    assert play(1, config(folder, tp=2), [])[0] == [("error", "ConfigError", message)]


def test_a_folder_without_a_model_is_refused(tmp_path: Any) -> None:
    kind, name, message = play(1, config(str(tmp_path)), [])[0][-1]
    assert (kind, name) == ("error", "ConfigError") and "it has no readable config.json" in message


def test_the_schedule_by_hand() -> None:
    def rates(**settings: Any) -> list[float]:
        made = OptimizerConfig(learning_rate=1.0, min_learning_rate=0.2, warmup_steps=2, **settings)
        return [learning_rate(made, update, 6) for update in range(6)]

    assert rates() == [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]
    # Four updates after the warm-up: 1 - 0.8 x (0, 1/4, 2/4, 3/4).
    assert rates(schedule="linear") == pytest.approx([0.5, 1.0, 1.0, 0.8, 0.6, 0.4])
    # 0.2 + 0.8 x (1 + cos(pi x)) / 2 at x = 0, 1/4, 1/2, 3/4; cos(pi / 4) = 0.70711.
    assert rates(schedule="cosine") == pytest.approx([0.5, 1.0, 1.0, 0.882843, 0.6, 0.317157], abs=1e-6)
    assert learning_rate(OptimizerConfig(**OPTIMIZER), 99, 10) == pytest.approx(1e-4)


def test_a_truncated_distribution_is_not_compared_with_the_whole_one(folder: str) -> None:
    base = config(folder)
    base["rollout"] = {**base["rollout"], "top_p": 0.9}
    report = play(1, base, [("update", shares(make_samples(0), 1))])[0][0]
    assert math.isnan(report.kl) and math.isnan(report.rollout_gap_mean) and math.isnan(report.rollout_gap_max)
    assert report.fresh_tokens == 0 and report.grad_norm > 0

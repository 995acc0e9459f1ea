"""Reward models, preferences, and a policy with its critic, against Hugging Face and torch AdamW."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from tests.megatron_cases import RATES, config, hf_logprobs, make_samples, pair, shares, worst
from tests.megatron_pool import play
from tests.tiny_models import save_tiny
from yatt.types import Denominator, Pair, Sample, Share

pytestmark = pytest.mark.slow

LAYOUTS = {
    "one": (1, {}),
    "dp2": (2, {}),
    "tp2+sp": (2, {"tp": 2, "sequence_parallel": True}),
    "pp2": (2, {"pp": 2}),
    "tp2xdp2": (4, {"tp": 2}),
    "fsdp2": (2, {"backend": "fsdp"}),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny(tmp_path_factory.mktemp("policy"), "qwen3", spread=2.0)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Another policy, of another size: a teacher, or what a reference was."""
    return save_tiny(tmp_path_factory.mktemp("other"), "qwen3", spread=2.0, seed=1, intermediate_size=96)


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny(tmp_path_factory.mktemp("scorer"), "qwen3", spread=2.0, seed=2, labels=1)


def replicas(layout: str) -> tuple[int, int, dict[str, Any]]:
    world, train = LAYOUTS[layout]
    return world, world // (train.get("tp", 1) * train.get("pp", 1)), train


def sequence(random: np.random.Generator, prompt: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A response after a prompt: tokens, and the mask of the response."""
    response = random.integers(3, 96, int(random.integers(2, 20)))
    return np.concatenate([prompt, response]).astype(np.int32), np.arange(len(prompt) + len(response)) >= len(prompt)


def pairs(seed: int, count: int = 8, reward: float | None = None) -> list[Pair]:
    """Two responses to a prompt each; `reward` is their margin, or alternates between +1 and -1."""
    random = np.random.default_rng(seed)
    made = []
    for uid in range(count):
        prompt = random.integers(3, 96, int(random.integers(1, 12)))
        (first, of_first), (second, of_second) = sequence(random, prompt), sequence(random, prompt)
        made.append(
            pair(uid, (first, second), (of_first, of_second), float(1 - 2 * (uid % 2)) if reward is None else reward)
        )
    return made


def adamw(model: torch.nn.Module) -> torch.optim.AdamW:
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), eps=1e-6)


def descend(model: torch.nn.Module, optimizer: torch.optim.AdamW, loss: torch.Tensor, rate: float) -> float:
    """One update; returns the gradient's norm before clipping."""
    optimizer.zero_grad()
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    return norm.item()


def weights(model: torch.nn.Module) -> dict[str, np.ndarray]:
    return {n: v.detach().clone().numpy() for n, v in model.state_dict().items() if n != "lm_head.weight"}


def causal(folder: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def with_algorithm(folder: str, name: str, train: dict[str, Any] | None = None, **algorithm: Any) -> dict[str, Any]:
    return {**config(folder, **(train or {})), "algorithm": {"name": name, **algorithm}}


def summed(model: Any, sample: Sample) -> torch.Tensor:
    """Log-probability of a sequence's response."""
    return hf_logprobs(model, sample, 1.0)[torch.from_numpy(sample.loss_mask.copy())].sum()


# --- the reward model ------------------------------------------------------------------------------------------------


def score(model: Any, sample: Sample) -> torch.Tensor:
    """A classifier's logit, which Hugging Face reads at the last token."""
    return model(torch.from_numpy(sample.tokens.astype(np.int64))[None]).logits[0, 0]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_reward_model_matches_hugging_face(scorer: str, tmp_path: Path, layout: str) -> None:
    world, copies, train = replicas(layout)
    model = AutoModelForSequenceClassification.from_pretrained(scorer, dtype=torch.float32)
    optimizer, expected, batches = adamw(model), [], [pairs(seed, reward=0.5) for seed in range(3)]
    for batch, rate in zip(batches, RATES, strict=True):
        scores = [tuple(score(model, half) for half in one.sequences) for one in batch]
        loss = -torch.stack([F.logsigmoid(chosen - rejected - 0.5) for chosen, rejected in scores]).mean()
        ahead = sum(float(chosen > rejected) for chosen, rejected in scores) / len(batch)
        expected.append((loss.item(), ahead, descend(model, optimizer, loss, rate)))
    script = [*[("update", shares(b, copies)) for b in batches], ("export",)]
    script += [("call", "save_folder", str(tmp_path / "out"))]
    *reports, end, _ = play(world, with_algorithm(scorer, "reward_model", train), script)[0]
    for report, (loss, ahead, norm) in zip(reports, expected, strict=True):
        assert report.loss == pytest.approx(loss, abs=1e-5)
        assert report.numbers["pair_accuracy"] == pytest.approx(ahead)
        assert report.grad_norm == pytest.approx(norm, rel=1e-4)
    assert worst(end, weights(model)) <= 1e-5
    written = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out", dtype=torch.float32)
    one = batches[0][0].sequences[0]
    assert score(written, one).item() == pytest.approx(score(model, one).item(), abs=1e-4)


def test_a_reward_model_from_a_language_model_begins_at_zero(folder: str, tmp_path: Path) -> None:
    batch = pairs(0, reward=0.0)
    script = [("evaluate", shares(batch, 1)), ("update", shares(batch, 1)), ("evaluate", shares(batch, 1))]
    script += [("call", "save_folder", str(tmp_path / "out"))]
    before, update, after, _ = play(1, with_algorithm(folder, "reward_model"), script)[0]
    assert before.loss == update.loss == pytest.approx(math.log(2), abs=1e-6)
    assert after.loss < before.loss
    described = json.loads((tmp_path / "out" / "config.json").read_text())
    assert described["architectures"] == ["Qwen3ForSequenceClassification"]
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").config.num_labels == 1


# --- preferences -----------------------------------------------------------------------------------------------------


def dpo_loss(gap: torch.Tensor, beta: float, smoothing: float) -> torch.Tensor:
    return -(1 - smoothing) * F.logsigmoid(beta * gap) - smoothing * F.logsigmoid(-beta * gap)


PREFERENCES: dict[str, tuple[dict[str, Any], Any]] = {
    "dpo": ({"beta": 0.05}, lambda gap: dpo_loss(gap, 0.05, 0.0)),
    "cdpo": ({"beta": 0.05, "label_smoothing": 0.2}, lambda gap: dpo_loss(gap, 0.05, 0.2)),
    "ipo": ({"beta": 0.5}, lambda gap: (gap - 1 / (2 * 0.5)) ** 2),
    "ipo, averaged": ({"beta": 0.5, "average_logprobs": True}, lambda gap: (gap - 1 / (2 * 0.5)) ** 2),
}


@pytest.mark.parametrize(
    ("name", "layout"),
    [("dpo", "tp2xdp2"), ("dpo", "pp2"), ("cdpo", "one"), ("ipo", "dp2"), ("ipo, averaged", "one"), ("dpo", "fsdp2")],
)
def test_preferences_match_hugging_face(folder: str, other: str, name: str, layout: str) -> None:
    world, copies, train = replicas(layout)
    settings, of_gap = PREFERENCES[name]
    model, reference = causal(folder), causal(other)

    def counted(of: Any, half: Sample) -> torch.Tensor:
        return summed(of, half) / (half.loss_mask.sum() if "average_logprobs" in settings else 1)

    optimizer, expected, batches = adamw(model), [], [pairs(seed) for seed in range(2)]
    for batch, rate in zip(batches, RATES[:2], strict=True):
        with torch.no_grad():
            held = [[counted(reference, half) for half in one.sequences] for one in batch]
        gaps = []
        for one, (chosen, rejected) in zip(batch, held, strict=True):
            better, worse = (counted(model, half) for half in one.sequences)
            gaps.append((better - chosen) - (worse - rejected))
        loss = torch.stack([of_gap(gap) for gap in gaps]).mean()
        ahead = sum(float(gap > 0) for gap in gaps) / len(gaps)
        expected.append((loss.item(), ahead, descend(model, optimizer, loss, rate)))
    base = with_algorithm(folder, name.split(",")[0], train, **settings)
    base["model"] = {**base["model"], "reference": other}
    *reports, end = play(world, base, [*[("update", shares(b, copies)) for b in batches], ("export",)])[0]
    for report, (loss, ahead, norm) in zip(reports, expected, strict=True):
        assert report.loss == pytest.approx(loss, rel=1e-4)
        assert report.numbers["pair_accuracy"] == pytest.approx(ahead)
        assert report.grad_norm == pytest.approx(norm, rel=1e-3)
    assert worst(end, weights(model)) <= 2e-5


@pytest.mark.parametrize("layout", ["one", "tp2", "pp2"])
def test_references_worked_out_beforehand_change_nothing(folder: str, other: str, layout: str) -> None:
    """What the reference says of a sample travels with it; the model is gone by then."""
    world, train = (1, {}) if layout == "one" else (2, {layout[:2]: 2})
    batch = pairs(4)
    live, known = (with_algorithm(folder, "dpo", train, precompute_reference=known) for known in (False, True))
    for base in (live, known):
        base["model"] = {**base["model"], "reference": other}
    expected = play(world, live, [("update", shares(batch, 1)), ("export",)])[0]
    sums = {}
    for rank in play(world, known, [("reference", shares(batch, 1)), ("call", "forget_reference")]):
        sums |= rank[0]
    told = []
    for one in batch:
        first, second = (replace(s, reference=r) for s, r in zip(one.sequences, sums[one.key.uid], strict=True))
        told.append(Pair(first=first, second=second))
    script = [("call", "forget_reference"), ("update", shares(told, 1)), ("export",)]
    _, report, end = play(world, known, script)[0]
    assert report.loss == pytest.approx(expected[0].loss, rel=1e-5)
    assert worst(end, expected[1]) <= 1e-5


@pytest.mark.parametrize("layout", ["one", "dp2", "fsdp2"])
def test_kto_matches_its_definition(folder: str, other: str, layout: str) -> None:
    """The reference point is the mean log ratio of the second sequences, at least 0, and has no gradient."""
    world, copies, train = replicas(layout)
    model, reference, beta = causal(folder), causal(other), 0.05
    batch = pairs(3)
    with torch.no_grad():
        held = [[summed(reference, half) for half in one.sequences] for one in batch]
    ratios = [
        [summed(model, half) - r for half, r in zip(one.sequences, h, strict=True)]
        for one, h in zip(batch, held, strict=True)
    ]
    point = max(0.0, sum(second.item() for _, second in ratios) / len(batch))
    losses = []
    for one, (ratio, _) in zip(batch, ratios, strict=True):
        good = one.first.reward > 0
        value = torch.sigmoid(beta * (ratio - point) if good else beta * (point - ratio))
        losses.append((1.5 if good else 1.0) * (1 - value))
    loss = torch.stack(losses).mean()
    norm = descend(model, adamw(model), loss, RATES[0])
    base = with_algorithm(folder, "kto", train, beta=beta, desirable_weight=1.5)
    base["model"] = {**base["model"], "reference": other}
    report, end = play(world, base, [("update", shares(batch, copies)), ("export",)])[0]
    assert report.loss == pytest.approx(loss.item(), abs=1e-5)
    assert report.numbers["kto_reference_point"] == pytest.approx(point, abs=1e-4)
    assert report.grad_norm == pytest.approx(norm, rel=1e-3)
    assert worst(end, weights(model)) <= 2e-5


# --- a policy with its critic ----------------------------------------------------------------------------------------

EPOCHS, CLIP, GAMMA, LAMBDA, PENALTY = 2, 0.2, 0.9, 0.8, 0.3


class Critic:
    """A value of every token, read one token earlier from a classifier's body and head."""

    def __init__(self, folder: str) -> None:
        self.model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)

    def __call__(self, sample: Sample) -> torch.Tensor:
        hidden = self.model.model(torch.from_numpy(sample.tokens.astype(np.int64))[None]).last_hidden_state[0]
        return torch.cat([torch.zeros(1), self.model.score(hidden)[:-1, 0]])


def trained(sample: Sample) -> torch.Tensor:
    mask = torch.from_numpy(sample.loss_mask.copy())
    mask[0] = False
    return mask


def advantages_by_hand(
    samples: list[Sample], logprobs: list[torch.Tensor], held: list[torch.Tensor], values: list[torch.Tensor]
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """GAE over each sample's trained tokens, with the KL taken off the reward; whitened over all. Columns [T]."""
    advantages, returns = [], []
    for sample, old, ref, value in zip(samples, logprobs, held, values, strict=True):
        places = torch.nonzero(trained(sample))[:, 0].tolist()
        advantage, total, after, next_value = torch.zeros(len(old)), torch.zeros(len(old)), 0.0, 0.0
        for place in reversed(places):
            reward = -PENALTY * (old[place] - ref[place]).item() + (sample.reward if place == places[-1] else 0.0)
            delta = reward + GAMMA * next_value - value[place].item()
            after = delta + GAMMA * LAMBDA * after
            next_value = value[place].item()
            advantage[place], total[place] = after, after + next_value
        advantages.append(advantage)
        returns.append(total)
    every = torch.cat([a[trained(s)] for a, s in zip(advantages, samples, strict=True)]).double()
    mean, deviation = every.mean(), every.std()
    return [((a - mean) / deviation).float() * trained(s) for a, s in zip(advantages, samples, strict=True)], returns


@pytest.fixture(scope="module")
def ppo(folder: str, other: str, scorer: str) -> dict[str, Any]:
    """One step of PPO in plain torch: two minibatches, twice."""
    policy, reference, critic = causal(folder), causal(other), Critic(scorer)
    samples = [
        Sample(
            key=s.key,
            tokens=s.tokens,
            loss_mask=s.loss_mask,
            rollout_logprobs=s.rollout_logprobs,
            reward=s.advantage,
        )
        for s in make_samples(5, 8)
    ]
    with torch.no_grad():
        old = [hf_logprobs(policy, s, 0.7) for s in samples]
        held = [hf_logprobs(reference, s, 0.7) for s in samples]
        values = [critic(s) for s in samples]
    advantages, returns = advantages_by_hand(samples, old, held, values)
    optimizers, norms, critic_losses, losses = (adamw(policy), adamw(critic.model)), [], [], []
    for update in range(2 * EPOCHS):
        places = range(4) if update % 2 == 0 else range(4, 8)
        count = sum(int(trained(samples[i]).sum()) for i in places)
        loss, value_loss = torch.zeros(()), torch.zeros(())
        for i in places:
            mask = trained(samples[i])
            ratio = torch.exp(hf_logprobs(policy, samples[i], 0.7) - old[i])[mask]
            gain = advantages[i][mask]
            loss = loss - torch.minimum(ratio * gain, ratio.clamp(1 - CLIP, 1 + CLIP) * gain).sum()
            now, before, target = critic(samples[i])[mask], values[i][mask], returns[i][mask]
            held_back = before + (now - before).clamp(-CLIP, CLIP)
            value_loss = value_loss + 0.5 * torch.maximum((now - target) ** 2, (held_back - target) ** 2).sum()
        # Warm-up over two updates, then the linear fall over the 38 that are left of 40.
        rate = (5e-4, 1e-3, 1e-3, 1e-3 - 9e-4 / 38)[update]
        losses.append(loss.item() / count)
        critic_losses.append(value_loss.item() / count)
        norms.append(descend(policy, optimizers[0], loss / count, rate))
        descend(critic.model, optimizers[1], value_loss / count, rate)
    targets, told = (
        np.concatenate([c[trained(s)].double().numpy() for c, s in zip(columns, samples, strict=True)])
        for columns in (returns, values)
    )
    return {
        "samples": samples,
        "explained": 1 - (targets - told).var() / targets.var(),
        "policy": weights(policy),
        "critic": critic,
        "loss": sum(losses) / len(losses),
        "critic_loss": sum(critic_losses) / len(critic_losses),
        "norm": sum(norms) / len(norms),
    }


def ppo_config(folder: str, other: str, scorer: str, train: dict[str, Any], **critic: Any) -> dict[str, Any]:
    return {
        **with_algorithm(
            folder,
            "ppo",
            {**train, "updates_per_step": 2, "epochs_per_step": EPOCHS},
            gamma=GAMMA,
            gae_lambda=LAMBDA,
            kl={"coefficient": PENALTY, "kind": "k1", "place": "reward"},
        ),
        "model": {"path": folder, "dtype": "float32", "reference": other},
        "critic": {"path": scorer, **critic},
    }


def two_updates(samples: list[Sample], copies: int) -> list[list[Share]]:
    """By replica: one controller, two minibatches of four samples, each dealt to the replicas as one micro-batch."""
    parts = (samples[:4], samples[4:])
    totals = tuple(Denominator(tokens=sum(s.trained_tokens for s in part), sequences=4) for part in parts)
    return [
        [
            Share(
                step=1,
                rank=rank,
                controller=0,
                senders=(0,),
                updates=tuple((tuple(part[rank::copies]),) for part in parts),
                denominators=totals,
            )
        ]
        for rank in range(copies)
    ]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_ppo_matches_plain_torch(
    folder: str, other: str, scorer: str, ppo: dict[str, Any], tmp_path: Path, layout: str
) -> None:
    world, copies, train = replicas(layout)
    script = [("update", two_updates(ppo["samples"], copies)), ("export",), ("call", "save", str(tmp_path / "saved"))]
    report, end, _ = play(world, ppo_config(folder, other, scorer, train), script)[0]
    assert worst(end, ppo["policy"]) <= 2e-5
    assert report.loss == pytest.approx(ppo["loss"], abs=1e-5)
    assert report.grad_norm == pytest.approx(ppo["norm"], rel=1e-3)
    assert report.numbers["critic_loss"] == pytest.approx(ppo["critic_loss"], rel=1e-4)
    assert report.numbers["explained_variance"] == pytest.approx(ppo["explained"], rel=1e-4)
    assert (tmp_path / "saved" / "critic" / "trainer.json").exists()


def test_ppo_goes_on_from_a_checkpoint_bit_for_bit(
    folder: str, other: str, scorer: str, ppo: Any, tmp_path: Path
) -> None:
    """The critic's weights, its moments, and the KL's adapted coefficient are all in it."""
    settings = ppo_config(folder, other, scorer, {})
    settings["algorithm"]["kl"] |= {"target": 0.01, "horizon": 10.0}
    step, saved = ("update", two_updates(ppo["samples"], 1)), str(tmp_path / "saved")
    first, _, whole, end = play(1, settings, [step, ("call", "save", saved), step, ("export",)])[0]
    _, resumed, again = play(1, settings, [("call", "load", saved), step, ("export",)])[0]
    assert first.numbers["kl_coefficient"] == PENALTY != whole.numbers["kl_coefficient"]
    assert {**vars_of(resumed), "seconds": {}} == {**vars_of(whole), "seconds": {}}
    assert all(np.array_equal(end[name], again[name]) for name in end)


def vars_of(report: Any) -> dict[str, Any]:
    return {name: getattr(report, name) for name in report.__dataclass_fields__}


def test_a_critic_may_learn_alone_at_first(folder: str, other: str, scorer: str, ppo: Any) -> None:
    step = ("update", two_updates(ppo["samples"], 1))
    settings = ppo_config(folder, other, scorer, {}, warmup_steps=1)
    before, report, end = play(1, settings, [("export",), step, ("export",)])[0]
    assert all(np.array_equal(before[name], end[name]) for name in before)
    assert report.grad_norm == 0 and report.numbers["critic_loss"] == pytest.approx(ppo["critic_loss"], rel=1e-4)


def test_the_gap_is_told_while_the_critic_learns_alone(folder: str, ppo: Any) -> None:
    """With one update a step, where nobody else asks what the policy says before it."""
    (whole,) = shares(ppo["samples"], 1)
    step = ("update", [[replace(share, step=1) for share in whole]])
    alone, together = (
        play(1, {**with_algorithm(folder, "ppo"), "critic": {"warmup_steps": n}}, [step])[0][0] for n in (1, 0)
    )
    assert alone.grad_norm == 0 < together.grad_norm
    assert alone.rollout_gap_mean == pytest.approx(together.rollout_gap_mean, rel=1e-5) != 0
    assert alone.rollout_gap_max == pytest.approx(together.rollout_gap_max, rel=1e-5)


def test_a_critic_of_a_language_model_begins_at_zero(folder: str, ppo: Any) -> None:
    """Its values are 0, so that the returns, with a discount of 1 and no KL, are the rewards."""
    settings = {**with_algorithm(folder, "ppo"), "critic": {"value_clip": None}}
    samples = ppo["samples"]
    report = play(1, settings, [("update", shares(samples, 1))])[0][0]
    expected = sum(0.5 * s.reward**2 * s.trained_tokens for s in samples) / sum(s.trained_tokens for s in samples)
    assert report.numbers["critic_loss"] == pytest.approx(expected, rel=1e-5)


# --- what a teacher says, and the sampler's gap ----------------------------------------------------------------------


def test_distillation_follows_the_teacher(folder: str, other: str) -> None:
    """On-policy: the advantage of a token is the teacher's logprob less the policy's, the gradient that of -A logp."""
    samples = make_samples(7, 6)
    model, teacher = causal(folder), causal(other)
    count, loss = sum(s.trained_tokens for s in samples), torch.zeros(())
    for s in samples:
        with torch.no_grad():
            told = hf_logprobs(teacher, s, 0.7)
        mine = hf_logprobs(model, s, 0.7)
        loss = loss - ((told - mine.detach()) * torch.exp(mine - mine.detach()))[trained(s)].sum()
    descend(model, adamw(model), loss / count, RATES[0])
    base = with_algorithm(folder, "distillation")
    base["model"] = {**base["model"], "teacher": other}
    report, end = play(1, base, [("update", shares(samples, 1)), ("export",)])[0]
    assert report.loss == pytest.approx(loss.item() / count, abs=1e-5)
    assert worst(end, weights(model)) <= 2e-5


def test_a_correction_weighs_the_loss(folder: str) -> None:
    """Truncated token ratios of trainer to sampler, on top of the plain gradient."""
    model, samples = causal(folder), []
    with torch.no_grad():
        for number, s in enumerate(make_samples(8, 6)):
            column = hf_logprobs(model, s, 0.7) + torch.linspace(-1.5, 1.5, len(s.tokens)) * (-1) ** number
            samples.append(
                Sample(
                    key=s.key,
                    tokens=s.tokens,
                    loss_mask=s.loss_mask,
                    rollout_logprobs=column.numpy(),
                    advantage=s.advantage,
                )
            )
    count, loss, weight, squares = sum(s.trained_tokens for s in samples), torch.zeros(()), 0.0, 0.0
    for s in samples:
        mine = hf_logprobs(model, s, 0.7)
        ratio = torch.exp(mine.detach() - torch.from_numpy(s.rollout_logprobs)).clamp(max=2.0)
        loss = loss - s.advantage * (ratio * torch.exp(mine - mine.detach()))[trained(s)].sum()
        weight += ratio[trained(s)].sum().item()
        squares += ratio[trained(s)].square().sum().item()
    descend(model, adamw(model), loss / count, RATES[0])
    base = with_algorithm(folder, "grpo", correction={"level": "token", "mode": "truncate", "high": 2.0})
    report, end = play(1, base, [("update", shares(samples, 1)), ("export",)])[0]
    assert report.loss == pytest.approx(loss.item() / count, abs=1e-5)
    assert report.numbers["correction_weight"] == pytest.approx(weight / count, rel=1e-4)
    assert report.numbers["effective_share"] == pytest.approx(weight**2 / count / squares, rel=1e-4)
    assert worst(end, weights(model)) <= 2e-5


def test_an_entropy_bonus_has_the_entropy_s_gradient(folder: str) -> None:
    """With advantages of 0 it is all the loss there is."""
    samples, model = [s for s in make_samples(9, 4)], causal(folder)
    count, loss = sum(s.trained_tokens for s in samples), torch.zeros(())
    for s in samples:
        logits = model(torch.from_numpy(s.tokens.astype(np.int64))[None]).logits[0, :-1] / 0.7
        entropy = torch.distributions.Categorical(logits=logits).entropy()
        loss = loss - 0.3 * entropy[trained(s)[1:]].sum()
    descend(model, adamw(model), loss / count, RATES[0])
    still = [
        Sample(key=s.key, tokens=s.tokens, loss_mask=s.loss_mask, rollout_logprobs=s.rollout_logprobs, advantage=0.0)
        for s in samples
    ]
    for train in ({}, {"tp": 2}):
        base = with_algorithm(folder, "grpo", train, entropy=0.3)
        report, end = play(train.get("tp", 1), base, [("update", shares(still, 1)), ("export",)])[0]
        assert report.loss == pytest.approx(loss.item() / count, abs=1e-5)
        assert worst(end, weights(model)) <= 2e-5


def test_rewards_may_differ_by_little_beside_their_mean(folder: str) -> None:
    """Rewards reach the ranks in float64: in float32 those around a million would differ by sixteenths."""
    small = [replace(s, reward=0.01 * s.advantage) for s in make_samples(11, 6)]
    large = [replace(s, reward=1e6 + s.reward) for s in small]
    base = with_algorithm(folder, "reinforce_plus_plus")
    (plain, end), (report, other) = (
        play(1, base, [("update", shares(samples, 1)), ("export",)])[0] for samples in (small, large)
    )
    assert plain.grad_norm > 0 and report.grad_norm == pytest.approx(plain.grad_norm, rel=1e-4)
    assert report.loss == pytest.approx(plain.loss, abs=1e-5) and worst(end, other) <= 1e-5


def test_sequences_are_whitened_over_the_whole_step(folder: str) -> None:
    """One number per sequence, brought to mean 0 and deviation 1, whichever replica has it."""
    samples = make_samples(10, 7)
    gains = torch.tensor([s.advantage for s in samples], dtype=torch.float64)
    white = ((gains - gains.mean()) / gains.std()).tolist()
    given = [
        Sample(key=s.key, tokens=s.tokens, loss_mask=s.loss_mask, rollout_logprobs=s.rollout_logprobs, advantage=w)
        for s, w in zip(samples, white, strict=True)
    ]
    plain = play(1, with_algorithm(folder, "grpo"), [("update", shares(given, 1)), ("export",)])[0]
    for world in (1, 2):
        base = with_algorithm(folder, "grpo", whiten="sequences")
        report, end = play(world, base, [("update", shares(samples, world)), ("export",)])[0]
        assert report.loss == pytest.approx(plain[0].loss, abs=1e-6)
        assert worst(end, plain[1]) <= 1e-5

"""From scored groups to what ranks train on: rewards, group advantages, and what a truncated response does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from yatt.algorithm.advantage import Outcomes, grpo
from yatt.algorithm.load import load_estimator
from yatt.algorithm.rewards import RewardShaper
from yatt.config.algorithms import TOKEN_ADVANTAGES
from yatt.config.schema import AlgorithmConfig
from yatt.types import Group, Row, Sample, SampleKey, Trajectory

Placed = list[tuple[int, Trajectory]]
"""Trajectories, each with the number of its group."""


def samples(
    groups: Sequence[Group],
    config: AlgorithmConfig,
    max_tokens: int,
    shaper: RewardShaper | None = None,
    weights: Mapping[str, float] | None = None,
    version: int = 0,
) -> list[Sample]:
    """One sample per row of each trajectory, in order, with the trajectory's shaped reward and its group advantage,
    where the algorithm has one.

    `max_tokens` is the response limit, `version` the policy's now. `shaper` knows the rewards of earlier steps; a new
    one does not. `weights` are those of a score's parts (`part_weights`), which only `gdpo` looks at. With
    `reinforce_plus_plus_baseline` a reward comes less its group's mean. Where `algorithm.overlong` is `mask`, a
    response that hit the limit is left out of the samples, its reward staying in its siblings' baseline (it was judged
    like them).
    """
    shaper = shaper or RewardShaper(config, max_tokens)
    placed = [(number, trajectory) for number, group in enumerate(groups) for trajectory in group.trajectories]
    rewards = _column([shaper.shaped(t) for _, t in placed])
    numbers = torch.tensor([number for number, _ in placed], dtype=torch.int64)
    if config.recipe.advantage in TOKEN_ADVANTAGES:
        advantages = torch.ones_like(rewards)
        if config.recipe.advantage == "reinforce_plus_plus_baseline":
            rewards = grpo(rewards, numbers, normalize_std=False)
    else:
        parted = weights if config.recipe.advantage == "gdpo" else None
        outcomes = _outcomes(groups, placed, rewards, numbers, shaper, parted)
        advantages = load_estimator(config)(outcomes, config)
    return [
        sample
        for (_, trajectory), advantage, reward in zip(placed, advantages.tolist(), rewards.tolist(), strict=True)
        if not (config.overlong == "mask" and trajectory.finish == "length")
        for sample in _of(trajectory, advantage, reward, version)
    ]


def _of(trajectory: Trajectory, advantage: float, reward: float, version: int) -> Iterator[Sample]:
    """A trajectory's rows as samples; each has the trajectory's reward and advantage."""
    turns = 0
    for row in trajectory.rows:
        yield Sample(
            key=SampleKey(trajectory.prompt.uid, trajectory.sibling, turns),
            tokens=row.tokens,
            loss_mask=row.loss_mask,
            rollout_logprobs=row.rollout_logprobs,
            advantage=advantage,
            reward=reward,
            media=row.media,
            fresh=_fresh(row, trajectory, version),
            turn_rewards=tuple((turn.stop - 1, turn.reward) for turn in row.turns if turn.reward is not None),
        )
        turns += len(row.turns)


def _fresh(row: Row, trajectory: Trajectory, version: int) -> int:
    """Where the tokens begin that the policy drew as it is now; a version is never followed by an older one."""
    first = row.turns[0].start if row.turns else len(trajectory.prompt.tokens)
    return first + min((span.start for span in row.spans if span.version >= version), default=len(row.tokens) - first)


def _outcomes(
    groups: Sequence[Group],
    placed: Placed,
    rewards: Tensor,
    numbers: Tensor,
    shaper: RewardShaper,
    weights: Mapping[str, float] | None,
) -> Outcomes:
    """With the baselines, where every group has one, and the parts of scores, where they are weighted."""
    parts = [[*_parts(t, weights), *shaper.penalties(t)] for _, t in placed] if weights else []
    baselines = [shaper.scaled(group.baseline) for group in groups if group.baseline is not None]
    return Outcomes(
        rewards=rewards,
        groups=numbers,
        lengths=torch.tensor([t.response_tokens for _, t in placed], dtype=torch.int64),
        baselines=_column(baselines)[numbers] if len(baselines) == len(groups) else None,
        parts=_column(parts).view(len(placed), len(weights) + 2) if weights else None,
        weights=_column([*weights.values(), *shaper.penalty_weights]) if weights else None,
    )


def _parts(trajectory: Trajectory, weights: Mapping[str, float]) -> list[float]:
    score = trajectory.score
    given = score.parts if score is not None else {}
    missing = sorted(weights.keys() - given.keys())
    if missing:
        where = f"prompt {trajectory.prompt.uid}, sibling {trajectory.sibling}"
        raise ValueError(f"{where}: its score has no part {', '.join(missing)}, only {', '.join(given) or 'none'}")
    return [given[name] for name in weights]


def _column(values: Sequence[object]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)

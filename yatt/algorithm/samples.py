"""From scored groups to what ranks train on: group advantages, and what a truncated response does."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from yatt.algorithm.advantage import ESTIMATORS
from yatt.config.schema import AlgorithmConfig
from yatt.types import Group, Sample, SampleKey, Trajectory


def samples(groups: Sequence[Group], config: AlgorithmConfig, max_tokens: int) -> list[Sample]:
    """One sample per trajectory, in order, with its group advantage; `max_tokens` is the response limit.

    What `algorithm.overlong` does to a response that hit the limit: `keep` nothing; `mask` leaves it out of the
    samples, its reward staying in its siblings' baseline (it was judged like them); `penalty` adds `overlong_penalty`
    to the reward of every response before advantages are computed.
    """
    placed = [(number, trajectory) for number, group in enumerate(groups) for trajectory in group.trajectories]
    rewards = torch.tensor([_reward(t, config, max_tokens) for _, t in placed], dtype=torch.float64)
    ids = torch.tensor([number for number, _ in placed], dtype=torch.int64)
    options = {"normalize_std": config.normalize_std} if config.name == "grpo" else {}
    advantages = ESTIMATORS[config.name](rewards, ids, **options).tolist()
    return [
        Sample(
            key=SampleKey(trajectory.prompt.uid, trajectory.sibling),
            tokens=trajectory.tokens,
            loss_mask=trajectory.loss_mask,
            rollout_logprobs=trajectory.rollout_logprobs,
            advantage=advantage,
            media=trajectory.prompt.media,
        )
        for (_, trajectory), advantage in zip(placed, advantages, strict=True)
        if not (config.overlong == "mask" and trajectory.finish == "length")
    ]


def overlong_penalty(length: int, max_tokens: int, buffer: int) -> float:
    """0 up to max_tokens - buffer response tokens, then down to -1 at max_tokens (arXiv 2503.14476, eq. 13)."""
    excess = length - (max_tokens - buffer)
    if excess <= 0:
        return 0.0
    return -1.0 if excess >= buffer else -excess / buffer


def _reward(trajectory: Trajectory, config: AlgorithmConfig, max_tokens: int) -> float:
    score = trajectory.score
    if score is None or score.value is None:
        raise ValueError(f"prompt {trajectory.prompt.uid}, sibling {trajectory.sibling} has no reward: {score}")
    if config.overlong == "penalty":
        return score.value + overlong_penalty(trajectory.response_tokens, max_tokens, config.overlong_buffer)
    return score.value

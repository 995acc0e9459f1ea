"""Steps from the judgement of a response to the reward that advantages are worked out from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from yatt.config.schema import AlgorithmConfig, RewardConfig
from yatt.moments import Moments
from yatt.types import Trajectory

EQUAL = 1e-12
"""A deviation below this share of the mean is rounding of the rewards themselves, which are float64."""


class RewardShaper:
    """Rewards as `algorithm` has them shaped, in this order:

    1. `reward_normalize`: (r - mean) / deviation, by all rewards of earlier steps; as it is in the first step.
    2. `reward_clip`: held within +-that. Last of the two, so that the bound is the bound of what is learned from.
    3. `overlong=penalty`: `overlong_penalty` is added (0 to -1).
    4. `length_penalty` * response tokens / `max_tokens` is taken off.

    Mean and sample deviation (n - 1) are of the rewards as they were given, over all steps that were closed. They
    are the same everywhere, for every controller closes a step with everyone's counts.
    """

    def __init__(self, config: AlgorithmConfig, max_tokens: int) -> None:
        self._config = config
        self._max_tokens = max_tokens
        self._earlier = Moments()

    def shaped(self, trajectory: Trajectory) -> float:
        """The reward to learn from: all steps. Raises ValueError for a trajectory without a reward."""
        score = trajectory.score
        if score is None or score.value is None:
            raise ValueError(f"prompt {trajectory.prompt.uid}, sibling {trajectory.sibling} has no reward: {score}")
        return self.scaled(score.value) + sum(self.penalties(trajectory))

    def scaled(self, reward: float) -> float:
        """Steps 1 and 2, which do not look at the response: all there is for a greedy baseline."""
        if self._config.reward_normalize:
            reward = (reward - self._centre) / self._deviation
        bound = self._config.reward_clip
        return reward if bound is None else min(max(reward, -bound), bound)

    def penalties(self, trajectory: Trajectory) -> tuple[float, float]:
        """Steps 3 and 4: what is added for the length, never above 0."""
        config, length = self._config, trajectory.response_tokens
        overlong = (
            overlong_penalty(length, self._max_tokens, config.overlong_buffer) if config.overlong == "penalty" else 0.0
        )
        return overlong, -config.length_penalty * length / self._max_tokens

    @property
    def penalty_weights(self) -> tuple[float, float]:
        """The weights of `penalties` as rewards of their own, each normalised alone (`gdpo`)."""
        return 1.0, self._config.length_penalty

    def close(self, rewards: Moments) -> None:
        """End a step with the rewards of all controllers."""
        self._earlier += rewards

    def state(self) -> dict[str, float]:
        """As of the last `close`."""
        return asdict(self._earlier)

    def restore(self, state: Mapping[str, Any] | Sequence[float]) -> None:
        """Former checkpoints have a count, a sum and a sum of squares."""
        self._earlier = Moments(**state) if isinstance(state, Mapping) else Moments.of_sums(*state)

    @property
    def _centre(self) -> float:
        """The mean; 0 while there are fewer than two rewards."""
        return self._earlier.mean if self._earlier.count > 1 else 0.0

    @property
    def _deviation(self) -> float:
        """1 while there are fewer than two rewards, or all are equal."""
        deviation = math.sqrt(self._earlier.sample_variance)
        return deviation if deviation > EQUAL * abs(self._earlier.mean) else 1.0


def overlong_penalty(length: int, max_tokens: int, buffer: int) -> float:
    """0 up to max_tokens - buffer response tokens, then down to -1 at max_tokens (arXiv 2503.14476, eq. 13)."""
    excess = length - (max_tokens - buffer)
    if excess <= 0:
        return 0.0
    return -1.0 if excess >= buffer else -excess / buffer


def part_weights(config: RewardConfig) -> dict[str, float]:
    """The parts of a score that add up to its value, with their weights: functions and judges by name, "reward" for
    the only function."""
    only = {"reward": 1.0} if config.function is not None else {}
    functions = {name: one.weight for name, one in config.functions.items()}
    return only | functions | {name: one.weight for name, one in config.models.items()}

"""What becomes of a reward between the judgement and the advantage."""

from __future__ import annotations

import math
from collections.abc import Sequence

from yatt.config.schema import AlgorithmConfig, RewardConfig
from yatt.types import Trajectory

# A deviation below this share of the mean is rounding.
EQUAL = 1e-6


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
        self._sums = (0.0, 0.0, 0.0)

    def shaped(self, trajectory: Trajectory) -> float:
        """What is learned from. Raises ValueError for a trajectory without a reward."""
        score = trajectory.score
        if score is None or score.value is None:
            raise ValueError(f"prompt {trajectory.prompt.uid}, sibling {trajectory.sibling} has no reward: {score}")
        return self.scaled(score.value) + sum(self.penalties(trajectory))

    def scaled(self, reward: float) -> float:
        """Steps 1 and 2, which do not look at the response: all there is for a greedy baseline."""
        if self._config.reward_normalize:
            mean, deviation = self._statistics()
            reward = (reward - mean) / deviation
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
        """What `penalties` weigh as rewards of their own, each normalised alone (`gdpo`)."""
        return 1.0, self._config.length_penalty

    def close(self, responses: int, reward_sum: float, reward_square_sum: float) -> None:
        """End a step with the rewards of all controllers: how many were given, their sum and that of their squares."""
        count, total, squares = self._sums
        self._sums = (count + responses, total + reward_sum, squares + reward_square_sum)

    def state(self) -> list[float]:
        """As of the last `close`."""
        return list(self._sums)

    def restore(self, state: Sequence[float]) -> None:
        count, total, squares = state
        self._sums = (float(count), float(total), float(squares))

    def _statistics(self) -> tuple[float, float]:
        """Mean and deviation; (0, 1) while there are fewer than two rewards, (mean, 1) while they are all equal."""
        count, total, squares = self._sums
        if count < 2:
            return 0.0, 1.0
        mean = total / count
        deviation = math.sqrt(max(0.0, squares - count * mean * mean) / (count - 1))
        return mean, deviation if deviation > EQUAL * abs(mean) else 1.0


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

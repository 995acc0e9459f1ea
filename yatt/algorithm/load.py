"""An algorithm's advantage and loss by the run's settings: those of its recipe, or the user's own function in place of
them, which takes and returns the same. Its failures name the setting."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from yatt.algorithm.advantage import ESTIMATORS, Estimator, Outcomes
from yatt.algorithm.loss import LOSSES, LossSettings, LossTokens, TokenLoss
from yatt.algorithm.token_advantage import TOKEN_ESTIMATORS, TokenEstimator, TokenOutcomes
from yatt.config.schema import AlgorithmConfig
from yatt.user_functions import find, guarded


def load_estimator(config: AlgorithmConfig) -> Estimator:
    """The function from outcomes to advantages per trajectory, for algorithms that compare siblings. Raises ConfigError
    where `algorithm.advantage` names no function, and BackendError when that fails or returns something else."""
    if config.advantage is None:
        return ESTIMATORS[config.recipe.advantage]
    function = find("algorithm.advantage", config.advantage)

    def estimate(outcomes: Outcomes, settings: AlgorithmConfig) -> Tensor:
        return _like(outcomes.rewards, function(outcomes, settings), "advantages")

    return guarded("algorithm.advantage", config.advantage, estimate)


def load_token_estimator(config: AlgorithmConfig) -> TokenEstimator:
    """The function from outcomes to advantages per token, for algorithms that work them out so. Raises as
    `load_estimator`."""
    if config.advantage is None:
        return TOKEN_ESTIMATORS[config.recipe.advantage]
    function = find("algorithm.advantage", config.advantage)

    def estimate(outcomes: TokenOutcomes, settings: AlgorithmConfig) -> tuple[Tensor, Tensor | None]:
        advantages, targets = function(outcomes, settings)
        rewards, critic = outcomes.token_rewards, settings.recipe.critic
        return _like(rewards, advantages, "advantages"), _like(rewards, targets, "targets") if critic else None

    return guarded("algorithm.advantage", config.advantage, estimate)


def load_loss(config: AlgorithmConfig) -> TokenLoss:
    """The function from tokens to their losses, for algorithms that reinforce. Raises as `load_estimator`, of
    `algorithm.loss`."""
    if config.loss is None:
        return LOSSES[config.recipe.loss]
    function = find("algorithm.loss", config.loss)

    def loss(tokens: LossTokens, settings: LossSettings) -> tuple[Tensor, Tensor]:
        values, clipped = function(tokens, settings)
        return _like(tokens.logprobs, values, "losses"), _like(tokens.mask, clipped, "clipped").bool()

    return guarded("algorithm.loss", config.loss, loss)


def _like(column: Tensor, returned: Any, name: str) -> Tensor:
    if not isinstance(returned, Tensor) or returned.shape != column.shape:
        what = list(returned.shape) if isinstance(returned, Tensor) else type(returned).__name__
        raise ValueError(f"its {name} are {what}; return a tensor of shape {list(column.shape)}")
    return returned

"""An advantage and a loss of one's own: `algorithm.advantage` and `algorithm.loss` name them."""

import torch
from torch import Tensor

from yatt.algorithm.advantage import Outcomes
from yatt.algorithm.loss import LossSettings, LossTokens
from yatt.config.schema import AlgorithmConfig


def median(outcomes: Outcomes, config: AlgorithmConfig) -> Tensor:
    """A_i = r_i - median of its group [N]: one lucky response does not make its siblings look bad."""
    advantages = torch.empty_like(outcomes.rewards)
    for group in outcomes.groups.unique():
        siblings = outcomes.groups == group
        advantages[siblings] = outcomes.rewards[siblings] - outcomes.rewards[siblings].quantile(0.5)
    return advantages


def spo(tokens: LossTokens, settings: LossSettings) -> tuple[Tensor, Tensor]:
    """-A r + |A| (r - 1)^2 / (2 clip_high): PPO's bound on the ratio as a pull towards it. Least at 1 +- clip_high.

    Xie et al. 2025, Simple Policy Optimization (arXiv 2401.16025).
    """
    beyond = tokens.ratio - 1
    pull = tokens.advantages.abs() * beyond.square() / (2 * settings.clip_high)
    return pull - tokens.advantages * tokens.ratio, beyond.abs() > settings.clip_high

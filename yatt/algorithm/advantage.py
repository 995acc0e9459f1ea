"""Group advantages: one number per trajectory, from the rewards of its siblings.

`rewards` [N] and `groups` [N] (integer ids in any order) give [N]. In every one of them that compares siblings, a group
of one, and a group whose rewards are all equal, have advantage exactly 0. Those per token are in `token_advantage.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from yatt.config.schema import AlgorithmConfig


def grpo(rewards: Tensor, groups: Tensor, *, normalize_std: bool = True, eps: float = 1e-6) -> Tensor:
    """A_i = (r_i - mean of its group) / (sample std of its group + eps); without the division if not `normalize_std`.

    Shao et al. 2024 (arXiv 2402.03300); without std: Liu et al. 2025 (2503.20783).
    """
    deviation, ids, size = _deviations(rewards, groups)
    if normalize_std:
        variance = _group_sum(deviation.square(), ids, size) / (size - 1).clamp(min=1)
        deviation = deviation / (variance.sqrt()[ids] + eps)
    return deviation.to(_float_type(rewards))


def rloo(rewards: Tensor, groups: Tensor) -> Tensor:
    """A_i = r_i - mean of its siblings' rewards, itself left out: n / (n - 1) times its deviation from the group mean.

    Ahmadian et al. 2024 (arXiv 2402.14740).
    """
    deviation, ids, size = _deviations(rewards, groups)
    return (deviation * (size / (size - 1).clamp(min=1))[ids]).to(_float_type(rewards))


def opo(rewards: Tensor, lengths: Tensor, groups: Tensor) -> Tensor:
    """A_i = r_i - sum_j l_j r_j / sum_j l_j over its group; `lengths` [N] are the responses' tokens.

    The baseline of least variance where a response's squared gradient grows with its length. Hao et al. 2025
    (arXiv 2505.23585).
    """
    return _deviations(rewards, groups, lengths)[0].to(_float_type(rewards))


def remax(rewards: Tensor, baselines: Tensor) -> Tensor:
    """A_i = r_i - b_i, where b_i is the reward of the greedy response to the same prompt: [N], [N] -> [N].

    Li et al. 2023 (arXiv 2310.10505).
    """
    return rewards.to(_float_type(rewards)) - baselines.to(_float_type(rewards))


def gdpo(parts: Tensor, groups: Tensor, weights: Tensor, *, eps: float = 1e-6) -> Tensor:
    """A_i = sum_k w_k * (r_ik - mean of its group) / (sample std of its group + eps): each reward normalised alone.

    `parts` [N, K] and `weights` [K] give [N]; a part that is all equal in a group adds 0 there. The paper then brings
    the batch to mean 0 and deviation 1: that is `whiten`, over sequences. Liu et al. 2026 (arXiv 2601.05242).
    """
    columns = [grpo(parts[:, k], groups, eps=eps) for k in range(parts.shape[1])]
    return torch.stack(columns, 1) @ weights.to(columns[0].dtype)


def _deviations(rewards: Tensor, groups: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Each reward minus its group's mean, weighted where weights [N] are given, [N]; its group's index [N] below G, and
    the group sizes [G]; in float64."""
    _, ids, counts = torch.unique(groups, return_inverse=True, return_counts=True)
    values, size = rewards.double(), counts.double()
    weigh = torch.ones_like(values) if weights is None else weights.double()
    mean = _group_sum(weigh * values, ids, size) / _group_sum(weigh, ids, size)
    bounds = torch.zeros(len(size), dtype=torch.float64, device=rewards.device)
    highest = bounds.scatter_reduce(0, ids, values, "amax", include_self=False)
    lowest = bounds.scatter_reduce(0, ids, values, "amin", include_self=False)
    # Rounding of the mean must not be blown up by a division by eps.
    return (values - mean[ids]).masked_fill((highest == lowest)[ids], 0.0), ids, size


def _group_sum(values: Tensor, ids: Tensor, size: Tensor) -> Tensor:
    return torch.zeros(len(size), dtype=values.dtype, device=values.device).index_add(0, ids, values)


def _float_type(rewards: Tensor) -> torch.dtype:
    return rewards.dtype if rewards.is_floating_point() else torch.float32


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcomes:
    """The input of group estimators: of each of N trajectories its reward, group and response tokens; the reward of its
    prompt's greedy response, where one is drawn; and the rewards it is made of, [N, K] with weights [K], for `gdpo`."""

    rewards: Tensor
    groups: Tensor
    lengths: Tensor
    baselines: Tensor | None = None
    parts: Tensor | None = None
    weights: Tensor | None = None


Estimator = Callable[[Outcomes, AlgorithmConfig], Tensor]
"""(the outcomes of N trajectories, the settings) -> their advantages [N]."""


def _given(column: Tensor | None) -> Tensor:
    assert column is not None, "the estimator asks for a column that its recipe does not bring"
    return column


# The names are those of `Recipe.advantage`.
ESTIMATORS: dict[str, Estimator] = {
    "grpo": lambda o, config: grpo(o.rewards, o.groups, normalize_std=config.normalize_std),
    "rloo": lambda o, config: rloo(o.rewards, o.groups),
    "opo": lambda o, config: opo(o.rewards, o.lengths, o.groups),
    "remax": lambda o, config: remax(o.rewards, _given(o.baselines)),
    "gdpo": lambda o, config: gdpo(_given(o.parts), o.groups, _given(o.weights)),
}

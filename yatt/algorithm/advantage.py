"""Group advantages: one number per trajectory, from the rewards of its siblings."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def grpo(rewards: Tensor, groups: Tensor, *, normalize_std: bool = True, eps: float = 1e-6) -> Tensor:
    """A_i = (r_i - mean of its group) / (sample std of its group + eps); without the division if not `normalize_std`.

    `rewards` [N] and `groups` [N] (integer ids in any order) give [N]. A group of one, and a group whose rewards are
    all equal, have advantage exactly 0. Shao et al. 2024 (arXiv 2402.03300); without std: Liu et al. 2025 (2503.20783).
    """
    deviation, ids, size = _deviations(rewards, groups)
    if normalize_std:
        variance = _group_sum(deviation.square(), ids, size) / (size - 1).clamp(min=1)
        deviation = deviation / (variance.sqrt()[ids] + eps)
    return deviation.to(_float_type(rewards))


def rloo(rewards: Tensor, groups: Tensor) -> Tensor:
    """A_i = r_i - mean of its siblings' rewards, itself left out: n / (n - 1) times its deviation from the group mean.

    Shapes as in `grpo`. A group of one has no siblings and gets 0. Ahmadian et al. 2024 (arXiv 2402.14740).
    """
    deviation, ids, size = _deviations(rewards, groups)
    return (deviation * (size / (size - 1).clamp(min=1))[ids]).to(_float_type(rewards))


def _deviations(rewards: Tensor, groups: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Each reward minus its group's mean [N], its group's index [N] below G, and the group sizes [G]; in float64."""
    _, ids, counts = torch.unique(groups, return_inverse=True, return_counts=True)
    values, size = rewards.double(), counts.double()
    mean = _group_sum(values, ids, size) / size
    bounds = torch.zeros(len(size), dtype=torch.float64, device=rewards.device)
    highest = bounds.scatter_reduce(0, ids, values, "amax", include_self=False)
    lowest = bounds.scatter_reduce(0, ids, values, "amin", include_self=False)
    # Rounding of the mean must not be blown up by a division by eps.
    return (values - mean[ids]).masked_fill((highest == lowest)[ids], 0.0), ids, size


def _group_sum(values: Tensor, ids: Tensor, size: Tensor) -> Tensor:
    return torch.zeros(len(size), dtype=values.dtype, device=values.device).index_add(0, ids, values)


def _float_type(rewards: Tensor) -> torch.dtype:
    return rewards.dtype if rewards.is_floating_point() else torch.float32


ESTIMATORS: dict[str, Callable[..., Tensor]] = {"grpo": grpo, "rloo": rloo}

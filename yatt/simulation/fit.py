"""What a phase of a real run took, as a sum of terms."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from yatt.placement.fit import least_squares

VARIES = 0.1
"""A quantity whose standard deviation is under this share of its mean cannot be told from a constant."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseFit:
    """One phase as a sum of terms. `terms` are seconds per unit; those that could not be told apart are in
    `unidentified` and count as 0. `residual` is the root mean square error as a share of the mean."""

    phase: str
    mean: float
    residual: float
    terms: Mapping[str, float]
    unidentified: tuple[str, ...]


def fitted(phase: str, seconds: Sequence[float], work: Sequence[Mapping[str, float]]) -> PhaseFit:
    """Non-negative least squares, without the terms that do not vary. Where that is the first one, the phase's own
    work, it stands for the constant, "fixed"; so it does where there is none: a rollout of no token takes no time."""
    y, names = np.asarray(seconds), list(work[0])
    columns = np.array([[w[name] for name in names] for w in work])
    means = columns.mean(axis=0)
    varies = columns.std(axis=0) > VARIES * means
    constant = names.index("fixed") if varies[0] and "fixed" in names else 0
    kept = [i for i in range(len(names)) if varies[i] or i == constant]
    coefficients = np.zeros(len(names))
    coefficients[kept] = least_squares(columns[:, kept], y)
    error = math.sqrt(float(np.mean((columns @ coefficients - y) ** 2)))
    return PhaseFit(
        phase=phase,
        mean=float(y.mean()),
        residual=error / float(y.mean()) if y.mean() > 0 else 0.0,
        terms={name: float(value) for name, value in zip(names, coefficients, strict=True)},
        unidentified=tuple(name for name, value in zip(names, coefficients, strict=True) if value == 0),
    )

"""A sum of terms with costs of at least 0, fitted to seconds that were measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

VARIES = 0.1
"""A quantity whose standard deviation is under this share of its mean cannot be told from a constant."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """One phase as a sum of terms. `terms` are seconds per unit; those that could not be told apart are in
    `unidentified` and count as 0. `residual` is the root mean square error as a share of the mean."""

    phase: str
    mean: float
    residual: float
    terms: Mapping[str, float]
    unidentified: tuple[str, ...]


def fitted(phase: str, seconds: Sequence[float], work: Sequence[Mapping[str, float]]) -> Fit:
    """Non-negative least squares, without the terms that do not vary. Where that is the first one, the phase's own
    work, it stands for the constant, "fixed"; so it does where there is none: a rollout of no token takes no time."""
    y, names = np.asarray(seconds), list(work[0])
    columns = np.array([[w[name] for name in names] for w in work])
    means = columns.mean(axis=0)
    varies = columns.std(axis=0) > VARIES * means
    constant = names.index("fixed") if varies[0] and "fixed" in names else 0
    kept = [i for i in range(len(names)) if varies[i] or i == constant]
    coefficients = np.zeros(len(names))
    coefficients[kept] = nnls(columns[:, kept] / means[kept], y) / means[kept]
    error = math.sqrt(float(np.mean((columns @ coefficients - y) ** 2)))
    return Fit(
        phase=phase,
        mean=float(y.mean()),
        residual=error / float(y.mean()) if y.mean() > 0 else 0.0,
        terms={name: float(value) for name, value in zip(names, coefficients, strict=True)},
        unidentified=tuple(name for name, value in zip(names, coefficients, strict=True) if value == 0),
    )


def nnls(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """argmin |a x - b| over x >= 0: [M, N], [M] -> [N].

    The active-set method of Lawson and Hanson (Solving Least Squares Problems, 1974, chapter 23).
    """
    x, free = np.zeros(a.shape[1]), np.zeros(a.shape[1], dtype=bool)
    gradient = a.T @ b
    tolerance = 1e-10 * max(1.0, float(np.abs(gradient).max()))
    for _ in range(3 * a.shape[1]):
        if free.all() or gradient[~free].max() <= tolerance:
            break
        free[np.argmax(np.where(free, -np.inf, gradient))] = True
        while True:
            best = np.zeros_like(x)
            best[free] = np.linalg.lstsq(a[:, free], b, rcond=None)[0]
            over = free & (best <= 0)
            if not over.any():
                break
            x += (x[over] / (x[over] - best[over])).min() * (best - x)
            free &= x > 1e-14
        x = best
        gradient = a.T @ (b - a @ x)
    return x

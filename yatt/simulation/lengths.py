"""How long responses become: a function of the run's seed and the response's key alone."""

from __future__ import annotations

import math
from hashlib import blake2b
from statistics import NormalDist

from yatt.simulation.costs import Workload
from yatt.types import SampleKey

_NORMAL = NormalDist()


def uniform(*words: object) -> float:
    """A number in (0, 1) that depends on the words alone: 53 bits of their hash, never 0 or 1."""
    digest = blake2b(repr(words).encode(), digest_size=8).digest()
    return ((int.from_bytes(digest, "big") >> 11) + 0.5) / 2**53


class LengthModel:
    """Response lengths of the step that `step` names: lognormal by median and 99th percentile, at least 1, not yet cut
    at `rollout.max_tokens`. A workload with an entry per step replays a trace."""

    def __init__(self, workload: Workload, seed: int) -> None:
        self._workload = workload
        self._seed = seed
        self.step = 1

    def __call__(self, key: SampleKey) -> int:
        """The tokens of this response, however often it is moved from engine to engine."""
        lengths = self._workload.lengths(self.step)
        deviate = _NORMAL.inv_cdf(uniform(self._seed, "length", key.uid, key.sibling))
        return max(1, round(lengths.median * math.exp(lengths.sigma * deviate)))

"""How long responses and judgements become: a function of the run's seed and the request's key alone."""

from __future__ import annotations

import math
from hashlib import blake2b
from statistics import NormalDist

from yatt.placement.plan import POLICY
from yatt.simulation.costs import Trace, of_step
from yatt.types import SampleKey

_NORMAL = NormalDist()


def uniform(*words: object) -> float:
    """A number in (0, 1) that depends on the words alone: 53 bits of their hash, never 0 or 1."""
    digest = blake2b(repr(words).encode(), digest_size=8).digest()
    return ((int.from_bytes(digest, "big") >> 11) + 0.5) / 2**53


class LengthModel:
    """Lengths of what a role writes in the step that `step` names: lognormal by median and 99th percentile, at least 1,
    not yet cut at the most it may write. A trace with an entry per step is replayed. Each of the `turns` of a
    conversation has its share of them."""

    def __init__(self, trace: Trace, seed: int, role: str = POLICY, turns: int = 1) -> None:
        self._trace, self._seed, self._turns = trace, seed, turns
        self._word = "length" if role == POLICY else f"length of {role}"
        self.step = 1

    def __call__(self, key: SampleKey) -> int:
        """The tokens of this answer, however often it is moved from engine to engine."""
        lengths = of_step(self._trace, self.step)
        deviate = _NORMAL.inv_cdf(uniform(self._seed, self._word, key.uid, key.sibling))
        return max(1, round(lengths.median * math.exp(lengths.sigma * deviate) / self._turns))

"""From samples to ranks: lengths are gathered, everyone computes the same partition, each sample is sent once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from yatt.balance import QUADRATIC, assign
from yatt.protocols import Peers
from yatt.types import Denominator, Sample, SampleKey, Share


class Exchange:
    """Spreads the samples of all controllers over the data-parallel ranks.

    `updates` optimizer updates per step, `budget` tokens per micro-batch; a sample costs its tokens plus `quadratic`
    times their square. The result depends on the samples alone, not on which controller holds them: they are put in
    the order of their keys first.
    """

    def __init__(self, peers: Peers, *, ranks: int, updates: int, budget: int, quadratic: float = QUADRATIC) -> None:
        self._peers = peers
        self._ranks = ranks
        self._updates = updates
        self._budget = budget
        self._quadratic = quadratic

    async def balance(self, step: int, samples: Sequence[Sample]) -> list[Share]:
        """One share per data-parallel rank. Collective; waits for every controller's lengths."""
        mine = np.array(
            [(*sample.key, len(sample.tokens), sample.trained_tokens) for sample in samples], dtype=np.int64
        ).reshape(-1, 4)
        everyone = np.concatenate(await self._peers.all_gather(f"lengths/{step}", mine))
        everyone = everyone[np.lexsort((everyone[:, 1], everyone[:, 0]))]
        plan = assign(
            everyone[:, 2].tolist(),
            ranks=self._ranks,
            updates=self._updates,
            budget=self._budget,
            quadratic=self._quadratic,
        )
        held = {sample.key: sample for sample in samples}
        owned = [held.get(SampleKey(int(uid), int(sibling))) for uid, sibling in everyone[:, :2]]
        denominators = tuple(self._denominator(everyone, update) for update in plan)
        return [
            Share(
                step=step,
                controller=self._peers.index,
                updates=tuple(
                    tuple(tuple(s for s in (owned[i] for i in micro) if s is not None) for micro in update[rank])
                    for update in plan
                ),
                denominators=denominators,
            )
            for rank in range(self._ranks)
        ]

    @staticmethod
    def _denominator(everyone: np.ndarray, update: Sequence[Sequence[Sequence[int]]]) -> Denominator:
        indices = [i for rank in update for micro in rank for i in micro]
        trained = everyone[indices, 3]
        return Denominator(tokens=int(trained.sum()), sequences=int((trained > 0).sum()))

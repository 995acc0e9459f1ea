"""From samples to ranks: lengths are gathered, everyone computes the same assignment, each sample is sent once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from yatt import balance
from yatt.balance import Assignment
from yatt.protocols import Peers
from yatt.types import Denominator, Pair, Sample, Share


class Exchange:
    """Spreads the samples of all controllers over the data-parallel ranks.

    `updates` optimizer updates per step, `budget` tokens per micro-batch, `stages` of the pipeline; a sequence costs
    its tokens plus `quadratic` times their square, a sample what its sequences cost. `node` is where this controller
    stands, `rank_nodes` [ranks] where the ranks do. Samples are put in the order of their keys first, so the result
    does not depend on which controller holds them; where ranks stand on several nodes, only which rank trains which
    part does. `assign` is pure: a runtime with all controllers in one process may pass one that remembers.
    """

    def __init__(
        self,
        peers: Peers,
        *,
        ranks: int,
        updates: int,
        budget: int,
        quadratic: float,
        stages: int = 1,
        node: str = "",
        rank_nodes: Sequence[str] | None = None,
        assign: Callable[..., Assignment] = balance.assign,
    ) -> None:
        self._peers = peers
        self._node = node
        self._ranks = ranks
        self._updates = updates
        self._limits = dict(ranks=ranks, budget=budget, quadratic=quadratic, stages=stages)
        self._rank_nodes = rank_nodes
        self._assign = assign

    async def balance(
        self,
        step: int,
        samples: Sequence[Sample | Pair],
        *,
        work: Literal["update", "evaluate", "reference"] = "update",
    ) -> list[Share]:
        """One share for each data-parallel rank that gets some of these samples, in the order of the ranks; from
        controller 0 also an empty one for each that nobody has any for, and one in any case, so that it hears when the
        ranks have done. Only what is to be trained is divided into updates. Collective; waits for every controller's
        lengths."""
        rows = [(*sample.key, *_tokens(sample), sample.trained_tokens) for sample in samples]
        mine = [_narrow(column) for column in np.array(rows, dtype=np.int64).reshape(-1, 5).T]
        tag = f"lengths/{step}" if work == "update" else f"lengths/{work}/{step}"
        tables, nodes = zip(*await self._peers.all_gather(tag, (mine, self._node)), strict=True)
        uid, sibling, tokens, seconds, trained = (np.concatenate(c).astype(np.int64) for c in zip(*tables, strict=True))
        counts = [len(table[0]) for table in tables]
        order = np.lexsort((sibling, uid))
        owner = np.repeat(np.arange(len(tables)), counts)[order]
        plan = self._assign(
            tokens[order],
            updates=self._updates if work == "update" else 1,
            seconds=seconds[order],
            holders=np.array(nodes)[owner],
            rank_nodes=self._rank_nodes,
            **self._limits,
        )
        sends = np.zeros((len(tables), self._ranks), dtype=bool)
        sends[owner, plan.rank] = True
        sends[0] |= ~sends.any(axis=0)
        sends[0, 0] |= not sends[0].any()
        me = self._peers.index
        held = np.flatnonzero(owner == me)
        laid = _lay_out(plan, held, [samples[i] for i in order[held] - sum(counts[:me])], sends[me])
        denominators = _denominators(plan, trained[order])
        return [
            Share(
                step=step,
                rank=rank,
                controller=me,
                senders=tuple(np.flatnonzero(sends[:, rank]).tolist()),
                updates=tuple(tuple(tuple(micro) for micro in update) for update in updates),
                denominators=denominators,
            )
            for rank, updates in laid.items()
        ]


def _tokens(sample: Sample | Pair) -> tuple[int, int]:
    """All of them, and those of a pair's first sequence."""
    lengths = [len(sequence.tokens) for sequence in sample.sequences]
    return sum(lengths), lengths[0] if isinstance(sample, Pair) else 0


def _narrow(column: np.ndarray) -> np.ndarray:
    """The same numbers, none below 0, in as few bytes as hold them: everyone is sent everyone's."""
    return column.astype(np.min_scalar_type(int(column.max(initial=0))))


def _lay_out(
    plan: Assignment, held: np.ndarray, samples: Sequence[Sample | Pair], mine: np.ndarray
) -> dict[int, list[list[list[Sample | Pair]]]]:
    """[update][micro-batch] -> samples, of each rank of `mine` [ranks]; `held` are the samples' places."""
    laid: dict[int, list[list[list[Sample | Pair]]]] = {
        rank: [[[] for _ in range(count)] for count in plan.micros] for rank in np.flatnonzero(mine).tolist()
    }
    places = (plan.rank[held].tolist(), plan.update[held].tolist(), plan.micro[held].tolist())
    for sample, rank, update, micro in zip(samples, *places, strict=True):
        laid[rank][update][micro].append(sample)
    return laid


def _denominators(plan: Assignment, trained: np.ndarray) -> tuple[Denominator, ...]:
    """Trained tokens of each update, and sequences that have any."""
    updates = len(plan.micros)
    tokens = np.zeros(updates, dtype=np.int64)
    np.add.at(tokens, plan.update, trained)
    sequences = np.bincount(plan.update[trained > 0], minlength=updates)
    return tuple(Denominator(tokens=int(t), sequences=int(s)) for t, s in zip(tokens, sequences, strict=True))

"""From samples to ranks: lengths are gathered, everyone computes the same assignment, each sample is sent once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from yatt import balance
from yatt.balance import Assignment
from yatt.protocols import Peers
from yatt.types import Denominator, Pair, Sample, Share

Column = npt.NDArray[np.int64]
Work = Literal["update", "evaluate", "reference"]


class Assign(Protocol):
    """`balance.assign`, or one that remembers: a runtime with all controllers in one process need not compute the same
    assignment for each."""

    def __call__(
        self,
        tokens: Column,
        /,
        *,
        ranks: int,
        updates: int,
        budget: int,
        quadratic: float,
        stages: int,
        seconds: Column,
        holders: npt.NDArray[np.str_],
        rank_nodes: Sequence[str] | None,
    ) -> Assignment: ...


class Exchange:
    """Spreads the samples of all controllers over the data-parallel ranks.

    `updates` optimizer updates per step, `budget` tokens per micro-batch, `stages` of the pipeline; a sequence costs
    its tokens plus `quadratic` times their square, a sample what its sequences cost. `node` is where this controller
    stands, `rank_nodes` [ranks] where the ranks do. Samples are put in the order of their keys first, so the result
    does not depend on which controller holds them; where ranks stand on several nodes, only which rank trains which
    part does.
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
        assign: Assign = balance.assign,
    ) -> None:
        self._peers = peers
        self._node = node
        self._ranks = ranks
        self._updates = updates
        self._budget = budget
        self._quadratic = quadratic
        self._stages = stages
        self._rank_nodes = rank_nodes
        self._assign = assign

    async def balance(
        self,
        step: int,
        samples: Sequence[Sample | Pair],
        *,
        work: Work = "update",
    ) -> list[Share]:
        """One share for each data-parallel rank that gets some of these samples, in the order of the ranks; from
        controller 0 also an empty one for each that nobody has any for, and one in any case, so that it hears when the
        ranks have done. Only what is to be trained is divided into updates. Collective; waits for every controller's
        lengths."""
        everyone = await self._gather_lengths(step, samples, work)
        order = np.lexsort((everyone.turn, everyone.sibling, everyone.uid))
        owner = everyone.owner[order]
        plan = self._assign(
            everyone.tokens[order],
            ranks=self._ranks,
            updates=self._updates if work == "update" else 1,
            budget=self._budget,
            quadratic=self._quadratic,
            stages=self._stages,
            seconds=everyone.seconds[order],
            holders=np.array(everyone.nodes)[owner],
            rank_nodes=self._rank_nodes,
        )
        index = self._peers.index
        sends = _senders(plan, owner, controllers=len(everyone.nodes), ranks=self._ranks)
        places = np.flatnonzero(owner == index)  # of this controller's samples in the plan
        first = int(np.searchsorted(everyone.owner, index))
        own_samples = [samples[i] for i in order[places] - first]
        laid_out = _lay_out(plan, places, own_samples, sends[index])
        denominators = _denominators(plan, everyone.trained[order])
        return [
            Share(
                step=step,
                rank=rank,
                controller=index,
                senders=tuple(np.flatnonzero(sends[:, rank]).tolist()),
                updates=tuple(tuple(tuple(micro) for micro in update) for update in updates),
                denominators=denominators,
            )
            for rank, updates in laid_out.items()
        ]

    async def _gather_lengths(self, step: int, samples: Sequence[Sample | Pair], work: Work) -> _Lengths:
        """The lengths of all controllers' samples, controller by controller. Collective."""
        rows = [(*sample.key, *_tokens(sample), sample.trained_tokens) for sample in samples]
        columns = [_narrow(column) for column in np.array(rows, dtype=np.int64).reshape(-1, 6).T]
        tag = f"lengths/{step}" if work == "update" else f"lengths/{work}/{step}"
        gathered = await self._peers.all_gather(tag, (columns, self._node))
        tables = [columns for columns, _ in gathered]
        uid, sibling, turn, tokens, seconds, trained = (
            np.concatenate(column).astype(np.int64) for column in zip(*tables, strict=True)
        )
        return _Lengths(
            uid=uid,
            sibling=sibling,
            turn=turn,
            tokens=tokens,
            seconds=seconds,
            trained=trained,
            owner=np.repeat(np.arange(len(tables)), [len(columns[0]) for columns in tables]),
            nodes=[node for _, node in gathered],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Lengths:
    """One row per sample of any controller: its key, its tokens, those of a pair's first sequence, and those trained;
    and the controller that has it. `nodes` are the controllers'."""

    uid: Column
    sibling: Column
    turn: Column
    tokens: Column
    seconds: Column
    trained: Column
    owner: Column
    nodes: list[str]


def _senders(plan: Assignment, owner: Column, *, controllers: int, ranks: int) -> npt.NDArray[np.bool_]:
    """[controllers, ranks] Which controller sends a share to which rank. Controller 0 sends one, empty, where nobody
    else does, and one in any case."""
    sends = np.zeros((controllers, ranks), dtype=bool)
    sends[owner, plan.rank] = True
    sends[0] |= ~sends.any(axis=0)
    sends[0, 0] |= not sends[0].any()
    return sends


def _tokens(sample: Sample | Pair) -> tuple[int, int]:
    """All of them, and those of a pair's first sequence."""
    lengths = [len(sequence.tokens) for sequence in sample.sequences]
    return sum(lengths), lengths[0] if isinstance(sample, Pair) else 0


def _narrow(column: np.ndarray) -> np.ndarray:
    """The same numbers, none below 0, in as few bytes as hold them: everyone is sent everyone's."""
    return column.astype(np.min_scalar_type(int(column.max(initial=0))))


def _lay_out(
    plan: Assignment, places: Column, samples: Sequence[Sample | Pair], sends: npt.NDArray[np.bool_]
) -> dict[int, list[list[list[Sample | Pair]]]]:
    """[update][micro-batch] -> samples, for each rank that this controller sends to (`sends` [ranks]); `places` are
    the samples' in the plan."""
    laid_out: dict[int, list[list[list[Sample | Pair]]]] = {}
    for rank in np.flatnonzero(sends).tolist():
        laid_out[rank] = [[[] for _ in range(micros)] for micros in plan.micros]
    columns = (plan.rank[places].tolist(), plan.update[places].tolist(), plan.micro[places].tolist())
    for sample, rank, update, micro in zip(samples, *columns, strict=True):
        laid_out[rank][update][micro].append(sample)
    return laid_out


def _denominators(plan: Assignment, trained: np.ndarray) -> tuple[Denominator, ...]:
    """Trained tokens of each update, and sequences that have any."""
    updates = len(plan.micros)
    tokens = np.zeros(updates, dtype=np.int64)
    np.add.at(tokens, plan.update, trained)
    sequences = np.bincount(plan.update[trained > 0], minlength=updates)
    return tuple(Denominator(tokens=int(t), sequences=int(s)) for t, s in zip(tokens, sequences, strict=True))

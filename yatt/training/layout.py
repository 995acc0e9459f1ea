"""The place of a rank among the others: which share weights, layers or data with it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist


@dataclass(frozen=True, slots=True)
class Layout:
    """The device of this rank and the groups it talks in. A backend that does not cut a model has groups of one.

    Ranks of `tp` hold shards of each matrix: rank r of n has rows [r V / n, (r + 1) V / n) of the vocabulary. Those of
    `pp` hold layers one after another; those of `dp` hold the same weights and train on other samples."""

    rank: int
    device: torch.device
    tp: dist.ProcessGroup
    pp: dist.ProcessGroup
    dp: dist.ProcessGroup

    @property
    def first_stage(self) -> bool:
        return self.pp.rank() == 0

    @property
    def last_stage(self) -> bool:
        """Whether what comes out of the model comes out here."""
        return self.pp.rank() == self.pp.size() - 1

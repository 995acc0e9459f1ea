"""Where the events of a simulated run go, for a check of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from yatt.controller.carry_over import CarriedGroup
from yatt.reports import StepReport
from yatt.types import Group, SampleKey, Score, Share


class Witness:
    """Called with the events of a run, for a check of them. This one does nothing."""

    def scored(self, key: SampleKey, score: Score) -> None: ...

    def accepted(self, step: int, groups: Sequence[Group]) -> None: ...

    def trained(self, step: int, share: Share) -> None: ...

    def reported(self, report: StepReport) -> None: ...

    def saved(self, cursor: Mapping[str, Any], carried: Sequence[CarriedGroup]) -> None: ...

    def rewound(self, step: int) -> None:
        """The run goes on from the end of `step`: what came after is done again."""

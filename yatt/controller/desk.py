"""What both kinds of controllers have in common, those that draw responses and those that learn from rows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

from yatt.controller.exchange import Exchange
from yatt.controller.recorder import Recorder
from yatt.protocols import Peers, Source, Trainer
from yatt.reports import Decision, RolloutCounts, StepReport, UpdateReport, add_counts, in_step
from yatt.types import Pair, Prompt, Sample

T = TypeVar("T", Prompt, Sample | Pair)


class Desk(Generic[T]):
    """What both kinds of controllers have: peers, a share of the data, the way to the ranks, and the policy's version.

    `quota` is this controller's part of the `batch_size` rows of a step."""

    def __init__(
        self,
        *,
        peers: Peers,
        source: Source[T],
        exchange: Exchange,
        trainer: Trainer,
        recorder: Recorder,
        batch_size: int,
    ) -> None:
        self.peers = peers
        self.source: Source[T] = source
        self.exchange = exchange
        self.trainer = trainer
        self.recorder = recorder
        self.quota = batch_size // peers.count + (peers.index < batch_size % peers.count)
        self.version = 0
        self.bad_rows = 0

    def next_version(self) -> int:
        self.version += 1
        return self.version

    async def close_step(
        self, step: int, counts: RolloutCounts, update: UpdateReport | None, *, moves_cursor: bool = True
    ) -> tuple[RolloutCounts, UpdateReport]:
        """The counts of all controllers added up, and the ranks' report, which only those heard that had something to
        send. With `moves_cursor`, the draws of all move the cursor behind them. Collective."""
        report = (self.source.drawn(), self.source.returned(), self.source.bad_rows, counts, update)
        reports = await self.peers.all_gather(f"report/{step}", report)
        drawn, returned, bad_rows, all_counts, updates = zip(*reports, strict=True)
        if moves_cursor:
            self._move_cursor(drawn, returned)
        self.bad_rows = sum(bad_rows)
        return add_counts(all_counts), next(one for one in updates if one is not None)

    async def close_source(self, tag: str) -> None:
        """The draws of all controllers, and what they gave back, move the cursor. Collective."""
        draws = await self.peers.all_gather(f"drawn/{tag}", (self.source.drawn(), self.source.returned()))
        self._move_cursor(*zip(*draws, strict=True))

    def _move_cursor(self, drawn: Sequence[int], returned: Sequence[Sequence[int]]) -> None:
        self.source.end_step(drawn, [uid for uids in returned for uid in uids])

    def report(
        self,
        step: int,
        counts: RolloutCounts | None,
        update: UpdateReport,
        generators: int = 0,
        decisions: tuple[Decision, ...] = (),
    ) -> StepReport:
        """The report of a step that is closed, with the spans recorded since the last one."""
        spans = self.recorder.take()
        of_step = in_step(spans)
        phases: defaultdict[str, float] = defaultdict(float)
        for span in of_step:
            phases[span.name] += span.stop - span.start
        return StepReport(
            step=step,
            epoch=self.source.epoch,
            policy_version=self.version,
            controllers=self.peers.count,
            counts=counts,
            update=update,
            phases=dict(phases),
            spans=spans,
            seconds=max(span.stop for span in of_step) - min(span.start for span in of_step),
            bad_rows=self.bad_rows,
            generators=generators,
            decisions=decisions,
        )

    def state(self) -> dict[str, Any]:
        return {"policy_version": self.version, "source": self.source.state()}

    def restore(self, state: dict[str, Any]) -> None:
        self.version = state["policy_version"]
        self.source.restore(state["source"])

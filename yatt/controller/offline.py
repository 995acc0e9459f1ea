"""The controller of algorithms that learn from rows: no rollouts, no engines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from yatt.controller.carry_over import CarriedGroup
from yatt.controller.desk import Desk
from yatt.controller.reference_rows import PrecomputedReference
from yatt.intervals import wilson
from yatt.reports import EvaluationReport, RolloutCounts, StepReport, UpdateReport
from yatt.types import Pair, Sample


class OfflineController:
    """The same program with rows to learn from in place of rollouts. `held_out` is this controller's share of the rows
    that are evaluated and never trained on. With a `reference`, its logprobs of all rows are asked beforehand."""

    def __init__(
        self,
        *,
        desk: Desk[Sample | Pair],
        held_out: Sequence[Sample | Pair] = (),
        reference: PrecomputedReference | None = None,
    ) -> None:
        self.desk = desk
        self.held_out = held_out
        self._reference = reference
        self.on_rows: Callable[[int, Sequence[Sample | Pair]], object] = lambda step, rows: None

    async def prepare(self) -> int:
        """Ask the reference about some rows more; returns how many those were, 0 when nothing is left to do.
        Collective; to be called until then, while the ranks have the weights that the run starts from."""
        if self._reference is None:
            return 0
        rows = await self._reference.advance()
        if not rows:
            self.held_out = self._reference.held_out
        return rows

    async def step(self, step: int) -> StepReport:
        phase = self.desk.recorder.phase
        async with phase("data"):
            self.desk.source.begin_step()
            draws = [self.desk.source.draw() for _ in range(self.desk.quota)]
            samples = [sample for sample in draws if sample is not None]
        async with phase("balance"):
            shares = await self.desk.exchange.balance(step, samples)
        async with phase("train"):
            update = await self.desk.trainer.update(shares)
        self.desk.next_version()
        async with phase("report"):
            self.on_rows(step, samples)
            _, update = await self.desk.close_step(step, RolloutCounts(), update)
        return self.desk.report(step, None, update)

    async def evaluate(self, step: int) -> EvaluationReport:
        """Loss, and accuracy of pairs, on the held-out rows of all controllers. The same report on every controller.
        Collective."""
        shares = await self.desk.exchange.balance(step, self.held_out, work="evaluate")
        result = (len(self.held_out), await self.desk.trainer.evaluate(shares))
        results = await self.desk.peers.all_gather(f"evaluate/{step}", result)
        count = sum(rows for rows, _ in results)
        update: UpdateReport = next(update for _, update in results if update is not None)
        accuracy = update.numbers.get("pair_accuracy")
        return EvaluationReport(
            prompts=count,
            accuracy_greedy=None,
            accuracy_sampled=None,
            loss=update.loss,
            pair_accuracy=accuracy,
            intervals={} if accuracy is None else {"pair_accuracy": wilson(accuracy * count, count)},
        )

    async def state(self) -> tuple[dict[str, Any], list[CarriedGroup]]:
        return self.desk.state(), []

    async def restore(self, state: dict[str, Any], carried: Sequence[CarriedGroup] = ()) -> None:
        self.desk.restore(state)

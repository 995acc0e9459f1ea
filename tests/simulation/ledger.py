"""What happened in a run, and whether it was right: invariants as plain functions over what was written down.

Steps that were redone after a death count as they were done last.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from yatt.algorithm.filter import Filter
from yatt.config.schema import Config
from yatt.controller.carry_over import CarriedGroup
from yatt.reports import StepReport
from yatt.reward.filter import load_filter
from yatt.simulation.costs import Costs
from yatt.simulation.simulate import SimulationReport, simulate
from yatt.simulation.witness import Witness
from yatt.types import Group, SampleKey, Score, Share

Runs = tuple[tuple[int, int], ...]
"""(tokens, policy version) of each stretch of a response, in order."""


@dataclass(slots=True)
class StepBook:
    """One step: what each controller accepted, and what each rank trained."""

    accepted: list[tuple[SampleKey, Runs, Runs]] = field(default_factory=list)  # what spans say, what tokens say
    trained: list[tuple[SampleKey, int, Runs]] = field(default_factory=list)  # rank, what tokens say
    sequences: list[int] = field(default_factory=list)  # each update's denominator


class Ledger(Witness):
    """Written during a run. Tokens are version numbers (see `Drawing.completion`), so that a response says itself what
    sampled it."""

    def __init__(self) -> None:
        self.steps: dict[int, StepBook] = defaultdict(StepBook)
        self.reports: dict[int, StepReport] = {}
        self.scores: dict[SampleKey, Score] = {}
        self.cursor: Mapping[str, Any] = {}
        self.carried: Sequence[CarriedGroup] = ()

    def accepted(self, step: int, groups: Sequence[Group]) -> None:
        for group in groups:
            for t in group.trajectories:
                spans = tuple((span.stop - span.start, span.version) for span in t.spans)
                self.steps[step].accepted.append(
                    (SampleKey(group.prompt.uid, t.sibling), merged(spans), runs(t.tokens[t.loss_mask]))
                )

    def trained(self, step: int, share: Share) -> None:
        book = self.steps[step]
        book.sequences = [d.sequences for d in share.denominators]
        for update in share.updates:
            for micro in update:
                book.trained += [(s.key, share.rank, runs(s.tokens[s.loss_mask])) for s in micro]

    def scored(self, key: SampleKey, score: Score) -> None:
        self.scores[key] = score

    def reported(self, report: StepReport) -> None:
        self.reports[report.step] = report

    def saved(self, cursor: Mapping[str, Any], carried: Sequence[CarriedGroup]) -> None:
        self.cursor, self.carried = cursor, carried

    def rewound(self, step: int) -> None:
        for later in [s for s in self.steps if s > step]:
            del self.steps[later]
        for later in [s for s in self.reports if s > step]:
            del self.reports[later]


def runs(versions: np.ndarray) -> Runs:
    """Equal neighbours together."""
    edges = [0, *(np.flatnonzero(np.diff(versions)) + 1).tolist(), len(versions)]
    return tuple((b - a, int(versions[a])) for a, b in pairwise(edges) if b > a)


def merged(stretches: Runs) -> Runs:
    """Stretches of one version together: a response that was moved has two spans of one version."""
    whole: list[tuple[int, int]] = []
    for tokens, version in stretches:
        if whole and whole[-1][1] == version:
            whole[-1] = (whole[-1][0] + tokens, version)
        elif tokens:
            whole.append((tokens, version))
    return tuple(whole)


def untrained_or_twice(ledger: Ledger) -> list[str]:
    """Every accepted group is trained exactly once: in its step, whole, on one rank each, and in no other step."""
    wrong, seen = [], Counter[int]()
    for step, book in sorted(ledger.steps.items()):
        accepted = Counter(key for key, _, _ in book.accepted)
        trained = Counter(key for key, _, _ in book.trained)
        for key in sorted((accepted | trained).keys()):
            if (accepted[key], trained[key]) != (1, 1):
                wrong.append(f"step {step}: {key} was accepted {accepted[key]} times, trained {trained[key]} times")
        if sum(book.sequences) != len(book.trained):
            wrong.append(f"step {step}: losses are divided by {sum(book.sequences)} of {len(book.trained)} sequences")
        seen.update({key.uid for key in trained})
    return wrong + [f"group {uid} was trained in {count} steps" for uid, count in sorted(seen.items()) if count > 1]


def lost(ledger: Ledger, siblings: int, drop: Filter, *, greedy: bool = False) -> list[str]:
    """Every position behind the cursor was trained whole, is carried over, or had scores that the filter drops. With
    `greedy`, one response more, the last, gives what siblings are compared with: it must have a score."""
    trained = Counter(key.uid for book in ledger.steps.values() for key, _, _ in book.trained)
    carried = {group.uid for group in ledger.carried}
    holes = set(ledger.cursor["holes"])
    wrong = [f"group {uid} was trained and is offered again" for uid in sorted(trained.keys() & holes)]
    for uid in range(ledger.cursor["next"]):
        if uid in holes:
            continue
        scores = [ledger.scores.get(SampleKey(uid, s)) for s in range(siblings)]
        values = [score.value for score in scores if score is not None and score.value is not None]
        baseline = ledger.scores.get(SampleKey(uid, siblings))
        enough = bool(values) and baseline is not None and baseline.value is not None if greedy else len(values) >= 2
        good = enough and not drop(values)
        if good != (uid in trained or uid in carried):
            what = "trained or carried" if uid in trained or uid in carried else "lost"
            wrong.append(f"group {uid} was {what} with rewards {values}")
        if uid in trained and trained[uid] != len(values):
            wrong.append(f"group {uid}: {trained[uid]} of {len(values)} scored siblings were trained")
    return wrong


def off_quota(ledger: Ledger, batch: int) -> list[str]:
    """Every step trains its quota, less what its report says is missing."""
    wrong = []
    for step, report in sorted(ledger.reports.items()):
        groups = len({key.uid for key, _, _ in ledger.steps[step].trained})
        counts = report.counts
        if counts is None or counts.groups + counts.groups_missing != batch or groups != counts.groups:
            said = f"{counts.groups} groups, {counts.groups_missing} missing" if counts else "nothing"
            wrong.append(f"step {step} trained {groups} of {batch} groups; it says {said}")
    return wrong


def wrong_versions(ledger: Ledger, max_staleness: int) -> list[str]:
    """Spans say what sampled each token, from the controller to the rank, and none is older or newer than allowed."""
    wrong = []
    for step, book in sorted(ledger.steps.items()):
        trained = {key: versions for key, _, versions in book.trained}
        for key, said, true in book.accepted:
            if not said == true == trained.get(key, true):
                wrong.append(f"step {step}: {key} says {said}, was sampled under {true}, trained {trained.get(key)}")
            if stale := [v for _, v in true if not step - 1 - max_staleness <= v <= step - 1]:
                wrong.append(f"step {step}: {key} has tokens of versions {stale}; the policy's is {step - 1}")
    return wrong


def unfinished(ledger: Ledger, last: int, steps: int) -> list[str]:
    """The run ends, and every step of it has a report of the right version."""
    wrong = [] if last == steps else [f"the run ended at step {last} of {steps}"]
    if sorted(ledger.reports) != list(range(1, steps + 1)):
        wrong.append(f"there are reports of steps {sorted(ledger.reports)}")
    return wrong + [
        f"step {step} left policy version {report.policy_version}"
        for step, report in sorted(ledger.reports.items())
        if report.policy_version != step
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Audited:
    """A run and all that is wrong with it, in words."""

    report: SimulationReport
    wrong: tuple[str, ...]

    @property
    def happened(self) -> set[str]:
        """What its events were."""
        return {event[2] for event in self.report.events}


def audited(config: Config, costs: Costs, *, steps: int, **options: Any) -> Audited:
    """`simulate`, with every invariant checked."""
    ledger = Ledger()
    report = simulate(config, costs, steps=steps, witness=ledger, events=True, **options)
    wrong = (
        *unfinished(ledger, report.last, steps),
        *untrained_or_twice(ledger),
        *lost(ledger, config.rollout.n, load_filter(config.rollout), greedy=config.algorithm.name == "remax"),
        *off_quota(ledger, config.train.batch_size),
        *wrong_versions(ledger, config.rollout.max_staleness),
    )
    return Audited(report=report, wrong=wrong)

"""Reports: numbers of a step, of an evaluation, and when each process did what. Nothing here grows with the batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import islice
from typing import Literal

from yatt.moments import Moments

Interval = tuple[float, float]
"""A 95 % confidence interval: its ends."""
FAILURES, FAILURE_LENGTH = 3, 240
"""How many texts on failed rewards a step tells of, and how long each may be."""


@dataclass(frozen=True, slots=True)
class Probed:
    """What the trainer makes of a few fixed token ids: after each of them, the log-probability of the likeliest next
    one."""

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateReport:
    """A step's updates: global numbers, the same on every rank. `numbers` are those that only some algorithms have,
    such as `critic_loss` or `pair_accuracy`, by the names under which metrics show them.

    `kl` and the gaps compare the sampler's log-probabilities with the trainer's before the first update; they are not a
    number where nothing was compared. `fresh_gap_mean` is that of the `fresh_tokens`, which were sampled from the
    weights that the trainer had then: what is left of it is rounding.
    """

    loss: float
    grad_norm: float
    learning_rate: float
    entropy: float = 0.0
    kl: float = 0.0
    kl_ref: float = 0.0
    clip_fraction: float = 0.0
    rollout_gap_max: float = 0.0
    rollout_gap_mean: float = 0.0
    fresh_gap_mean: float = 0.0
    fresh_tokens: int = 0
    trained_tokens: int = 0
    skipped_updates: int = 0
    numbers: Mapping[str, float] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseSpan:
    """A named stretch of wall time on one process: seconds since the epoch, by its node's clock.

    `role` says what the process is there for, `slots` which devices it lives on; controllers and the driver have
    neither. `counts` are numbers of what was done in that time, such as requests and tokens.

    A controller is in one phase of the step after another. Spans of name MOVE are within one, or within an evaluation:
    slots changed hands. `in_step` leaves them out.
    """

    name: str
    actor: str
    start: float
    stop: float
    role: str = ""
    slots: tuple[int, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)


MOVE = "move"
"""The name of a span in which slots change hands."""


def in_step(spans: Iterable[PhaseSpan]) -> list[PhaseSpan]:
    """Of all spans there are, the controllers' phases of the step, which together are the step."""
    return [span for span in spans if not span.slots and span.actor != "driver" and span.name != MOVE]


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """An action of the placement policy; `text` is one line of what was measured, predicted and done. `slots` are those
    of each role from `at` on (seconds since the epoch, by the leader's clock)."""

    at: float
    text: str
    slots: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Incident:
    """What happened to a process of the run, or was done about it, in words; `at` seconds since the epoch, by the
    driver's clock. The process "run" are all ranks and controllers together."""

    at: float
    process: str
    kind: Literal["silent", "died", "back", "given up"]
    text: str

    @property
    def line(self) -> str:
        """In words, with the process."""
        return self.text if self.text.startswith(self.process) else f"{self.process}: {self.text}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutCounts:
    """Numbers of one step's rollout on one controller; they add up over controllers.

    `groups` are those the step trains on, `groups_carried` of them kept from an earlier step, the rewards of
    `groups_equal` of them all equal; `groups_missing` what the quota lacked in the end. Of `groups_dropped`,
    `groups_unscored` had too few rewards, and the filter took the others. `groups_surplus` were good but came after the
    quota was full. Groups aborted, and surplus too stale to carry over, are `groups_wasted` with their `tokens_wasted`;
    their prompts are offered again.

    `responses` are all that were drawn, of which `scored` count among the rewards, whose ends are `reward_min` and
    `reward_max`; greedy ones do not. `reward_deviations` is the sum of their squared deviations from their mean.
    `masked` are those of `groups` left out of training for their length. `part_sums` of the scored responses' parts
    have `part_counts` beside them, the responses that have the part: not all need to. `response_lengths` is a histogram
    of the responses' tokens (`yatt/histogram.py`). `failures` says why the first rewards failed: FAILURES texts at
    most, each of FAILURE_LENGTH characters at most.
    """

    groups: int = 0
    groups_dropped: int = 0
    groups_unscored: int = 0
    groups_equal: int = 0
    groups_missing: int = 0
    groups_carried: int = 0
    groups_surplus: int = 0
    groups_wasted: int = 0
    tokens_wasted: int = 0
    media_bytes: int = 0
    refills: int = 0
    reward_failures: int = 0
    reward_timeouts: int = 0
    responses: int = 0
    scored: int = 0
    truncated: int = 0
    masked: int = 0
    response_tokens: int = 0
    prompt_tokens: int = 0
    reward_sum: float = 0.0
    reward_deviations: float = 0.0
    reward_min: float | None = None
    reward_max: float | None = None
    longest_response: int = 0
    part_sums: Mapping[str, float] = field(default_factory=dict)
    part_counts: Mapping[str, int] = field(default_factory=dict)
    conversations: int = 0
    turns: int = 0
    tool_calls: int = 0
    tool_failures: int = 0
    cache_hits: int = 0
    outside_seconds: float = 0.0
    forks: int = 0
    ended_by: Mapping[str, int] = field(default_factory=dict)
    response_lengths: Mapping[int, int] = field(default_factory=dict)
    failures: tuple[str, ...] = ()

    @property
    def rewards(self) -> Moments:
        """Of the scored rewards."""
        return Moments(self.scored, self.reward_sum / max(1, self.scored), self.reward_deviations)

    @property
    def part_means(self) -> dict[str, float]:
        """The mean of each part over the responses that have it."""
        return {name: total / self.part_counts[name] for name, total in self.part_sums.items()}

    @property
    def groups_accepted(self) -> int:
        """Good groups that ended in this step, trained or not."""
        return self.groups - self.groups_carried + self.groups_surplus


def add_counts(counts: Sequence[RolloutCounts]) -> RolloutCounts:
    """The numbers of several, such as of all controllers, together."""
    parts: Counter[str] = Counter()
    having: Counter[str] = Counter()
    lengths: Counter[int] = Counter()
    ended: Counter[str] = Counter()
    for c in counts:
        ended.update(c.ended_by)
        parts.update(c.part_sums)
        having.update(c.part_counts)
        lengths.update(c.response_lengths)
    special = {
        *("longest_response", "reward_deviations", "reward_min", "reward_max"),
        *("part_sums", "part_counts", "response_lengths", "failures", "ended_by"),
    }
    sums = {f.name: sum(getattr(c, f.name) for c in counts) for f in fields(RolloutCounts) if f.name not in special}
    return RolloutCounts(
        **sums,
        longest_response=max(c.longest_response for c in counts),
        reward_deviations=sum((c.rewards for c in counts), Moments()).deviations,
        reward_min=min((c.reward_min for c in counts if c.reward_min is not None), default=None),
        reward_max=max((c.reward_max for c in counts if c.reward_max is not None), default=None),
        part_sums=dict(parts),
        part_counts=dict(having),
        response_lengths=dict(lengths),
        ended_by=dict(ended),
        failures=first_failures(text for c in counts for text in c.failures),
    )


def first_failures(texts: Iterable[str]) -> tuple[str, ...]:
    """The first few that differ, each on one line and not long: a driver may be told of them."""
    short = (" ".join(text.split())[:FAILURE_LENGTH] for text in texts)
    return tuple(islice(dict.fromkeys(filter(None, short)), FAILURES))


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceReport:
    """Accuracy on the held-out prompts of one source; the fields are those of an EvaluationReport."""

    prompts: int
    accuracy_greedy: float | None
    accuracy_sampled: float | None
    intervals: Mapping[str, Interval] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationReport:
    """Accuracy on held-out prompts: shares of correct responses, and means of the parts the reward reported, each over
    the responses that have it. Offline
    algorithms have `loss` on held-out rows instead, and where rows are pairs `pair_accuracy`, the share of pairs whose
    chosen response is the likelier or better one.

    `accuracy_sampled` is mean@k: the mean over prompts of the share of a prompt's k sampled responses that are correct.
    `intervals` are those of `accuracy_greedy`, `accuracy_sampled`, `pass@K` and `pair_accuracy`, by these names
    (`yatt/intervals.py`). `sources` are the values of the column `evaluate.by`, where it is set.
    """

    prompts: int
    accuracy_greedy: float | None
    accuracy_sampled: float | None
    pass_at_k: Mapping[int, float] = field(default_factory=dict)
    parts_greedy: Mapping[str, float] = field(default_factory=dict)
    parts_sampled: Mapping[str, float] = field(default_factory=dict)
    failures: int = 0
    response_tokens_mean: float = 0.0
    loss: float | None = None
    pair_accuracy: float | None = None
    intervals: Mapping[str, Interval] = field(default_factory=dict)
    sources: Mapping[str, SourceReport] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """One step in numbers; nothing in it grows with the batch. `phases` are one controller's, `spans` everyone's.
    `decisions` are the leader's, the split that the rollout began with first; empty where nothing is placed."""

    step: int
    epoch: float
    policy_version: int
    controllers: int
    counts: RolloutCounts | None
    update: UpdateReport
    phases: Mapping[str, float]
    spans: tuple[PhaseSpan, ...]
    seconds: float
    bad_rows: int = 0
    generators: int = 0
    decisions: tuple[Decision, ...] = ()

"""Groups of responses, and the numbers of a step's rollout."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import fsum
from typing import Any

from yatt.algorithm.filter import all_equal
from yatt.config.algorithms import LONE
from yatt.histogram import histogram
from yatt.moments import Moments
from yatt.reports import RolloutCounts, first_failures
from yatt.types import Group, Prompt, Trajectory


def takes_greedy(advantage: str) -> bool:
    """Whether a prompt has one greedy response beside the sampled ones."""
    return advantage == "remax"


def as_group(prompt: Prompt, siblings: Sequence[Trajectory], compared: Trajectory | None = None) -> Group:
    """The group of a prompt's siblings. Those whose score failed are its `failures`. `compared`, a greedy response,
    gives the baseline."""
    answers = siblings if compared is None else (*siblings, compared)
    scored = [t for t in siblings if _scored(t)]
    failed = [t for t in answers if not _scored(t)]
    baseline = compared.score.value if compared and compared.score else None
    return Group(prompt=prompt, trajectories=tuple(scored), failures=tuple(failed), baseline=baseline)


def _scored(trajectory: Trajectory) -> bool:
    return trajectory.score is not None and trajectory.score.status == "ok"


def usable(group: Group, advantage: str) -> bool:
    """Whether there is enough to learn from: two scored siblings where they are compared with each other, else one; and
    the baseline where the estimator has one."""
    least = 1 if advantage in LONE else 2
    return len(group.trajectories) >= least and not (takes_greedy(advantage) and group.baseline is None)


@dataclass(slots=True)
class Tally:
    """The groups that have ended since the last step, and what became of others. `finished` are all that were not
    aborted; the step trains on those in `kept`."""

    kept: list[Group] = field(default_factory=list)
    finished: list[Group] = field(default_factory=list)
    greedy: list[Trajectory] = field(default_factory=list)  # scored, of groups in `finished`
    dropped: int = 0
    unscored: int = 0  # of those dropped
    surplus: int = 0
    wasted: int = 0
    tokens_wasted: int = 0
    media_bytes: int = 0
    drawn: int = 0
    open: set[int] = field(default_factory=set)  # uids drawn in this step that have not ended


def count(tally: Tally, quota: int, carried: int) -> RolloutCounts:
    """The numbers of one controller's rollout that owed `quota` groups and had `carried` of them from an earlier step.
    Rewards and parts are over every scored sibling, kept or not; lengths and failures also over greedy responses."""
    scored = [t for group in tally.finished for t in group.trajectories]
    failed = [t for group in tally.finished for t in group.failures]
    drawn = (*scored, *tally.greedy, *failed)
    lengths = [t.response_tokens for t in drawn]
    rewards = [t.score.value for t in scored if t.score is not None and t.score.value is not None]
    parts = _parts(scored)
    return RolloutCounts(
        groups=len(tally.kept),
        groups_dropped=tally.dropped,
        groups_unscored=tally.unscored,
        groups_equal=sum(all_equal(group.rewards) for group in tally.kept),
        groups_missing=quota - len(tally.kept),
        groups_carried=carried,
        groups_surplus=tally.surplus,
        groups_wasted=tally.wasted,
        tokens_wasted=tally.tokens_wasted,
        media_bytes=tally.media_bytes,
        refills=max(0, tally.drawn - quota),
        reward_failures=len(failed),
        reward_timeouts=sum(t.score is not None and t.score.status == "timed_out" for t in failed),
        responses=len(lengths),
        scored=len(scored),
        truncated=sum(t.finish == "length" for t in drawn),
        response_tokens=sum(lengths),
        prompt_tokens=sum(len(t.prompt.tokens) for t in drawn),
        reward_sum=fsum(rewards),
        reward_deviations=Moments.of(rewards).deviations,
        reward_min=min(rewards, default=None),
        reward_max=max(rewards, default=None),
        longest_response=max(lengths, default=0),
        part_sums={name: fsum(values) for name, values in parts.items()},
        part_counts={name: len(values) for name, values in parts.items()},
        response_lengths=histogram(lengths),
        **_conversations(drawn),
        failures=first_failures(t.score.detail for t in failed if t.score is not None),
    )


def _conversations(drawn: Sequence[Trajectory]) -> dict[str, Any]:
    """Numbers of those that are conversations."""
    talks = [t for t in drawn if t.turns]
    turns = [turn for t in talks for row in t.rows for turn in row.turns]
    if not talks:
        return {}
    return {
        "conversations": len(talks),
        "turns": len(turns),
        "tool_calls": sum(turn.calls for turn in turns),
        "tool_failures": sum(turn.failed for turn in turns),
        "cache_hits": sum(turn.cached for turn in turns),
        "outside_seconds": fsum(turn.waited for turn in turns),
        "forks": sum(t.forks for t in talks),
        "ended_by": dict(Counter(t.truncated for t in talks if t.truncated)),
    }


def _parts(scored: Sequence[Trajectory]) -> dict[str, list[float]]:
    """The values of each part of the reward, over the responses that have it."""
    parts: defaultdict[str, list[float]] = defaultdict(list)
    for t in scored:
        if t.score is not None:
            for name, value in t.score.parts.items():
                parts[name].append(value)
    return parts

"""Unfinished rollouts in a checkpoint: groups carried over to a later step, and numbers not reported yet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from yatt.moments import Moments
from yatt.reports import RolloutCounts
from yatt.types import Completion, Finish, Group, Prompt, Row, SampleKey, Score, Span, Trajectory, Turn


@dataclass(frozen=True, slots=True, kw_only=True)
class CarriedGroup:
    """A scored group without its prompt, which its position in the order of rows gives again. `trajectories` are of
    JSON's types alone."""

    uid: int
    trajectories: tuple[Mapping[str, Any], ...]
    baseline: float | None = None


def carried_group(group: Group) -> CarriedGroup:
    """A group as a checkpoint keeps it."""
    return CarriedGroup(
        uid=group.prompt.uid, trajectories=tuple(map(_values, group.trajectories)), baseline=group.baseline
    )


def restored_group(carried: CarriedGroup, prompt: Prompt) -> Group:
    """The group again, of the prompt at its position."""
    trajectories = tuple(_trajectory(values, prompt) for values in carried.trajectories)
    return Group(prompt=prompt, trajectories=trajectories, baseline=carried.baseline)


def restored_counts(saved: Mapping[str, Any]) -> RolloutCounts:
    """The counts again, from JSON, where keys are texts and tuples lists. Those of earlier versions have the sum of the
    rewards' squares in place of their deviations, and no counts of parts."""
    counts = {**saved, "failures": tuple(saved.get("failures", ()))}
    if (squares := counts.pop("reward_square_sum", None)) is not None:
        sums = Moments.of_sums(counts["scored"], counts["reward_sum"], squares)
        counts["reward_deviations"] = sums.deviations
    counts.setdefault("part_counts", dict.fromkeys(counts.get("part_sums", {}), counts.get("scored", 0)))
    lengths = counts.get("response_lengths", {})
    counts["response_lengths"] = {int(length): responses for length, responses in lengths.items()}
    return RolloutCounts(**counts)


def _values(t: Trajectory) -> dict[str, Any]:
    score = t.score
    common = {
        "sibling": t.sibling,
        "finish": t.finish,
        "text": t.text,
        "reward": score.value if score else None,
        "parts": dict(score.parts) if score else {},
    }
    if t.turns:
        talk = {"messages": list(t.messages), "truncated": t.truncated, "forks": t.forks}
        return common | {"rows": [_row_values(row) for row in t.rows]} | talk
    start = len(t.prompt.tokens)
    return common | {
        "tokens": t.tokens[start:].tolist(),
        "logprobs": t.rollout_logprobs[start:].tolist(),
        "spans": _span_values(t.spans),
    }


def _trajectory(values: Mapping[str, Any], prompt: Prompt) -> Trajectory:
    finish: Finish = values["finish"]
    score = Score(status="ok", value=values["reward"], parts=values["parts"])
    if "rows" in values:
        *earlier, last = (_row(row, prompt) for row in values["rows"])
        return Trajectory(
            prompt=replace(prompt, tokens=last.tokens[: last.turns[0].start], media=last.media),
            sibling=values["sibling"],
            tokens=last.tokens,
            loss_mask=last.loss_mask,
            rollout_logprobs=last.rollout_logprobs,
            spans=last.spans,
            finish=finish,
            text=values["text"],
            score=score,
            turns=last.turns,
            earlier=tuple(earlier),
            messages=tuple(values["messages"]),
            truncated=values["truncated"],
            forks=values["forks"],
        )
    completion = Completion(
        key=SampleKey(prompt.uid, values["sibling"]),
        tokens=np.array(values["tokens"], dtype=np.int32),
        rollout_logprobs=np.array(values["logprobs"], dtype=np.float32),
        spans=_spans(values["spans"]),
        finish=finish,
    )
    return Trajectory.single_turn(prompt, completion, values["text"], score)


def _row_values(row: Row) -> dict[str, Any]:
    """A row of a conversation. What was sampled is what its turns say."""
    return {
        "tokens": row.tokens.tolist(),
        "logprobs": row.rollout_logprobs.tolist(),
        "spans": _span_values(row.spans),
        "turns": [asdict(turn) for turn in row.turns],
        "media": bool(row.media),
    }


def _row(values: Mapping[str, Any], prompt: Prompt) -> Row:
    turns = tuple(Turn(**turn) for turn in values["turns"])
    mask = np.zeros(len(values["tokens"]), dtype=bool)
    for turn in turns:
        mask[turn.start : turn.stop] = True
    return Row(
        tokens=np.array(values["tokens"], dtype=np.int32),
        loss_mask=mask,
        rollout_logprobs=np.array(values["logprobs"], dtype=np.float32),
        spans=_spans(values["spans"]),
        turns=turns,
        media=prompt.media if values["media"] else (),
    )


def _span_values(spans: Sequence[Span]) -> list[list[int]]:
    return [[span.start, span.stop, span.version] for span in spans]


def _spans(values: Sequence[Sequence[int]]) -> tuple[Span, ...]:
    return tuple(Span(start=start, stop=stop, version=version) for start, stop, version in values)

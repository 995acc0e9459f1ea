"""What a checkpoint keeps of an unfinished rollout: groups carried over to a later step, and numbers not reported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from yatt.moments import Moments
from yatt.reports import RolloutCounts
from yatt.types import Completion, Finish, Group, Prompt, SampleKey, Score, Span, Trajectory


@dataclass(frozen=True, slots=True, kw_only=True)
class CarriedGroup:
    """A scored group without its prompt, which its position in the order of rows gives again. `trajectories` are of
    JSON's types alone."""

    uid: int
    trajectories: tuple[Mapping[str, Any], ...]
    baseline: float | None = None


def carried_group(group: Group) -> CarriedGroup:
    """What a checkpoint keeps of a group. Trajectories are of one turn."""
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
    start = len(t.prompt.tokens)
    score = t.score
    return {
        "sibling": t.sibling,
        "tokens": t.tokens[start:].tolist(),
        "logprobs": t.rollout_logprobs[start:].tolist(),
        "spans": [[span.start, span.stop, span.version] for span in t.spans],
        "finish": t.finish,
        "text": t.text,
        "reward": score.value if score else None,
        "parts": dict(score.parts) if score else {},
    }


def _trajectory(values: Mapping[str, Any], prompt: Prompt) -> Trajectory:
    finish: Finish = values["finish"]
    completion = Completion(
        key=SampleKey(prompt.uid, values["sibling"]),
        tokens=np.array(values["tokens"], dtype=np.int32),
        rollout_logprobs=np.array(values["logprobs"], dtype=np.float32),
        spans=tuple(Span(start=start, stop=stop, version=version) for start, stop, version in values["spans"]),
        finish=finish,
    )
    score = Score(status="ok", value=values["reward"], parts=values["parts"])
    return Trajectory.single_turn(prompt, completion, values["text"], score)

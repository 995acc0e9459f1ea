"""A few trajectories of every step, for a person to read."""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np

from yatt.cluster.media import ImageHandle
from yatt.text import one_line
from yatt.types import Group, Media, Pair, Row, Sample, Trajectory
from yatt.vision.images import thumbnail

IMAGES, SIDE = 4, 96
"""Of a prompt's images so many are shown, at most so many pixels wide and high."""
SIBLINGS = 8
"""Of the step's first group so many siblings are written."""
LONGEST = 20_000
"""Characters of a row that is learned from."""
_log = logging.getLogger(__name__)


class SampleLog:
    """A few trajectories to read, straight from the controller to the run folder. It never ends a run. `decode` gives
    the text of tokens, of which the rows of conversations are written."""

    def __init__(self, folder: Path, index: int, limit: int) -> None:
        self._folder = folder
        self._index = index
        self._limit = limit
        self.decode: Callable[[np.ndarray], str] = lambda tokens: ""

    def groups(self, step: int, groups: Sequence[Group], dropped: Sequence[Group] = ()) -> None:
        """The siblings of the step's first group, and the first trajectory of the next groups and of those that were
        dropped; failed ones included."""
        every = [[*group.failures, *group.trajectories] for group in groups[: self._limit]]
        kept = [t for place, group in enumerate(every) for t in (group[:1] if place else group[:SIBLINGS])]
        rows = [_row(step, t, self.decode) for t in kept]
        for group in dropped[: self._limit]:
            first = (*group.failures, *group.trajectories)[0]
            rows.append(_row(step, first, self.decode) | {"dropped": _why_dropped(group)})
        self._write("step", step, rows)

    def learned(self, step: int, rows: Sequence[Sample | Pair]) -> None:
        """The first rows that are learned from, text by text with what is trained of it: in steps 1, 2, 4, 8 ..., since
        such steps are many and short."""
        if step & (step - 1) == 0:
            self._write("step", step, [_learned(step, row, self.decode) for row in rows[: self._limit]])

    def evaluation(self, step: int, trajectories: Sequence[Trajectory]) -> None:
        """Every response to the first prompts; sibling 0 is the greedy one."""
        uids = list(dict.fromkeys(t.prompt.uid for t in trajectories))[: self._limit]
        chosen = [t for t in trajectories if t.prompt.uid in uids]
        modes = ("sampled" if t.sibling else "greedy" for t in chosen)
        self._write(
            "eval", step, [_row(step, t, self.decode) | {"mode": m} for t, m in zip(chosen, modes, strict=True)]
        )

    def _write(self, kind: Literal["step", "eval"], step: int, rows: Sequence[dict[str, Any]]) -> None:
        if not rows or not self._limit:
            return
        file = self._folder / f"{kind}-{step}.c{self._index}.jsonl"
        try:
            # What a user's row or reward says may be no text that UTF-8 has: it is escaped, as JSON does it.
            with open(file, "w", encoding="utf-8", errors="backslashreplace") as out:
                out.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        except OSError as error:
            _log.warning(f"{file} cannot be written: {error.strerror}; the run goes on")


def _row(step: int, t: Trajectory, decode: Callable[[np.ndarray], str]) -> dict[str, Any]:
    """The line of one trajectory."""
    images = {"images": _thumbnails(t.prompt.media)} if t.prompt.media else {}
    return (
        {
            "step": step,
            "uid": t.prompt.uid,
            "sibling": t.sibling,
            "prompt": t.prompt.text,
            "response": t.text,
            "reward": t.score.value if t.score else None,
            "parts": dict(t.score.parts) if t.score else {},
            "status": t.score.status if t.score else None,
            "detail": t.score.detail if t.score else "",
            "finish": t.finish,
            "response_tokens": t.response_tokens,
            "answer": t.prompt.answer,
        }
        | images
        | (_conversation(t, decode) if t.turns else {})
    )


def _thumbnails(images: Sequence[Media]) -> list[str]:
    """Small ones of the first, as data: addresses."""
    shown = []
    for image in images[:IMAGES]:
        try:
            handle = ImageHandle(*image.handle)
            small = thumbnail(handle.parcel.image(handle.number), SIDE)
        except Exception as error:  # what is only shown ends no run
            _log.warning(f"an image cannot be shown in samples/: {one_line(error)}")
            continue
        shown.append("data:image/jpeg;base64," + base64.b64encode(small).decode())
    return shown


def _conversation(t: Trajectory, decode: Callable[[np.ndarray], str]) -> dict[str, Any]:
    """What a conversation has beside: what was said in its last row, its turns, and each row piece by piece."""
    return {
        "messages": list(t.messages),
        "turns": [asdict(turn) for row in t.rows for turn in row.turns],
        "rows": [_pieces(row, decode) for row in t.rows],
        "forks": t.forks,
        "truncated": t.truncated,
    }


def _pieces(row: Row, decode: Callable[[np.ndarray], str]) -> list[dict[str, Any]]:
    """A row as the policy has it: what it read, and what it sampled, which alone is trained."""
    starts = [0, *(np.flatnonzero(np.diff(row.loss_mask)) + 1).tolist(), len(row.tokens)]
    return [
        {"text": decode(row.tokens[a:b]), "tokens": b - a, "trained": bool(row.loss_mask[a])}
        for a, b in pairwise(starts)
    ]


def _why_dropped(group: Group) -> str:
    """Why a group is not trained on."""
    rewards = group.rewards
    if group.failures:
        return f"{len(group.failures)} of {len(group.failures) + len(group.trajectories)} rewards failed"
    if len(set(rewards)) == 1:
        return f"all {len(rewards)} rewards are {rewards[0]:g}"
    return f"rollout.filter, of rewards from {min(rewards, default=0.0):g} to {max(rewards, default=0.0):g}"


def _learned(step: int, row: Sample | Pair, decode: Callable[[np.ndarray], str]) -> dict[str, Any]:
    """The line of a row that is learned from."""
    sides = {"segments": row} if isinstance(row, Sample) else {"chosen": row.first, "rejected": row.second}
    texts = {name: _segments(sample, decode) for name, sample in sides.items()}
    tokens = sum(sample.trained_tokens for sample in sides.values())
    about: dict[str, Any] = {"reward": None, "parts": {}, "status": None, "response_tokens": tokens}
    return {"step": step, "uid": row.key.uid, "sibling": row.key.sibling} | about | texts


def _segments(sample: Sample, decode: Callable[[np.ndarray], str]) -> list[tuple[str, bool]]:
    """The sample's text in pieces, and whether each is trained. The first token has no prediction, and is not."""
    trained = np.asarray(sample.loss_mask, dtype=bool).copy()
    trained[:1] = False
    cuts = [0, *(np.flatnonzero(np.diff(trained)) + 1).tolist(), len(trained)]
    pieces, room = [], LONGEST
    for start, stop in pairwise(cuts):
        if start < stop and room > 0:
            text = decode(sample.tokens[start:stop])[:room]
            pieces.append((text, bool(trained[start])))
            room -= len(text)
    return pieces

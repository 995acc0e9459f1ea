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
from yatt.types import Group, Media, Row, Trajectory
from yatt.vision.images import thumbnail

IMAGES, SIDE = 4, 96
"""Of a prompt's images so many are shown, at most so many pixels wide and high."""
_log = logging.getLogger(__name__)


class SampleLog:
    """A few trajectories to read, straight from the controller to the run folder. It never ends a run. `decode` gives
    the text of tokens, of which the rows of conversations are written."""

    def __init__(self, folder: Path, index: int, limit: int) -> None:
        self._folder = folder
        self._index = index
        self._limit = limit
        self.decode: Callable[[np.ndarray], str] = lambda tokens: ""

    def groups(self, step: int, groups: Sequence[Group]) -> None:
        """The first trajectory of the step's first groups, failed ones included."""
        chosen = [(group.failures + group.trajectories)[0] for group in groups[: self._limit]]
        self._write("step", step, chosen, None)

    def evaluation(self, step: int, trajectories: Sequence[Trajectory]) -> None:
        """Every response to the first prompts; sibling 0 is the greedy one."""
        uids = list(dict.fromkeys(t.prompt.uid for t in trajectories))[: self._limit]
        chosen = [t for t in trajectories if t.prompt.uid in uids]
        self._write("eval", step, chosen, lambda t: "sampled" if t.sibling else "greedy")

    def _write(self, kind: Literal["step", "eval"], step: int, chosen: Sequence[Trajectory], mode: Any) -> None:
        if not chosen or not self._limit:
            return
        rows = [_row(step, t, self.decode) | ({"mode": mode(t)} if mode else {}) for t in chosen]
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

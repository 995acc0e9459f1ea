"""A few trajectories of every step, for a person to read."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from yatt.types import Group, Trajectory

_log = logging.getLogger(__name__)


class SampleLog:
    """A few trajectories to read, straight from the controller to the run folder. It never ends a run."""

    def __init__(self, folder: Path, index: int, limit: int) -> None:
        self._folder = folder
        self._index = index
        self._limit = limit

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
        rows = [_row(step, t) | ({"mode": mode(t)} if mode else {}) for t in chosen]
        file = self._folder / f"{kind}-{step}.c{self._index}.jsonl"
        try:
            # What a user's row or reward says may be no text that UTF-8 has: it is escaped, as JSON does it.
            with open(file, "w", encoding="utf-8", errors="backslashreplace") as out:
                out.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        except OSError as error:
            _log.warning(f"{file} cannot be written: {error.strerror}; the run goes on")


def _row(step: int, t: Trajectory) -> dict[str, Any]:
    """The line of one trajectory."""
    return {
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
    } | (_conversation(t) if t.turns else {})


def _conversation(t: Trajectory) -> dict[str, Any]:
    """What a conversation has beside: what was said in its last row, and its turns."""
    turns = [asdict(turn) for row in t.rows for turn in row.turns]
    return {"messages": list(t.messages), "turns": turns, "forks": t.forks, "truncated": t.truncated}

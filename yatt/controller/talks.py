"""Conversations of one controller: where each has its cache, and how they go, for the placement policy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from yatt.types import SampleKey


class TalkCounts(NamedTuple):
    """Conversations of all controllers, taken to be alike: those under way, outside the engines or not, and those that
    have ended since the run began. The longest under way has `sampled` so many tokens; `outside` are the seconds that
    one spends outside the engines for each token that it samples."""

    under_way: int = 0
    ended: int = 0
    sampled: int = 0
    outside: float = 0.0


@dataclass(slots=True)
class _Talk:
    row: int = 0  # tokens of the row that it was in last
    sampled: int = 0  # of all its turns
    home: int | None = None  # the engine that has them in its cache


class Talks:
    """Conversations under way, by prompt and sibling. Requests of others are none of its business."""

    def __init__(self, controllers: int = 1) -> None:
        self._controllers = controllers
        self._talks: dict[tuple[int, int], _Talk] = {}
        self._ended = 0
        self._outside = 0.0
        self._sampled = 0
        self.any = False

    def begin(self, uid: int, sibling: int) -> None:
        self.any = True
        self._talks[uid, sibling] = _Talk()

    def end(self, uid: int, sibling: int, outside: float | None) -> None:
        """It is over, after so many seconds between its turns; None: it was given up."""
        talk = self._talks.pop((uid, sibling))
        if outside is None:
            return
        self._ended += 1
        self._outside += outside
        self._sampled += talk.sampled

    def said(self, key: SampleKey, row: int, sampled: int, engine: int) -> None:
        """An engine has answered a turn: its row has so many tokens now, and so many were sampled in the turn."""
        if talk := self._talks.get(key[:2]):
            talk.home, talk.row, talk.sampled = engine, row, talk.sampled + sampled

    def home(self, key: SampleKey) -> int | None:
        """The engine that has the conversation's last row in its cache."""
        talk = self._talks.get(key[:2])
        return talk.home if talk else None

    def known(self, key: SampleKey, tokens: int) -> int:
        """Of so many tokens of a request those that an engine is taken to have read before."""
        talk = self._talks.get(key[:2])
        return min(talk.row, tokens) if talk else 0

    def counts(self) -> TalkCounts | None:
        """None where there are no conversations."""
        if not self.any:
            return None
        return TalkCounts(
            under_way=len(self._talks) * self._controllers,
            ended=self._ended * self._controllers,
            sampled=max((talk.sampled for talk in self._talks.values()), default=0),
            outside=self._outside / self._sampled if self._sampled else 0.0,
        )

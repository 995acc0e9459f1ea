"""A game of two turns, the second of which depends on the first: a number from 1 to 3, in two guesses. Who begins with
2 and believes what it is told always wins."""

from __future__ import annotations

from yatt.environments.builtin.games import Guess


class TwoGuesses(Guess):
    """1 where the number was found, with either guess; anything else 0."""

    def __init__(self) -> None:
        super().__init__(highest=3, guesses=2)

    def reward(self) -> dict[str, float]:
        return {"reward": float(self._won > 0), "at_once": float(self._won == 1.0)}

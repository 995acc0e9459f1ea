"""What a simulated engine still has of conversations while their environments have the word."""

from __future__ import annotations

from yatt.types import SampleKey


class KeptTurns:
    """Tokens of the last turns of conversations, by prompt and sibling, the oldest first."""

    def __init__(self) -> None:
        self._tokens: dict[tuple[int, int], int] = {}

    def unread(self, key: SampleKey, read: int, whole: int) -> int:
        """Of the `read` tokens of a turn, `whole` in all, those that are not kept; they are its own from now on."""
        known = self._tokens.pop(key[:2], 0)
        return min(read, max(0, whole - known)) if known else read

    def keep(self, key: SampleKey, tokens: int, room: int) -> None:
        """Keep a turn's tokens where there is `room` for so many, and forget as many of others as need be."""
        self._tokens[key[:2]] = tokens
        surplus = sum(self._tokens.values()) - room
        while surplus > 0 and self._tokens:
            surplus -= self._tokens.pop(next(iter(self._tokens)))

    def clear(self) -> None:
        """Other weights, or none: what they made is of no use."""
        self._tokens.clear()

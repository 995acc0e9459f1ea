"""A game, and games of others: text environments in Gymnasium's form."""

from __future__ import annotations

import importlib
import json
import random
import re
from typing import Any

from yatt.errors import ConfigError
from yatt.user_functions import find

_NUMBER = re.compile(r"-?\d+")


class Guess:
    """Guess a number from 1 to `highest`: after each guess it says whether the number is higher or lower. The reward is
    1 for a guess that is right, less 1 / `guesses` for each one before it; 0 where none was."""

    def __init__(self, highest: int = 100, guesses: int = 7) -> None:
        self._highest, self._guesses = highest, guesses

    def reset(self, uid: int) -> str:
        self._number, self._left, self._won = random.Random(uid).randint(1, self._highest), self._guesses, 0.0
        return f"Guess a number from 1 to {self._highest}. You have {self._guesses} guesses."

    def step(self, answer: str) -> str | None:
        found = _NUMBER.findall(answer)
        guess = int(found[-1]) if found and len(found[-1]) < 20 else None
        if guess == self._number:
            self._won = self._left / self._guesses
            return None
        self._left -= 1
        if not self._left:
            return None
        if guess is None:
            return "That is no number."
        return "Higher." if guess < self._number else "Lower."

    def reward(self) -> float:
        return self._won


class Gymnasium:
    """A text environment in Gymnasium's form: `make`, FILE.py:NAME or package.module:NAME, is called with `arguments`
    for it; without it `id` is made by gymnasium, where that is installed. Observations are text, or written as JSON;
    the policy's answer is the action; each step's reward is its turn's."""

    def __init__(self, make: str | None = None, id: str | None = None, arguments: dict[str, Any] | None = None) -> None:
        if (make is None) == (id is None):
            raise ConfigError("environment.arguments name neither `make` nor `id`, or both; give one of them")
        made = (
            find("environment.arguments.make", make)(**(arguments or {})) if make else _made(str(id), arguments or {})
        )
        self._world = made

    def reset(self, uid: int, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        seen, _ = self._world.reset(seed=uid)
        return [*messages[:-1], {"role": "user", "content": _text(seen)}]

    def step(self, answer: str) -> Any:
        seen, reward, ended, cut, _ = self._world.step(answer)
        return (None if ended or cut else _text(seen)), float(reward)

    def close(self) -> None:
        self._world.close()


def _made(id: str, arguments: dict[str, Any]) -> Any:
    try:
        gymnasium = importlib.import_module("gymnasium")
    except ImportError:
        raise ConfigError(f"environment.arguments.id={id}: gymnasium is not installed; install it") from None
    return gymnasium.make(id, **arguments)


def _text(seen: Any) -> str:
    return seen if isinstance(seen, str) else json.dumps(seen, default=str, ensure_ascii=False)

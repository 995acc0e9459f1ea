"""The environments that come along, by hand."""

from __future__ import annotations

import time
from typing import Any

import pytest

from yatt.environments.builtin.calculator import evaluate
from yatt.environments.builtin.games import Guess, Gymnasium
from yatt.environments.builtin.interpreter import Python
from yatt.environments.builtin.reasoning import ReasoningGym
from yatt.errors import ConfigError


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("1234*5678", "7006652"),
        (" 2 + 3 * (4 - 1) ", "11"),
        ("-7 // 2", "-4"),
        ("7 % 4", "3"),
        ("1 / 3", "0.3333333333"),
        ("0.1 + 0.2", "0.3"),
        ("2 ** 10", "1024"),
        ("2 ** -1", "0.5"),
    ],
)
def test_the_calculator_is_exact(expression: str, value: str) -> None:
    assert evaluate(expression) == value


@pytest.mark.parametrize(
    ("expression", "error"),
    [
        ("2 +", "no expression"),
        ("x + 1", "and nothing else"),
        ("__import__('os')", "and nothing else"),
        ("True + 1", "and nothing else"),
        ("9 ** 9 ** 9", "an exponent is"),
        ("9 ** 999", "more than 400 digits"),
        ("(10 ** 300) * (10 ** 300)", "more than 400 digits"),
        ("1" * 300, "the most is 200"),
    ],
)
def test_what_the_calculator_refuses(expression: str, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        evaluate(expression)
    with pytest.raises(ZeroDivisionError):
        evaluate("1 / 0")


def test_python_says_what_was_printed_and_what_went_wrong() -> None:
    python = Python(seconds=10.0)
    assert python.python("print(6 * 7)") == "42"
    assert python.python("x = 1") == "(nothing was printed)"
    assert "ZeroDivisionError" in python.python("print('so'); 1 / 0")
    assert "NameError" in python.python("print(x)")  # nothing is kept
    assert python.python("print('a' * 9000)").endswith("... (1001 more characters)")


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("import socket; socket.create_connection(('127.0.0.1', 9), 1)", "rror"),
        ("x = bytearray(1 << 31)", "MemoryError"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV"),
    ],
)
def test_python_is_kept_within_limits(code: str, told: str) -> None:
    assert told in Python(seconds=10.0).python(code)


def test_python_that_never_ends_is_killed_with_all_it_started(tmp_path: Any) -> None:
    late = tmp_path / "late"
    code = f"import subprocess, time; subprocess.Popen(['sh', '-c', 'sleep 3; touch {late}']); time.sleep(100)"
    assert Python(seconds=1.5).python(code) == "it was stopped after 1.5 s"
    time.sleep(2.5)
    assert not late.exists()


def test_guessing_pays_more_for_fewer_guesses() -> None:
    game = Guess(highest=8, guesses=4)
    assert game.reset(uid=3) == "Guess a number from 1 to 8. You have 4 guesses."
    low, high = 0, 9
    guesses = 0
    while True:
        guesses += 1
        said = game.step(f"I say {(low + high) // 2}")
        if said is None:
            break
        low, high = ((low + high) // 2, high) if said == "Higher." else (low, (low + high) // 2)
    assert game.reward() == 1 - (guesses - 1) / 4
    lost = Guess(highest=8, guesses=2)
    lost.reset(uid=3)
    assert lost.step("no idea") == "That is no number." and lost.step("999") is None and lost.reward() == 0.0


def test_reasoning_gym_gives_another_attempt() -> None:
    import reasoning_gym  # noqa: PLC0415

    entry = reasoning_gym.create_dataset("basic_arithmetic", size=1, seed=1)[0]
    world = ReasoningGym(attempts=2)
    world.reset(reasoning_gym={"task": "basic_arithmetic", "entry": entry})
    assert world.step("no") == "That is not right. Try again." and world.step(entry["answer"]) is None
    assert world.reward() == 1.0


class Corridor:
    """A text environment in Gymnasium's form."""

    def __init__(self, length: int) -> None:
        self.length = length

    def reset(self, *, seed: int) -> tuple[str, dict[str, int]]:
        self.at = seed % 2
        return f"You are at {self.at}.", {}

    def step(self, action: str) -> tuple[dict[str, int], float, bool, bool, dict[str, int]]:
        self.at += action == "on"
        return {"at": self.at}, float(self.at), self.at == self.length, False, {}

    def close(self) -> None:
        self.closed = True


def test_gymnasium_gives_a_reward_for_each_turn() -> None:
    world = Gymnasium(make=f"{__file__}:Corridor", arguments={"length": 2})
    asked = [{"role": "system", "content": "Walk."}, {"role": "user", "content": "?"}]
    assert world.reset(uid=4, messages=asked) == [asked[0], {"role": "user", "content": "You are at 0."}]
    assert world.step("on") == ('{"at": 1}', 1.0) and world.step("on") == (None, 2.0)
    world.close()
    with pytest.raises(ConfigError, match="neither `make` nor `id`"):
        Gymnasium()
    with pytest.raises(ConfigError, match="gymnasium is not installed"):
        Gymnasium(id="Taxi-v3")

"""The agent's example: settings that load, demonstrations written as turns are played, and the rules of the game."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from yatt.config.load import load_config
from yatt.environments.chat import Chat

FOLDER = Path(__file__).parents[2] / "examples" / "agent"
OWN = ("prepare", "game")


@pytest.fixture(scope="module")
def prepare() -> Iterator[ModuleType]:
    """Its prepare.py, which other examples have too, with the game beside it."""
    before = {name: sys.modules.pop(name) for name in OWN if name in sys.modules}
    sys.path.insert(0, str(FOLDER))
    yield importlib.import_module("prepare")
    sys.path.remove(str(FOLDER))
    for name in OWN:
        sys.modules.pop(name, None)
    sys.modules.update(before)


@pytest.mark.parametrize("name", ["sft", "grpo", "endpoint", "game_sft", "game"])
def test_settings_load_and_the_runs_follow_each_other(name: str) -> None:
    config = load_config(str(FOLDER / f"{name}.yaml"), [])
    warm = "agent-game-sft" if name.startswith("game") else "agent-sft"
    if name.endswith("sft"):
        assert config.run.name == warm and config.checkpoint.export
    else:
        assert Path(config.model.path).parts[-3:] == ("runs", warm, "model") and config.environment.played


def test_way_one_and_way_three_differ_in_nothing_else() -> None:
    one, three = (load_config(str(FOLDER / f"{name}.yaml"), []).model_dump() for name in ("grpo", "endpoint"))
    for config in (one, three):
        config["run"]["name"] = config["environment"]["function"] = ""
    assert one == three


def test_demonstrations_are_turns_as_they_are_played(prepare: ModuleType) -> None:
    words = prepare.tokenizer()
    chat = Chat(words)
    lines = prepare.rows(0, words)
    asked, told = prepare.demonstrations(words, 1234, 5678, True)
    answer = chat.answer(words(asked["response"])["input_ids"] + [words.eos_token_id], prepare.TOOLS)
    assert [(call.name, dict(call.arguments)) for call in answer.calls] == [("calculate", {"expression": "1234*5678"})]
    question = [{"role": "user", "content": "1234*5678"}]
    said = [{"role": "tool", "content": "7006652"}]
    sampled = chat.ids(words(asked["response"])["input_ids"] + [words.eos_token_id])
    suffix: Any = chat.suffix(question, answer, sampled, said, prepare.TOOLS)
    assert words.decode([*words(asked["prompt"])["input_ids"], *sampled, *suffix]) == told["prompt"]
    assert len(lines["game-demonstrations.jsonl"]) > prepare.GAMES
    guesses = [line["response"] for line in lines["game-demonstrations.jsonl"]]
    assert set(guesses) == set("123456789")


def test_who_believes_the_hint_always_wins_the_game(prepare: ModuleType) -> None:
    results = []
    for uid in range(40):
        world = prepare.TwoGuesses()
        assert world.reset(uid=uid) == "Guess a number from 1 to 3. You have 2 guesses."
        hint = world.step("2")
        if hint is not None:
            assert world.step({"Higher.": "3", "Lower.": "1"}[hint]) is None
        results.append(world.reward())
    assert {result["reward"] for result in results} == {1.0} and {r["at_once"] for r in results} == {0.0, 1.0}
    lost = prepare.TwoGuesses()
    lost.reset(uid=1)
    lost.step("9")
    lost.step("9")
    assert lost.reward() == {"reward": 0.0, "at_once": 0.0}

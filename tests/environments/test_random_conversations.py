"""Random conversations over random templates, with tools, limits, moves between engines and deaths: what the engines
sampled is what is trained, token by token."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from typing import Any

import numpy as np
import pytest

from tests.doubles import ScriptedScorer
from tests.environments.templates import ENDS, TEMPLATES, WITH_TOOLS, tokenizer
from tests.environments.test_chat import ADD, text
from tests.generator_double import DoubleGenerator, Drawing
from yatt.controller.conversation import Limits
from yatt.controller.fleet import Fleet
from yatt.controller.player import ConversationSetup, Player
from yatt.controller.router import Router
from yatt.environments.chat import Chat
from yatt.errors import ConversationEnded, ProcessDied
from yatt.protocols import Talk
from yatt.simulation.loop import VirtualClock, run
from yatt.types import Completion, Prompt, Request, SamplingParams, Score, Trajectory

SAMPLED: dict[Any, dict[int, int]] = {}
"""Of each request, the token that an engine sampled last for each place."""
CHATS = {name: Chat(tokenizer(name)) for name in TEMPLATES}


class Engine(DoubleGenerator):
    """Notes what it samples, and may die."""

    def __init__(self, slot: int, **settings: Any) -> None:
        super().__init__(**settings)
        self.slots, self.node, self.dead = (slot,), "here", False

    async def generate(self, requests: Sequence[Request]) -> AsyncIterator[list[Completion]]:
        async for ended in super().generate(requests):
            if self.dead:
                raise ProcessDied(f"engine {self.slots[0]} is gone")
            yield ended

    def die(self) -> None:
        self.dead = True
        self._end(list(self._drawings))

    def _answer(self, drawing: Drawing) -> None:
        places = SAMPLED.setdefault(drawing.request.key, {})
        start = len(drawing.request.tokens)
        if not self.dead:
            places.update({start + i: token for i, token in enumerate(drawing.tokens)})
        super()._answer(drawing)


class Chatter:
    """Goes on for a random number of turns; now and then it forgets what was said, or asks for a completion."""

    def __init__(self, rng: random.Random, tools: bool) -> None:
        self._rng, self._tools = rng, tools

    async def play(self, talk: Talk) -> Score | None:
        rng = random.Random(f"{self._rng.random()}")
        messages = [dict(message) for message in talk.prompt.messages]
        tools = [ADD] if self._tools else []
        try:
            for _ in range(rng.randrange(1, 6)):
                answer = await talk.chat(messages, tools, rng.choice([None, 3, 9]))
                messages.append(answer.message)
                if rng.random() < 0.15:
                    await talk.complete([5, 6, 7, rng.randrange(60)], 4)
                if rng.random() < 0.15:
                    messages = messages[:1]
                elif answer.calls or answer.mistakes or (tools and rng.random() < 0.3):
                    messages.append({"role": "tool", "name": "add", "content": text(rng)})
                else:
                    messages.append({"role": "user", "content": text(rng)})
        except ConversationEnded:
            pass
        return Score(status="ok", value=rng.random())

    async def close(self) -> None:
        pass


async def converse(name: str, seed: int, conversations: int) -> list[Trajectory]:
    rng, clock = random.Random(f"{name}/{seed}"), VirtualClock()
    chat = CHATS[name]
    made = tokenizer(name)
    end = made.convert_tokens_to_ids(ENDS.get(name, "<|im_end|>"))
    engines = [
        Engine(
            slot,
            clock=clock,
            vocabulary=300,
            seconds_per_token=0.01 * (1 + slot),
            stop_token_ids=(*range(0, 300, 9), end),
        )
        for slot in range(3)
    ]
    fleet = Fleet(engines)
    router = Router(fleet, clock=clock, limit=64)
    setup = ConversationSetup(
        environment=Chatter(rng, name in WITH_TOOLS and rng.random() < 0.7),
        chat=chat,
        limits=Limits(turns=rng.choice([2, 5, 9]), tokens=rng.choice([None, 25]), context=rng.choice([600, 1500])),
        retries=0,
        judged=False,
    )
    player = Player(router, ScriptedScorer(lambda t: 0.0), lambda ids: "", seed, "rollout", setup=setup, clock=clock)

    async def disturb() -> None:
        awake = [True] * 3
        for _ in range(6):
            await clock.sleep(rng.random() * 0.3)
            slot = rng.randrange(3)
            if rng.random() < 0.3 and sum(not engine.dead for engine in engines) > 1:  # a dead one may not be known yet
                engines[slot].die()
            else:
                awake[slot] = not awake[slot] or sum(awake) == 1
                fleet.awake[slot] = awake[slot]
                await router.follow()

    asked = [{"role": "user", "content": text(rng)}]
    prompts = [
        Prompt(uid=uid, text="", tokens=chat.opening(asked), messages=tuple(asked)) for uid in range(conversations)
    ]
    disturbing = asyncio.create_task(disturb())
    groups = await asyncio.gather(*(player.respond(p, [SamplingParams(max_tokens=12)] * 2) for p in prompts))
    disturbing.cancel()
    return [trajectory for group in groups for trajectory in group]


def check(trajectory: Trajectory) -> int:
    """What was sampled is trained, and nothing else. Returns the turns."""
    turn_number = 0
    keys = sorted(key for key in SAMPLED if key[:2] == (trajectory.prompt.uid, trajectory.sibling))
    drawn = {tuple(SAMPLED[key][place] for place in sorted(SAMPLED[key])) for key in keys}
    for row in trajectory.rows:
        mask = np.zeros(len(row.tokens), dtype=bool)
        for turn in row.turns:
            assert tuple(row.tokens[turn.start : turn.stop].tolist()) in drawn
            mask[turn.start : turn.stop] = True
            turn_number += 1
        assert np.array_equal(mask, row.loss_mask)
        assert np.array_equal(row.rollout_logprobs != 0, mask)
        covered = sorted((row.turns[0].start + s.start, row.turns[0].start + s.stop) for s in row.spans)
        assert sum(stop - start for start, stop in covered) == mask.sum()
        assert all(mask[start:stop].all() for start, stop in covered)
    assert turn_number <= len(keys)
    return turn_number


@pytest.mark.parametrize("name", TEMPLATES)
def test_what_the_engines_sampled_is_what_is_trained(name: str) -> None:
    _run(name, seeds=4)


@pytest.mark.long
@pytest.mark.parametrize("name", TEMPLATES)
def test_what_the_engines_sampled_is_what_is_trained_in_thousands(name: str) -> None:
    _run(name, seeds=80)


def _run(name: str, seeds: int) -> None:
    turns = forks = 0
    for seed in range(seeds):
        SAMPLED.clear()
        for trajectory in run(converse(name, seed, 8)):
            turns += check(trajectory)
            forks += trajectory.forks
    assert turns > 16 * seeds
    if name in ("qwen3", "mistral", "harmony"):
        assert forks, "a template that writes the past anew was not caught at it"

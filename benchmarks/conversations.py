"""Conversations with tools: what waiting for them costs, simulated, and the memory of many at once.

    python -m benchmarks.conversations [--quick] [--json]

`idle`: the share of device-seconds in which neither an engine nor a rank works, on 64 simulated H20 with a 7B policy
(benchmarks.placement), of conversations of 4 turns, `median` tokens in all, with tools that take 1 s in the median and
4 s in the 99th percentile, and with ones that take no time. Mode colocated has no judge; in dynamic a 7B judge reads
each conversation. `hits` is the share of later turns that found their conversation's cache. The first step, in which
nothing is measured yet, does not count.

`memory`: peak resident memory of a controller's process that plays 1,024 conversations at once, all of them under way
until the last turn, of 8 turns, 4,096 tokens and 8 messages of tools each, over an environment in a worker process;
`before` is what it has when everything is imported and nothing is played, `all` the peak together with its worker's.
"""

from __future__ import annotations

import asyncio
import json
import resource
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

import numpy as np

from benchmarks.common import main, significant
from benchmarks.placement import PROMPT, Case
from yatt.config.load import load_config
from yatt.config.schema import Config, EnvironmentConfig
from yatt.controller.conversation import Limits
from yatt.controller.fleet import Fleet
from yatt.controller.player import ConversationSetup, Player
from yatt.controller.router import Router
from yatt.environments.chat import Chat
from yatt.environments.hosted import HostedEnvironment
from yatt.simulation.costs import Costs, Lengths
from yatt.simulation.simulate import SimulationReport, simulate
from yatt.types import Completion, Prompt, Pulse, Request, SampleKey, SamplingParams, Score, Span, Trajectory

DEVICES, PROMPTS, TURNS, STEPS = 64, 2, 4, 3
TOOL = Lengths(median=1.0, p99=4.0)
SAID = 64  # tokens of a tool's answer
TALKS, TALK_TURNS, TURN_TOKENS, HEARD_TOKENS = 1024, 8, 256, 256


def world(mode: str, median: float, devices: int, tool: Lengths | None, prompts: int = PROMPTS) -> tuple[Config, Costs]:
    case = Case(models="7B+7B", devices=devices, median=median, drifting=False, tail=4.0, steps=STEPS, prompts=prompts)
    config, costs = case.world()
    longest = TURNS * (config.rollout.max_tokens + SAID) + PROMPT
    model = config.model.model_copy(update={"context_length": longest})
    placement = config.placement.model_copy(update={"mode": mode})
    config = config.model_copy(update={"model": model, "placement": placement})
    if mode == "colocated":
        config = config.model_copy(update={"reward": load_config(QUICKSTART, []).reward})
        costs = replace(costs, judges={})
    work = replace(costs.workload, turns=TURNS, outside=tool, outside_tokens=SAID)
    return config, replace(costs, workload=work)


QUICKSTART = "examples/quickstart/grpo.yaml"


def played(
    mode: str, median: float, devices: int, tool: Lengths | None, prompts: int = PROMPTS, steps: int = STEPS
) -> SimulationReport:
    config, costs = world(mode, median, devices, tool, prompts)
    return simulate(config, costs, devices=devices, controllers=max(1, devices // 8), steps=steps, seed=0)


def figures(report: SimulationReport) -> dict[str, float]:
    """Means over the steps but the first."""
    steps = report.steps[1:]
    turns = sum(step.counts.turns - step.counts.conversations for step in steps)
    return {
        "idle": sum(step.idle * step.seconds for step in steps) / sum(step.seconds for step in steps),
        "step_s": fmean(step.seconds for step in steps),
        "rollout_s": fmean(max(step.rollouts) for step in steps),
        "hits": sum(step.counts.cache_hits for step in steps) / max(1, turns),
    }


def compared(mode: str, median: float, devices: int) -> dict[str, Any]:
    without, tools = (figures(played(mode, median, devices, tool)) for tool in (None, TOOL))
    return {
        "mode": mode,
        "devices": devices,
        "median": round(median),
        "idle_without": significant(without["idle"]),
        "idle": significant(tools["idle"]),
        "more": significant(tools["idle"] - without["idle"]),
        "step_s_without": significant(without["step_s"]),
        "step_s": significant(tools["step_s"]),
        "hits": significant(tools["hits"]),
    }


class Talker:
    """An environment that says as many words as the policy, so many times."""

    def __init__(self, turns: int) -> None:
        self._left = turns

    def step(self, answer: str) -> str | None:
        self._left -= 1
        return "x" * HEARD_TOKENS if self._left else None

    def reward(self) -> float:
        return 1.0


class Chorus:
    """A generator that answers once `voices` requests are there: all at once, by tokens of the letter y."""

    slots, node = (0,), ""

    def __init__(self, voices: int, token: int) -> None:
        self._voices, self._token = voices, token
        self._waiting: list[asyncio.Future[None]] = []

    async def generate(self, requests: Sequence[Request]) -> AsyncIterator[list[Completion]]:
        for request in requests:
            self._waiting.append(asyncio.get_running_loop().create_future())
            mine = self._waiting[-1]
            if len(self._waiting) == self._voices:
                for waiting in self._waiting:
                    waiting.set_result(None)
                self._waiting = []
            await mine
            tokens = np.full(TURN_TOKENS, self._token, dtype=np.int32)
            spans = (Span(start=0, stop=TURN_TOKENS, version=0),)
            logprobs = np.zeros(TURN_TOKENS, dtype=np.float32)
            yield [Completion(key=request.key, tokens=tokens, rollout_logprobs=logprobs, spans=spans, finish="length")]

    async def abort(self, keys: Sequence[SampleKey]) -> None: ...

    async def pulse(self) -> Pulse:
        return Pulse(running=len(self._waiting), tokens=0)


class Nobody:
    async def score(self, trajectories: Sequence[Trajectory]) -> list[Score]:
        raise NotImplementedError

    async def close(self) -> None: ...


async def play_all(talks: int, turns: int) -> dict[str, Any]:
    """Play so many conversations at once in this process."""
    sys.path.insert(0, "examples/agent")
    import prepare  # noqa: PLC0415, of the example, which makes a tokenizer with a chat template

    words = prepare.tokenizer()
    config = EnvironmentConfig(
        function="benchmarks.conversations:Talker", arguments={"turns": turns}, max_turns=turns, timeout=600
    )
    environment = HostedEnvironment(config)
    await environment.start()
    chorus, asked = Chorus(talks, int(words.convert_tokens_to_ids("y"))), [{"role": "user", "content": "go"}]
    chat = Chat(words)
    limits = Limits(turns=turns, tokens=None, context=1 << 20)
    setup = ConversationSetup(environment=environment, chat=chat, limits=limits, retries=0, judged=False)
    clock = Wall()
    router = Router(Fleet([chorus]), clock=clock, limit=talks)  # type: ignore[list-item]
    player = Player(router, Nobody(), lambda ids: "", 0, "rollout", setup=setup, clock=clock)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    prompts = [
        Prompt(uid=uid, text="go", tokens=chat.opening(asked), messages=tuple(asked)) for uid in range(talks // 8)
    ]
    params = [SamplingParams(max_tokens=TURN_TOKENS)] * 8
    groups = await asyncio.gather(*(player.respond(prompt, params) for prompt in prompts))
    ended = [t for group in groups for t in group]
    assert all(t.score is not None and t.score.value == 1.0 and len(t.turns) == turns for t in ended)
    await environment.close()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    worker = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    return {
        "conversations": len(ended),
        "tokens": sum(len(t.tokens) for t in ended),
        "before_mib": round(before),
        "peak_mib": round(peak),
        "all_mib": round(peak + worker),
    }


class Wall:
    def now(self) -> float:
        return asyncio.get_running_loop().time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


def memory(talks: int, turns: int) -> dict[str, Any]:
    """The same in a process of its own."""
    code = "import asyncio, json; from benchmarks.conversations import play_all; "
    code += f"print(json.dumps(asyncio.run(play_all({talks}, {turns}))))"
    told = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True).stdout
    return dict(json.loads(told.splitlines()[-1]))


def measure(quick: bool) -> dict[str, Any]:
    held = memory(64, 2) if quick else memory(TALKS, TALK_TURNS)
    print(held, file=sys.stderr, flush=True)
    cases = [(mode, median, DEVICES) for median in (1000.0, 4000.0) for mode in ("colocated", "dynamic")]
    rows = []
    for case in [("colocated", 200.0, 8)] if quick else cases:
        rows.append(compared(*case))
        print(rows[-1], file=sys.stderr, flush=True)
    return {"memory": held, "idle": rows}


if __name__ == "__main__":
    main("conversations", measure)

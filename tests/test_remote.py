"""Generators and ranks as controllers reach them, with the wire but without Ray: a call is a task of this process."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.doubles import ScriptedGenerator
from tests.generator_contract import LONG, GeneratorContract, answers, check_close, publish, requests, until_sampled
from tests.test_generator_double import double
from yatt.cluster import generator as generator_module
from yatt.cluster import rank as rank_module
from yatt.cluster.backends import Backends
from yatt.cluster.generator import GeneratorActor, RemoteGenerator
from yatt.cluster.process import SlotProcess
from yatt.cluster.rank import RankActor, RankHandle, RemoteTrainer
from yatt.cluster.wire import pack_requests, read_completions
from yatt.config.schema import Config
from yatt.errors import BackendError, WaitTimeout
from yatt.reports import UpdateReport
from yatt.types import Denominator, Sample, SampleKey, Share

__all__ = ["publish"]

PROCESS = SlotProcess(name="x", device="cpu", directory="", log="")
CONFIG = Config.model_validate(
    {"model": {"path": "m"}, "train": {"steps": 1, "batch_size": 2}, "cluster": {"step_timeout": 0.5}}
)


class Handle:
    """An actor's handle."""

    def __init__(self, actor: Any) -> None:
        self.actor = actor
        self.calls: list[str] = []

    def __getattr__(self, method: str) -> Any:
        return Method(self, method)


class Method:
    def __init__(self, handle: Handle, name: str) -> None:
        self.handle, self.name = handle, name

    def remote(self, *arguments: Any, **keywords: Any) -> asyncio.Task[Any]:
        self.handle.calls.append(self.name)
        return asyncio.ensure_future(getattr(self.handle.actor, self.name)(*arguments, **keywords))


@pytest.fixture
def generator(monkeypatch):
    monkeypatch.setattr(generator_module, "settle", lambda process: None)
    monkeypatch.setattr(generator_module, "load", lambda backend: lambda **_: double())
    handle = Handle(GeneratorActor(PROCESS, CONFIG, "m", Backends(generator="the double", classifier="the double")))
    return RemoteGenerator(handle, name="generator 0", client="c", slots=(0,), node="n", timeout=20.0)


@pytest.mark.parametrize(("role", "engine", "own"), [("", "sglang", {"tp_size": 2}), ("j", "vllm", {"block_size": 16})])
def test_an_actor_builds_the_engine_of_its_role(role, engine, own, monkeypatch):
    built = []
    judge = {"path": "j", "engine": "vllm", "context_length": 64, "engine_args": {"block_size": 16}}
    rollout = {"engine": "sglang", "engine_args": {"tp_size": 2}}
    settings = CONFIG.model_dump() | {"rollout": rollout, "reward": {"models": {"j": judge}}}
    monkeypatch.setattr(generator_module, "settle", lambda process: None)
    monkeypatch.setattr(generator_module, "load", lambda backend: lambda **given: built.append(given))
    GeneratorActor(replace(PROCESS, role=role), Config.model_validate(settings), "m", Backends())
    assert (built[0]["config"].engine, built[0]["config"].engine_args) == (engine, own)


class TestRemote(GeneratorContract):
    """The wire keeps the contract of what is behind it."""


async def test_close(generator):
    await check_close(generator)


@pytest.mark.parametrize("turns", range(1, 6))
async def test_an_abort_does_not_overtake_what_it_ends(generator, turns):
    """However few turns of the event loop lie between a request and its abort, nothing stays behind in an engine that
    does not sample."""
    await generator.sleep()
    wanted = requests(2)
    task = asyncio.create_task(answers(generator, wanted))
    for _ in range(turns):
        await asyncio.sleep(0)
    await generator.abort([request.key for request in wanted])
    assert [c.finish for c in await asyncio.wait_for(task, 30)] == ["aborted"] * 2


async def test_calls_of_one_turn_travel_together_and_one_call_brings_all_home(generator):
    await asyncio.gather(*(answers(generator, requests(4, max_tokens=3)) for _ in range(5)))
    assert set(generator._actor.calls) == {"drain"} and len(generator._actor.calls) <= 2


async def test_a_cancelled_caller_ends_its_requests_and_no_others(generator):
    mine, others = requests(2, max_tokens=LONG), requests(1, max_tokens=LONG)
    task, other = (asyncio.create_task(answers(generator, wanted)) for wanted in (mine, others))
    await until_sampled(generator, 20)
    task.cancel()
    await asyncio.wait([task])
    while (await generator.pulse()).running > 1:
        await asyncio.sleep(0.001)
    assert [len(c.tokens) for c in await other] == [LONG]


async def test_a_failure_names_the_generator(generator):
    with pytest.raises(BackendError, match=r"generator 0: BackendError: .*context"):
        await answers(generator, requests(1, length=512))


class Adder:
    """A rank whose loss is the sum of all tokens it is given."""

    def __init__(self, config: Config, *, rank: int, world_size: int, address: str, port: int) -> None:
        self.dp_rank, self.dp_size = rank, world_size

    def start(self) -> None: ...

    def update(self, shares: Sequence[Share]) -> UpdateReport:
        total = sum(int(s.tokens.sum()) for share in shares for u in share.updates for m in u for s in m)
        return UpdateReport(loss=float(total), grad_norm=0.0, learning_rate=float(len(shares)))

    def evaluate(self, shares: Sequence[Share]) -> UpdateReport:
        return replace(self.update(shares), loss=-self.update(shares).loss)


def share(rank: int, controller: int, senders: tuple[int, ...], value: int) -> Share:
    zeros = np.zeros(4, dtype=np.float32)
    sample = Sample(
        key=SampleKey(controller, 0),
        tokens=np.full(4, value, dtype=np.int32),
        loss_mask=zeros == 0,
        rollout_logprobs=zeros,
    )
    return Share(
        step=7,
        rank=rank,
        controller=controller,
        senders=senders,
        updates=(((sample,),),),
        denominators=(Denominator(tokens=8, sequences=2),),
    )


@pytest.fixture
async def ranks(monkeypatch):
    monkeypatch.setattr(rank_module, "settle", lambda process: None)
    monkeypatch.setattr(rank_module, "load", lambda backend: Adder)
    monkeypatch.setattr(rank_module.ray, "put", lambda value: value)
    handles = []
    for number in range(3):
        actor = RankActor(PROCESS, CONFIG, "the adder", rank=number, world_size=3)
        await actor.start("", 0, token=None, weights_dir="")
        # Ranks 1 and 2 are the two shards of replica 1.
        handles.append(RankHandle(actor=Handle(actor), name=f"rank {number}", node="n", dp_rank=min(number, 1)))
    return handles


def trainer(ranks: list[RankHandle]) -> RemoteTrainer:
    return RemoteTrainer(ranks, weights_kind="shm", timeout=5.0)


async def test_a_rank_waits_for_its_senders_only_and_all_shards_of_a_replica_get_the_share(ranks):
    """Controller 0 sends 1s to both replicas, controller 2 sends 5s to replica 1 alone: 4 tokens each."""
    first, second, nothing = await asyncio.gather(
        trainer(ranks).update([share(0, 0, (0,), 1), share(1, 0, (0, 2), 1)]),
        trainer(ranks).update([share(1, 2, (0, 2), 5)]),
        trainer(ranks).update([]),
    )
    assert first.loss == 4.0 and second.loss == 4.0 + 20.0 and nothing is None
    assert second.learning_rate == 2.0, "two shares"
    assert [handle.actor.calls.count("update") for handle in ranks] == [1, 2, 2]


async def test_an_evaluation_and_an_update_of_the_same_step_do_not_mix(ranks):
    """Controller 0 sends 1s to be trained and 10s to be evaluated, controller 1 then 20s and 2s: 4 tokens each."""
    patient = CONFIG.model_copy(update={"cluster": CONFIG.cluster.model_copy(update={"step_timeout": 30.0})})
    ranks[0].actor.actor._config = patient
    one, two, both = trainer(ranks), trainer(ranks), (0, 1)
    reports = await asyncio.gather(
        one.update([share(0, 0, both, 1)]),
        one.evaluate([share(0, 0, both, 10)]),
        two.evaluate([share(0, 1, both, 20)]),
        two.update([share(0, 1, both, 2)]),
    )
    assert [report.loss for report in reports] == [12.0, -120.0, -120.0, 12.0]
    assert await one.evaluate([]) is None
    with pytest.raises(WaitTimeout, match=r"rank [12] waited in step 7 for the shares of controllers \[1\]"):
        await one.evaluate([share(1, 0, both, 1)])


async def test_a_rank_names_the_controllers_whose_shares_did_not_come(ranks):
    with pytest.raises(WaitTimeout, match=r"rank 0 waited in step 7 for the shares of controllers \[1, 4\]"):
        await trainer(ranks).update([share(0, 0, (0, 1, 4), 1)])


class Held(ScriptedGenerator):
    """Answers one call at once, and all others when it is told to."""

    def __init__(self) -> None:
        super().__init__(0)
        self.sampling = True
        self.told = asyncio.Event()

    async def generate(self, requests):
        if requests[0].key.uid:
            await self.told.wait()
        async for completions in super().generate(requests):
            yield completions


async def test_an_answer_waits_for_more_only_while_there_is_more_to_come(monkeypatch):
    held = Held()
    monkeypatch.setattr(generator_module, "settle", lambda process: None)
    monkeypatch.setattr(generator_module, "load", lambda backend: lambda **_: held)
    monkeypatch.setattr(generator_module, "LINGER", 1.0)
    actor = GeneratorActor(PROCESS, CONFIG, "m", Backends(generator="b"))
    loop = asyncio.get_running_loop()

    async def drained(client: str, *first_keys: int) -> tuple[int, float]:
        start = loop.time()
        asked = [(k, [replace(r, key=SampleKey(k, r.key.sibling)) for r in requests(2)]) for k in first_keys]
        ended = read_completions(await actor.drain(client, pack_requests(asked)[0]))
        return sum(len(completions) for _, completions in ended), loop.time() - start

    ended, seconds = await drained("a", 0, 1)
    assert ended == 2 and seconds >= 1.0, "two of four were to come"
    ended, seconds = await drained("b", 0)
    assert ended == 2 and seconds < 0.9, "nothing of b was to come, though a waited"
    loop.call_later(0.05, held.told.set)
    ended, seconds = await drained("a")
    assert ended == 2 and seconds < 0.9, "nothing was to come after these"

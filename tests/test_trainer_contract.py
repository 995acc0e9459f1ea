"""Ranks keep the contract of a trainer: real ones and doubles through the wire, the in-process double, and simulated
ones."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from inspect import iscoroutinefunction
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.doubles import RecordingTrainer
from tests.megatron_pool import free_port
from tests.plain_backend import open_rank as open_plain
from tests.test_remote import Handle
from tests.tiny_models import save_tiny
from tests.trainer_contract import Place, TrainerContract
from yatt.cluster import rank as rank_module
from yatt.cluster.process import SlotProcess
from yatt.cluster.rank import RankActor, RankHandle, RemoteTrainer
from yatt.config.schema import Config
from yatt.reports import UpdateReport
from yatt.simulation.costs import ControllerCosts, TrainerCosts
from yatt.simulation.loop import run
from yatt.simulation.network import Network, Site
from yatt.simulation.ranks import Ranks, SimulatedTrainer
from yatt.training.fsdp.backend import open_rank as open_fsdp
from yatt.training.megatron.backend import open_rank as open_megatron
from yatt.types import Share

PROCESS = SlotProcess(name="rank", device="cpu", directory="", log="")
PATIENT, SOON = 60.0, 0.3


class MeetingRank:
    """A rank whose only weight counts updates; all ranks of a `Meeting` work together or not at all."""

    def __init__(self, meeting: Meeting, rank: int) -> None:
        self._meeting = meeting
        self.dp_rank, self.dp_size, self._rank = min(rank, 1), 2, rank
        self.weight = 0.0

    def start(self) -> None: ...

    def update(self, shares: Sequence[Share]) -> UpdateReport:
        self.weight += 1.0
        return self.evaluate(shares)

    def evaluate(self, shares: Sequence[Share]) -> UpdateReport:
        """The loss is the weight times all tokens, added over replicas."""
        total = self._meeting.add(self._rank, sum(_lengths(shares).values()))
        trained = shares[0].denominators[0].tokens
        return UpdateReport(loss=self.weight * total, grad_norm=0.0, learning_rate=0.0, trained_tokens=trained)

    def reference(self, shares: Sequence[Share]) -> dict[int, tuple[float, float]]:
        self._meeting.add(self._rank, 0)
        return {uid: (float(length), 0.0) for uid, length in _lengths(shares).items()}

    def export(self) -> Iterator[tuple[str, Tensor]]:
        self._meeting.add(self._rank, 0)
        yield "weight", torch.tensor([self.weight])

    def offload(self) -> None: ...

    def onload(self) -> None: ...

    def close(self) -> None: ...


class Meeting:
    """Where the ranks of three threads, the second and third of one replica, wait for each other."""

    def __init__(self) -> None:
        self._barrier = threading.Barrier(3, timeout=30)
        self._said = [0, 0, 0]

    def add(self, rank: int, value: int) -> int:
        """The sum over replicas, once all ranks have come."""
        self._said[rank] = value
        self._barrier.wait()
        total = self._said[0] + self._said[1]
        self._barrier.wait()
        return total


def _lengths(shares: Sequence[Share]) -> dict[int, int]:
    samples = [s for share in shares for update in share.updates for micro in update for s in micro]
    return {s.key.uid: sum(len(one.tokens) for one in s.sequences) for s in samples}


async def opened(config: Config, ranks: Sequence[Any], monkeypatch: pytest.MonkeyPatch) -> tuple[Place, list[Any]]:
    """The actors of these ranks, without Ray, and what two controllers see of them."""
    monkeypatch.setattr(rank_module, "settle", lambda process: None)
    monkeypatch.setattr(rank_module.ray, "put", lambda value: value)
    actors, handles = [], []
    for number, rank in enumerate(ranks):
        monkeypatch.setattr(rank_module, "load", lambda backend, made=rank: made)
        actor = RankActor(PROCESS, config, "", rank=number, world_size=len(ranks))
        actors.append(actor)
        port = free_port()
        dp_rank, replicas = await actor.start("127.0.0.1", port, token=None if number else f"t{port}", weights_dir="")
        handles.append(RankHandle(actor=Handle(actor), name=f"rank {number}", node="n", dp_rank=dp_rank))

    def seen() -> list[RemoteTrainer]:
        return [RemoteTrainer(handles, weights_kind="shm", timeout=PATIENT) for _ in range(2)]

    async def learned() -> str:
        manifests = await seen()[0].export(0)
        return manifests["n"].checksum

    def impatient() -> list[RemoteTrainer]:
        cluster = config.cluster.model_copy(update={"step_timeout": SOON})
        for actor in actors:
            actor._config = config.model_copy(update={"cluster": cluster})
        return seen()

    return Place(seen(), replicas, learned, impatient), actors


def config(path: str) -> Config:
    return Config.model_validate(
        {
            "model": {"path": path, "dtype": "float32"},
            "algorithm": {"name": "dpo"},
            "train": {"steps": 9, "batch_size": 8, "optimizer": {"warmup_steps": 0}},
            "cluster": {"step_timeout": PATIENT},
        }
    )


class TestThroughTheWire(TrainerContract):
    """Three ranks, two of them the shards of one replica."""

    @pytest.fixture
    async def place(self, monkeypatch):
        meeting = Meeting()
        ranks = [lambda _, *, rank, **place: MeetingRank(meeting, rank)] * 3
        place, actors = await opened(config("none"), ranks, monkeypatch)
        yield place
        for actor in actors:
            await actor.close()


@pytest.mark.slow
class TestRanks(TrainerContract):
    """A real rank of each backend, and of the double of one."""

    @pytest.fixture(scope="class")
    def folder(self, tmp_path_factory):
        return save_tiny(tmp_path_factory.mktemp("model"), "qwen3", spread=2.0)

    @pytest.fixture(params=["megatron", "fsdp", "plain"])
    async def place(self, request, folder, monkeypatch):
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        rank = {"megatron": open_megatron, "fsdp": open_fsdp, "plain": open_plain}[request.param]
        place, actors = await opened(config(folder), [rank], monkeypatch)
        yield place
        await actors[0].close()
        torch.set_num_threads(threads)


class TestDouble(TrainerContract):
    @pytest.fixture
    def place(self):
        trainer = RecordingTrainer(2)

        async def learned() -> int:
            return len(trainer.steps)

        def impatient() -> list[RecordingTrainer]:
            trainer.timeout = SOON
            return [trainer, trainer]

        return Place([trainer, trainer], 2, learned, impatient)


def simulated() -> Place:
    trained: list[tuple[int, int]] = []
    costs = TrainerCosts(per_token=1e-3, per_token_squared=0.0, per_update=1e-3, offload=0.01, onload=0.01, export=0.01)
    network = Network(ControllerCosts(), 2, lambda *event: None)
    ranks = Ranks(
        costs,
        network.nodes,
        slots=(0, 1),
        stages=1,
        log=lambda *event: None,
        on_trained=lambda step, share: trained.append((step, share.controller)),
        timeout=PATIENT,
    )
    trainers = [SimulatedTrainer(ranks, Site(network, c, node), costs) for c, node in enumerate(network.nodes)]

    async def learned() -> int:
        return len(trained)

    return Place(trainers, 2, learned, lambda: trainers)


CASES = [name for name in dir(TrainerContract) if iscoroutinefunction(getattr(TrainerContract, name))]


@pytest.mark.parametrize("case", CASES)
def test_simulated_ranks_keep_the_contract(case):
    async def main() -> None:
        await getattr(TrainerContract(), case)(simulated())

    run(main())

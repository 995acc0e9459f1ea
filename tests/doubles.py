"""In-process doubles of what the heart drives, and a world of controllers made of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial

import numpy as np

from yatt.algorithm.samples import samples
from yatt.config.schema import AlgorithmConfig, RolloutConfig
from yatt.controller.exchange import Exchange
from yatt.controller.peers import Hub, HubPeers
from yatt.controller.recorder import Recorder
from yatt.controller.rollouter import Responder, Rollouter
from yatt.controller.router import Router
from yatt.controller.stage import Publisher, Stage
from yatt.controller.step import Controller, Desk
from yatt.data.loader import Loader
from yatt.placement.plan import colocated
from yatt.protocols import EVERY_NODE
from yatt.types import (
    Completion,
    Prompt,
    Request,
    Sample,
    Score,
    Share,
    Span,
    Trajectory,
    UpdateReport,
    WeightManifest,
)


class Ticks:
    """A clock that moves by one at each look."""

    def __init__(self) -> None:
        self.time = 0.0

    def now(self) -> float:
        self.time += 1.0
        return self.time

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(0)


class ScriptedGenerator:
    """Answers [seed % 7, version] to everything; `order` decides in which order the siblings of a call end."""

    def __init__(self, slot: int, order: Callable[[int], Sequence[int]] = range) -> None:
        self.slots = (slot,)
        self.node = "here"
        self.order = order
        self.served = 0
        self.events: list[str] = []
        self.sampling = False

    async def generate(self, requests: Sequence[Request]) -> AsyncIterator[list[Completion]]:
        assert self.sampling, "asked to generate while paused"
        for i in self.order(len(requests)):
            await asyncio.sleep(0)
            request = requests[i]
            yield [
                Completion(
                    key=request.key,
                    tokens=np.array([request.seed % 7, self.served], dtype=np.int32),
                    rollout_logprobs=np.array([-0.5, -0.25], dtype=np.float32),
                    spans=(Span(start=0, stop=2, version=self.served),),
                    finish="stop",
                )
            ]

    async def abort(self, keys: object) -> None:
        self.events.append("abort")

    async def pause(self) -> None:
        self.sampling = False
        self.events.append("pause")

    async def resume(self) -> None:
        self.sampling = True
        self.events.append("resume")

    async def load(self, manifest: WeightManifest) -> int:
        assert not self.sampling, "weights changed under a running engine"
        self.served = manifest.version
        self.events.append(f"load {manifest.version}")
        return self.served

    async def sleep(self) -> int:
        self.sampling = False
        self.events.append("sleep")
        return 1

    async def wake(self) -> None:
        self.events.append("wake")

    async def version(self) -> int:
        return self.served

    async def close(self) -> None:
        self.events.append("close")


class ScriptedScorer:
    """Scores by a function of the trajectory."""

    def __init__(self, judge: Callable[[Trajectory], float | None]) -> None:
        self.judge = judge

    async def score(self, trajectories: Sequence[Trajectory]) -> list[Score]:
        await asyncio.sleep(0)
        values = [self.judge(t) for t in trajectories]
        return [Score(status="failed") if v is None else Score(status="ok", value=v, parts={"r": v}) for v in values]

    async def close(self) -> None:
        pass


class RecordingTrainer:
    """Keeps the samples of every micro-batch in key order, and answers once all controllers have delivered."""

    def __init__(self, controllers: int) -> None:
        self.controllers = controllers
        self.delivered: dict[int, list[Sequence[Share]]] = {}
        self.steps: dict[int, list[list[list[list[Sample]]]]] = {}
        self.done: dict[int, asyncio.Event] = {}
        self.exported: list[int] = []
        self.awake = True

    async def update(self, shares: Sequence[Share]) -> UpdateReport:
        assert self.awake, "an update needs the ranks awake"
        step = shares[0].step
        done = self.done.setdefault(step, asyncio.Event())
        deliveries = self.delivered.setdefault(step, [])
        deliveries.append(shares)
        if len(deliveries) == self.controllers:
            self.steps[step] = merge(deliveries)
            done.set()
        await done.wait()
        return UpdateReport(loss=float(step), grad_norm=0.0, learning_rate=0.0)

    async def export(self, version: int) -> dict[str, WeightManifest]:
        self.exported.append(version)
        return {EVERY_NODE: WeightManifest(version=version, kind="flat", path="", checksum="")}

    async def offload(self) -> None:
        self.awake = False

    async def onload(self) -> None:
        self.awake = True


def merge(deliveries: Sequence[Sequence[Share]]) -> list[list[list[list[Sample]]]]:
    """[update][rank][micro-batch] -> samples in key order, whoever sent them."""
    updates = len(deliveries[0][0].updates)
    return [
        [
            [
                sorted((s for shares in deliveries for s in shares[rank].updates[update][micro]), key=lambda s: s.key)
                for micro in range(len(deliveries[0][rank].updates[update]))
            ]
            for rank in range(len(deliveries[0]))
        ]
        for update in range(updates)
    ]


class Numbers:
    """A source of n rows."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def row(self, index: int) -> dict[str, int]:
        return {"number": index}

    def origin(self, index: int) -> str:
        return f"row {index}"


def number_prompt(row: dict[str, int], uid: int, index: int) -> Prompt:
    return Prompt(uid=uid, row=index, text=str(index), tokens=np.arange(1 + index % 5, dtype=np.int32))


class World:
    """C controllers over two generators and two ranks, all in this process."""

    def __init__(
        self,
        controllers: int,
        judge: Callable[[Trajectory], float | None],
        *,
        batch: int = 6,
        rows: int = 50,
        order: Callable[[int], Sequence[int]] = range,
        rollout: RolloutConfig | None = None,
    ) -> None:
        self.generators = [ScriptedGenerator(slot, order) for slot in range(2)]
        self.trainer = RecordingTrainer(controllers)
        self.groups: dict[int, list[int]] = {}
        config = rollout or RolloutConfig(n=4)
        hub = Hub(controllers, timeout=5)
        self.controllers = [
            self._controller(HubPeers(i, controllers, hub.gather), judge, batch, rows, config)
            for i in range(controllers)
        ]

    def _controller(self, peers: HubPeers, judge, batch: int, rows: int, config: RolloutConfig) -> Controller:
        source = Loader(
            Numbers(rows), number_prompt, seed=3, shuffle=True, index=peers.index, count=peers.count, bad_rows="fail"
        )
        desk = Desk(
            peers=peers,
            source=source,
            exchange=Exchange(peers, ranks=2, updates=1, budget=64),
            trainer=self.trainer,
            recorder=Recorder(f"controller {peers.index}", Ticks()),
            batch_size=batch,
        )
        router = Router(self.generators, first=peers.index)
        responder = Responder(router, ScriptedScorer(judge), lambda t: str(t.tolist()), 11, "rollout")
        return Controller(
            desk=desk,
            rollouter=Rollouter(source=source, responder=responder, config=config),
            to_samples=partial(samples, config=AlgorithmConfig(), max_tokens=8),
            stage=Stage(colocated([0, 1]), self.generators, self.trainer, peers),
            publisher=Publisher(self.generators, self.trainer, peers),
            on_groups=lambda step, groups: self.groups.setdefault(step, []).extend(g.prompt.uid for g in groups),
        )

    async def step(self, step: int):
        return await asyncio.gather(*(c.step(step) for c in self.controllers))

    def trained(self, step: int) -> list[tuple]:
        """What each micro-batch of a step holds, as plain values."""
        return [
            (update, rank, micro, s.key, s.tokens.tolist(), round(s.advantage, 9))
            for update, ranks in enumerate(self.trainer.steps[step])
            for rank, micros in enumerate(ranks)
            for micro, batch in enumerate(micros)
            for s in batch
        ]

"""In-process doubles of what the heart drives, and a world of controllers made of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

import numpy as np

from yatt.config.schema import AlgorithmConfig, Config, ModelConfig, RolloutConfig, RunConfig, TrainConfig
from yatt.controller.assembly import Assembly, Engines, Parts, Reading, layout_of, mode_of
from yatt.controller.exchange import Exchange
from yatt.controller.peers import Hub, HubPeers
from yatt.controller.step import Controller
from yatt.data.loader import Loader
from yatt.errors import WaitTimeout
from yatt.protocols import EVERY_NODE
from yatt.reports import Probed, UpdateReport
from yatt.reward.filter import load_filter
from yatt.types import (
    Completion,
    Finish,
    Pair,
    Prompt,
    Pulse,
    Request,
    Sample,
    Score,
    Share,
    Span,
    Trajectory,
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
        self.finish: Finish = "stop"

    async def generate(self, requests: Sequence[Request]) -> AsyncIterator[list[Completion]]:
        while not self.sampling:
            await asyncio.sleep(0)
        for i in self.order(len(requests)):
            await asyncio.sleep(0)
            request = requests[i]
            yield [
                Completion(
                    key=request.key,
                    tokens=np.array([request.seed % 7, self.served], dtype=np.int32),
                    rollout_logprobs=np.array([-0.5, -0.25], dtype=np.float32),
                    spans=(Span(start=0, stop=2, version=self.served),),
                    finish=self.finish,
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

    async def pulse(self) -> Pulse:
        return Pulse(running=0, tokens=0)

    async def close(self) -> None:
        self.events.append("close")


class ScriptedScorer:
    """Scores by a function of the trajectory: a value, None for a failure, or the whole score."""

    def __init__(self, judge: Callable[[Trajectory], float | Score | None]) -> None:
        self.judge = judge

    async def score(self, trajectories: Sequence[Trajectory]) -> list[Score]:
        await asyncio.sleep(0)
        return [self._score(self.judge(t)) for t in trajectories]

    def _score(self, judged: float | Score | None) -> Score:
        if isinstance(judged, Score):
            return judged
        if judged is None:
            return Score(status="failed", detail="no digit in it")
        return Score(status="ok", value=judged, parts={"r": judged})

    async def close(self) -> None:
        pass


class RecordingTrainer:
    """Keeps the samples of every micro-batch in key order, and answers once every rank has all its senders' shares."""

    def __init__(self, ranks: int) -> None:
        self.ranks = ranks
        self.timeout = 60.0
        self.delivered: dict[object, list[Share]] = {}
        self.steps: dict[int, list[list[list[list[Sample]]]]] = {}
        self.evaluated: dict[int, list[list[list[list[Sample]]]]] = {}
        self.asked_reference: dict[int, list[list[list[list[Sample]]]]] = {}
        self.done: dict[object, asyncio.Event] = {}
        self.exported: list[int] = []
        self.awake = True

    async def update(self, shares: Sequence[Share]) -> UpdateReport | None:
        """The loss is the step."""
        if not await self._received("update", shares, self.steps):
            return None
        trained = sum(denominator.tokens for denominator in shares[0].denominators)
        return UpdateReport(loss=float(shares[0].step), grad_norm=0.0, learning_rate=0.0, trained_tokens=trained)

    async def evaluate(self, shares: Sequence[Share]) -> UpdateReport | None:
        """The loss is the mean of all tokens over trained ones; of pairs, those whose chosen response is longer are
        right."""
        if not await self._received("evaluate", shares, self.evaluated):
            return None
        samples = [s for rank in self.evaluated[shares[0].step][0] for micro in rank for s in micro]
        right = [len(s.first.tokens) > len(s.second.tokens) for s in samples if isinstance(s, Pair)]
        return UpdateReport(
            loss=sum(float(one.tokens.sum()) for s in samples for one in s.sequences)
            / shares[0].denominators[0].tokens,
            grad_norm=0.0,
            learning_rate=0.0,
            trained_tokens=shares[0].denominators[0].tokens,
            numbers={"pair_accuracy": sum(right) / len(right)} if right else {},
        )

    async def reference(self, shares: Sequence[Share]) -> dict[int, tuple[float, float]]:
        """Of everyone's samples: the number of tokens of both sequences."""
        if not await self._received("reference", shares, self.asked_reference):
            return {}
        update = self.asked_reference[shares[0].step][0]
        samples = [s for micro_batches in update for micro in micro_batches for s in micro]
        return {s.key.uid: (float(len(s.first.tokens)), float(len(s.second.tokens))) for s in samples}

    async def _received(self, work: str, shares: Sequence[Share], into: dict[int, list]) -> bool:
        """Waits for everyone's shares; False where there are none to send."""
        if not shares:
            return False
        while not self.awake:
            await asyncio.sleep(0)
        key = (work, shares[0].step)
        done = self.done.setdefault(key, asyncio.Event())
        delivered = self.delivered.setdefault(key, [])
        delivered += shares
        if all(self._complete(rank, delivered) for rank in range(self.ranks)):
            into[shares[0].step] = merge(delivered, self.ranks)
            done.set()
        try:
            await asyncio.wait_for(done.wait(), self.timeout)
        except TimeoutError:
            there = {share.controller for share in delivered}
            missing = sorted({sender for share in delivered for sender in share.senders} - there)
            raise WaitTimeout(f"waited in step {shares[0].step} for the shares of controllers {missing}") from None
        return True

    @staticmethod
    def _complete(rank: int, delivered: Sequence[Share]) -> bool:
        mine = [share for share in delivered if share.rank == rank]
        return bool(mine) and sorted(share.controller for share in mine) == sorted(mine[0].senders)

    async def export(self, version: int) -> dict[str, WeightManifest]:
        self.exported.append(version)
        return {EVERY_NODE: WeightManifest(version=version, kind="flat", path="", checksum="")}

    async def probe(self) -> Probed | None:
        return None

    async def offload(self) -> None:
        self.awake = False

    async def onload(self) -> None:
        self.awake = True


def merge(shares: Sequence[Share], ranks: int) -> list[list[list[list[Sample]]]]:
    """[update][rank][micro-batch] -> samples in key order, whoever sent them."""
    return [
        [
            [
                sorted(
                    (s for share in shares if share.rank == rank for s in share.updates[update][micro]),
                    key=lambda s: s.key,
                )
                for micro in range(len(shares[0].updates[update]))
            ]
            for rank in range(ranks)
        ]
        for update in range(len(shares[0].updates))
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

    def folder(self, index: int) -> str:
        return ""


def number_prompt(row: dict[str, int], uid: int, index: int) -> Prompt:
    return Prompt(uid=uid, text=str(index), tokens=np.arange(1 + index % 5, dtype=np.int32))


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
        algorithm: AlgorithmConfig | None = None,
        generators: Sequence[ScriptedGenerator] = (),
    ) -> None:
        self.generators = generators or [ScriptedGenerator(slot, order) for slot in range(2)]
        self.trainer = RecordingTrainer(2)
        self.groups: dict[int, list[int]] = {}
        self.config = Config(
            run=RunConfig(seed=11),
            model=ModelConfig(path="none"),
            rollout=rollout or RolloutConfig(n=4),
            algorithm=algorithm or AlgorithmConfig(),
            train=TrainConfig(steps=9, batch_size=batch),
        )
        hub = Hub(controllers, timeout=5)
        self.controllers = [
            self._controller(HubPeers(i, controllers, hub, None if i else hub), judge, rows) for i in range(controllers)
        ]

    def _controller(self, peers: HubPeers, judge, rows: int) -> Controller:
        source = Loader(
            Numbers(rows), number_prompt, seed=3, shuffle=True, index=peers.index, count=peers.count, bad_rows="fail"
        )
        exchange = Exchange(peers, ranks=2, updates=1, budget=64, quadratic=1e-4)
        parts = Parts(config=self.config, peers=peers, trainer=self.trainer, exchange=exchange, clock=Ticks())
        layout = layout_of(self.config, len(self.generators))
        engines = Engines(
            layout=layout,
            mode=mode_of(self.config, layout, {}),
            generators={"policy": self.generators},
            resident=False,
        )
        return Assembly(parts, engines).controller(
            source,
            Reading(decode=lambda t: str(t.tolist()), scorer=ScriptedScorer(judge)),
            load_filter(self.config.rollout),
            lambda step, groups: self.groups.setdefault(step, []).extend(g.prompt.uid for g in groups),
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
